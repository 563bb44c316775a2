//! `job.yaml`: what to tune. Every field but `model` has a default.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::{Check, Invalid};

/// A tuning job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Format version.
    #[serde(default = "one")]
    pub version: u32,
    /// A preset's name, or the path of a Hugging Face `config.json`, relative to this file.
    pub model: String,
    /// The batch of one training step.
    #[serde(default)]
    pub batch: Batch,
    /// Number format of weights and activations.
    #[serde(default)]
    pub precision: Precision,
    /// Decides the bytes of optimizer states.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Devices, stages and their layers.
    #[serde(default)]
    pub pipeline: Pipeline,
    /// Memory a device may use: `512MiB` for all, or a list with one entry a device. Absent: what
    /// the device has, shared evenly where devices share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<MemoryLimit>,
    /// Where profiling and running happen.
    #[serde(default)]
    pub backend: Backend,
    /// A `hardware.yaml` to use instead of calibrating, relative to this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<PathBuf>,
    /// How long and how to solve.
    #[serde(default)]
    pub solver: Solver,
    /// How schedules are measured.
    #[serde(default)]
    pub run: Run,
    /// When tuning stops.
    #[serde(default)]
    pub stop: Stop,
}

fn one() -> u32 {
    1
}

/// The batch of one training step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    /// Tokens a sequence.
    pub sequence_length: usize,
    /// Sequences a microbatch.
    pub microbatch_size: usize,
    /// Microbatches a step.
    pub microbatches: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { sequence_length: 256, microbatch_size: 1, microbatches: 8 }
    }
}

/// Number format of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 4 bytes.
    #[default]
    F32,
    /// 2 bytes, with f32 master weights in the optimizer.
    Bf16,
}

/// The optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Two f32 moments a parameter.
    #[default]
    Adamw,
    /// No state.
    Sgd,
}

/// Devices, stages and their layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pipeline {
    /// Devices (P).
    pub devices: usize,
    /// Chunks a device (V): stages = devices x chunks.
    pub chunks: usize,
    /// Which device holds which stage.
    pub placement: Placement,
    /// Transformer blocks of each stage; the embedding is on the first stage, the head on the last.
    pub layer_split: LayerSplit,
    /// Whether backward_weight may run later than backward_input.
    pub split_backward: bool,
}

impl Default for Pipeline {
    fn default() -> Self {
        Pipeline {
            devices: 2,
            chunks: 1,
            placement: Placement::default(),
            layer_split: LayerSplit::default(),
            split_backward: true,
        }
    }
}

/// Which device holds which stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Placement {
    /// A known pattern.
    Named(NamedPlacement),
    /// The device of each stage.
    List(Vec<usize>),
}

impl Default for Placement {
    fn default() -> Self {
        Placement::Named(NamedPlacement::Auto)
    }
}

/// A known placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NamedPlacement {
    /// Linear with one chunk a device, interleaved with more.
    Auto,
    /// Stage s on device s; one chunk a device.
    Linear,
    /// Stage s on device s mod P.
    Interleaved,
    /// Down the devices, then back up; two chunks a device.
    Vshape,
}

/// Transformer blocks of each stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LayerSplit {
    /// Chosen by OptPipe.
    Named(NamedSplit),
    /// Blocks of each stage; the sum is the model's number of layers.
    List(Vec<usize>),
}

impl Default for LayerSplit {
    fn default() -> Self {
        LayerSplit::Named(NamedSplit::Auto)
    }
}

/// A split chosen by OptPipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NamedSplit {
    /// Balanced over measured times, embedding and head counted.
    Auto,
}

/// A limit for all devices or one a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum MemoryLimit {
    /// The same for every device.
    All(String),
    /// One a device.
    Each(Vec<String>),
}

/// Where profiling and running happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// One device a thread on this machine's processor.
    #[default]
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// How long and how to solve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Solver {
    /// For one solve, e.g. `10s`.
    pub time_limit: String,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for Solver {
    fn default() -> Self {
        Solver { time_limit: "10s".to_owned(), seed: 0 }
    }
}

/// How schedules are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Steps before measuring.
    pub warmup_steps: usize,
    /// Measured steps a schedule; the median counts.
    pub steps: usize,
    /// Also run GPipe, 1F1B and ZB-H1 for comparison.
    pub textbook: bool,
}

impl Default for Run {
    fn default() -> Self {
        Run { warmup_steps: 1, steps: 3, textbook: true }
    }
}

/// When tuning stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// Relative gain of throughput below which a round counts as no gain.
    pub tolerance: f64,
    /// Rounds without gain, in a row, that end the tuning.
    pub patience: usize,
    /// Rounds at most.
    pub max_rounds: usize,
}

impl Default for Stop {
    fn default() -> Self {
        Stop { tolerance: 0.01, patience: 2, max_rounds: 6 }
    }
}

impl Check for Job {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}
