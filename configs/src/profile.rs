//! `profile.yaml`: what profiling measured of each layer of a model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A time measured many times, ns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Median, ns.
    pub median_ns: u64,
    /// Median absolute deviation from the median, ns.
    pub mad_ns: u64,
    /// 5th percentile, ns.
    pub p05_ns: u64,
    /// 95th percentile, ns.
    pub p95_ns: u64,
    /// Samples taken after warm-up.
    pub count: usize,
    /// Whether the measurement settled within its limits; an unstable one is reported to the user.
    pub stable: bool,
}

/// What a layer is. The layers of a model, in order: one `embedding`, its `block`s, one `head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// Token (and learned position) embedding.
    Embedding,
    /// One transformer block: attention and MLP with their norms.
    Block,
    /// Final norm, output projection and loss.
    Head,
}

/// Bytes of one layer and one microbatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayerBytes {
    /// Held from forward to the end of backward_input; at least `weight_context`.
    pub activation: u64,
    /// Held from the end of backward_input to the end of backward_weight.
    pub weight_context: u64,
    /// The part of `activation` that may go to the host.
    pub offloadable: u64,
    /// The output handed to the next layer (and so the gradient that comes back).
    pub output: u64,
    /// Peak of temporaries inside any one of the three operations, beyond what is counted above.
    pub workspace: u64,
}

/// One group of equal layers, measured once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayerProfile {
    /// What the layers are.
    pub kind: LayerKind,
    /// How many consecutive layers of the model these numbers stand for.
    pub count: usize,
    /// Time of forward.
    pub forward: Sample,
    /// Time of backward_input.
    pub backward_input: Sample,
    /// Time of backward_weight.
    pub backward_weight: Sample,
    /// Bytes, per layer.
    pub bytes: LayerBytes,
    /// Parameters (numbers, not bytes) of one layer.
    pub parameters: u64,
}

/// The measured layers of one model at one batch shape, in model order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Format version: 1.
    pub version: u32,
    /// The model's config.json, or its preset name.
    pub model: String,
    /// `cpu` or `cuda`.
    pub backend: String,
    /// Number format of the tensors: `f32` or `bf16`.
    pub precision: String,
    /// Tokens a sequence.
    pub sequence_length: usize,
    /// Sequences a microbatch.
    pub microbatch_size: usize,
    /// The clock behind every time, e.g. `monotonic`.
    pub clock: String,
    /// Groups of equal layers, in model order: counts add up to the model's layers plus 2.
    pub layers: Vec<LayerProfile>,
    /// Wall time the profiling took, ns.
    pub cost_ns: u64,
}
