//! `profile.yaml`: what profiling measured of each layer of a model.

use std::fmt::Display;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::{self, Check, Invalid};
use crate::hardware;
use crate::job::Job;
use crate::model::{MOST_LAYERS, Model};

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
    /// What the device's allocator keeps after a forward beyond its output and its saved tensors (below 0: short of
    /// them), bytes, where that is more than how finely it allocates: memory that `bytes` does not tell of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unexplained_bytes: Option<i64>,
    /// How the device's clocks were while the times were taken; absent where devices tell nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
}

/// A device's clocks while a layer was measured. It was asked once a pass through the layer's three operations,
/// while it computed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// Passes for which the device was asked.
    pub passes: usize,
    /// Passes during which something took speed away that is not always there: heat, or a limit of power.
    /// Their samples count like the others, since training meets the same.
    pub throttled_passes: usize,
    /// What that was, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub throttle_reasons: Vec<String>,
    /// Clock of the multiprocessors, MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graphics_clock_mhz: Option<Range>,
    /// Clock of the memory, MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<Range>,
    /// Temperature, degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<Range>,
    /// Why some of this is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// The lowest and the highest of some readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The lowest.
    pub lowest: u32,
    /// The highest.
    pub highest: u32,
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

/// Times are below 104 days and sizes below 8 PiB: sums over layers stay far from the end of 64 bits.
const MOST: u64 = 1 << 53;

impl Sample {
    /// Checks the sample that stands at `field`.
    ///
    /// # Errors
    /// A time of 104 days or more, or percentiles the wrong way round.
    pub fn check(&self, field: &str) -> Result<(), Invalid> {
        let times =
            [("median_ns", self.median_ns), ("mad_ns", self.mad_ns), ("p05_ns", self.p05_ns), ("p95_ns", self.p95_ns)];
        for (name, ns) in times {
            if ns > MOST {
                return Err(Invalid::new(format!("{field}.{name}"), format!("expected at most {MOST}, found {ns}")));
            }
        }
        if self.p05_ns > self.p95_ns {
            return Err(Invalid::new(
                format!("{field}.p05_ns"),
                format!("expected at most p95_ns = {}, found {}", self.p95_ns, self.p05_ns),
            ));
        }
        Ok(())
    }
}

impl Profile {
    /// The layers of the model one by one, in order: embedding, blocks, head.
    pub fn each_layer(&self) -> impl Iterator<Item = &LayerProfile> {
        self.layers.iter().flat_map(|group| std::iter::repeat_n(group, group.count))
    }

    /// Whether the profile is one of this model at this job's batch shape, precision and backend.
    pub fn check_job(&self, job: &Job, model: &Model) -> Result<(), Invalid> {
        let differs = |field: &str, of: &str, expected: &dyn Display, found: &dyn Display| {
            Err(Invalid::new(field, format!("expected the {of} {expected}, found {found}"))
                .hint("the profile was measured for something else: profile again"))
        };
        if self.backend != job.backend.name() {
            return differs("backend", "job's", &job.backend.name(), &self.backend);
        }
        if self.precision != job.precision.name() {
            return differs("precision", "job's", &job.precision.name(), &self.precision);
        }
        if self.sequence_length != job.batch.sequence_length {
            return differs("sequence_length", "job's", &job.batch.sequence_length, &self.sequence_length);
        }
        if self.microbatch_size != job.microbatch_size() {
            return differs("microbatch_size", "job's", &job.microbatch_size(), &self.microbatch_size);
        }
        let blocks = self.each_layer().count().saturating_sub(2);
        if blocks != model.layers {
            return differs("layers", "model's number of blocks", &model.layers, &blocks);
        }
        Ok(())
    }
}

impl Check for Profile {
    fn check(&self) -> Result<(), Invalid> {
        file::check_version(self.version)?;
        hardware::check_backend(&self.backend)?;
        if !["f32", "bf16"].contains(&self.precision.as_str()) {
            return Err(Invalid::new("precision", format!("expected f32 or bf16, found {:?}", self.precision)));
        }
        for (field, number) in [("sequence_length", self.sequence_length), ("microbatch_size", self.microbatch_size)] {
            if number == 0 {
                return Err(Invalid::new(field, "expected at least 1, found 0"));
            }
        }
        let last = self.layers.len().saturating_sub(1);
        if last < 1 {
            return Err(Invalid::new(
                "layers",
                format!("expected an embedding, blocks and a head, found {} groups", self.layers.len()),
            ));
        }
        let mut layers = 0_usize;
        for (i, group) in self.layers.iter().enumerate() {
            let at = |name: &str| format!("layers[{i}].{name}");
            let expected = match i {
                0 => LayerKind::Embedding,
                i if i == last => LayerKind::Head,
                _ => LayerKind::Block,
            };
            if group.kind != expected {
                return Err(Invalid::new(
                    at("kind"),
                    format!("expected {}, found {}", expected.name(), group.kind.name()),
                ));
            }
            let single = expected != LayerKind::Block;
            if group.count == 0 || single && group.count != 1 {
                let number = if single { "1" } else { "at least 1" };
                return Err(Invalid::new(at("count"), format!("expected {number}, found {}", group.count)));
            }
            layers = layers.saturating_add(group.count);
            if layers > MOST_LAYERS + 2 {
                return Err(Invalid::new(at("count"), format!("expected at most {MOST_LAYERS} blocks in all")));
            }
            group.forward.check(&at("forward"))?;
            group.backward_input.check(&at("backward_input"))?;
            group.backward_weight.check(&at("backward_weight"))?;
            group.bytes.check(&at("bytes"))?;
        }
        Ok(())
    }
}

impl LayerKind {
    /// The word in the file.
    pub fn name(self) -> &'static str {
        match self {
            LayerKind::Embedding => "embedding",
            LayerKind::Block => "block",
            LayerKind::Head => "head",
        }
    }
}

impl LayerBytes {
    fn check(&self, field: &str) -> Result<(), Invalid> {
        let of_activation = [("weight_context", self.weight_context), ("offloadable", self.offloadable)];
        for (name, bytes) in of_activation {
            if bytes > self.activation {
                return Err(Invalid::new(
                    format!("{field}.{name}"),
                    format!("expected at most activation = {}, found {bytes}", self.activation),
                ));
            }
        }
        for (name, bytes) in [("activation", self.activation), ("output", self.output), ("workspace", self.workspace)] {
            if bytes > MOST {
                return Err(Invalid::new(
                    format!("{field}.{name}"),
                    format!("expected at most {MOST} bytes, found {bytes}"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        let time = |ns| Sample { median_ns: ns, mad_ns: 1, p05_ns: ns - 1, p95_ns: ns + 1, count: 10, stable: true };
        let group = |kind, count| LayerProfile {
            kind,
            count,
            forward: time(10),
            backward_input: time(10),
            backward_weight: time(10),
            bytes: LayerBytes { activation: 8, weight_context: 4, offloadable: 8, output: 2, workspace: 1 },
            parameters: 7,
            unexplained_bytes: None,
            conditions: None,
        };
        Profile {
            version: 1,
            model: "llama-15m".to_owned(),
            backend: "cpu".to_owned(),
            precision: "f32".to_owned(),
            sequence_length: 256,
            microbatch_size: 1,
            clock: "monotonic".to_owned(),
            layers: vec![group(LayerKind::Embedding, 1), group(LayerKind::Block, 6), group(LayerKind::Head, 1)],
            cost_ns: 1,
        }
    }

    #[test]
    fn layers_come_one_by_one_in_order() {
        let kinds: Vec<_> = profile().each_layer().map(|l| l.kind.name()).collect();
        assert_eq!(kinds.join(" "), "embedding block block block block block block head");
    }

    #[test]
    fn impossible_numbers_are_refused_by_name() {
        let refusal = |change: fn(&mut Profile)| {
            let mut profile = profile();
            profile.check().unwrap();
            change(&mut profile);
            profile.check().unwrap_err().field
        };
        assert_eq!(refusal(|p| p.version = 9), "version");
        assert_eq!(refusal(|p| p.precision = "f16".to_owned()), "precision");
        assert_eq!(refusal(|p| p.microbatch_size = 0), "microbatch_size");
        assert_eq!(refusal(|p| p.layers.clear()), "layers");
        assert_eq!(refusal(|p| p.layers.swap(0, 1)), "layers[0].kind");
        assert_eq!(refusal(|p| p.layers[2].count = 2), "layers[2].count");
        assert_eq!(refusal(|p| p.layers[1].count = usize::MAX), "layers[1].count");
        assert_eq!(refusal(|p| p.layers[1].forward.median_ns = u64::MAX), "layers[1].forward.median_ns");
        assert_eq!(refusal(|p| p.layers[1].bytes.offloadable = 9), "layers[1].bytes.offloadable");
    }

    #[test]
    fn a_profile_of_something_else_is_refused() {
        let model = Model::read("llama-15m", None).unwrap();
        let job = Job::default();
        profile().check_job(&job, &model).unwrap();
        let other = Model::read("gpt2", None).unwrap();
        assert_eq!(profile().check_job(&job, &other).unwrap_err().field, "layers");
        let mut longer = job;
        longer.batch.sequence_length = 128;
        let invalid = profile().check_job(&longer, &model).unwrap_err();
        assert_eq!(invalid.message, "expected the job's 128, found 256");
    }
}
