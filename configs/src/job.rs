//! `job.yaml`: what to tune. Every field but `model` has a default.
//!
//! ```
//! use optpipe_configs::job::Job;
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("job.yaml");
//! std::fs::write(&path, "model: llama-15m\npipeline: {devices: 2}\nmemory_limit: 300MiB\n")?;
//!
//! let (job, model) = Job::read(&path)?;
//! assert_eq!((job.batch.microbatches, model.layers), (8, 6));
//! assert_eq!(job.placement(), [0, 1]);
//!
//! std::fs::write(&path, "model: llama-15m\npipeline:\n  placement: vshap\n")?;
//! let error = Job::read(&path).unwrap_err();
//! assert_eq!((error.line, error.field.as_deref()), (Some(3), Some("pipeline.placement")));
//! assert_eq!(error.hint.as_deref(), Some("did you mean `vshape`?"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::file::{self, FileError, Invalid};
use crate::hardware::Hardware;
use crate::model::Model;
use crate::profile::Profile;
use crate::record;
use crate::size;

mod check;
mod choice;
mod run;
mod structure;
mod template;

pub use run::{Engine, Modules, Run};
pub use structure::{Count, Structure};

/// A tuning job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Format version: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// A preset's name, or the path of a Hugging Face `config.json`, relative to this file.
    pub model: String,
    /// The batch of one training step.
    #[serde(default)]
    pub batch: Batch,
    /// Number format of weights and activations; gradients are summed in f32.
    #[serde(default)]
    pub precision: Precision,
    /// Decides the bytes of optimizer states, part of every device's static memory.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Devices, stages and their layers.
    #[serde(default)]
    pub pipeline: Pipeline,
    /// Memory a device may use: `512MiB` for all, or a list with one entry a device. Absent: what
    /// the device has, shared evenly where devices share it; a GPU keeps 1 GiB and 2 % of its memory back, a
    /// quarter at most, for the driver, libraries and gaps between tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<MemoryLimit>,
    /// Where profiling and running happen.
    #[serde(default)]
    pub backend: Backend,
    /// A `hardware.yaml` to use instead of calibrating, relative to this file, or the name of a recorded one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<PathBuf>,
    /// A `profile.yaml` to use instead of profiling, relative to this file, or the name of a recorded one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<PathBuf>,
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
    /// Tokens a sequence; at most the model's positions.
    #[schemars(range(min = 1))]
    pub sequence_length: usize,
    /// Sequences a microbatch; `auto` needs `global_batch`.
    #[schemars(schema_with = "structure::size_schema")]
    pub microbatch_size: Count,
    /// Microbatches a step; with `microbatch_size: auto` it follows from `global_batch`.
    #[schemars(range(min = 1, max = 65536))]
    pub microbatches: usize,
    /// Sequences a step, whatever microbatch size the structure search chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub global_batch: Option<usize>,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { sequence_length: 256, microbatch_size: Count::Fixed(1), microbatches: 8, global_batch: None }
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

impl Precision {
    /// The word in files.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }
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
    #[schemars(range(min = 1, max = 1024))]
    pub devices: usize,
    /// Chunks a device (V): stages = devices x chunks, at most the model's blocks + 2.
    #[schemars(schema_with = "structure::chunks_schema")]
    pub chunks: Count,
    /// Which device holds which stage.
    pub placement: Placement,
    /// Transformer blocks of each stage; the embedding is on the first stage, the head on the last.
    pub layer_split: LayerSplit,
    /// Whether backward_weight may run later than backward_input (zero-bubble schedules need it).
    pub split_backward: bool,
}

impl Default for Pipeline {
    fn default() -> Self {
        Pipeline {
            devices: 2,
            chunks: Count::Fixed(1),
            placement: Placement::default(),
            layer_split: LayerSplit::default(),
            split_backward: true,
        }
    }
}

/// Which device holds which stage.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
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
    /// Linear with one chunk a device, interleaved with more; `optpipe search` and `optpipe tune` look
    /// at a V, too, where there are two.
    Auto,
    /// Stage s on device s; one chunk a device.
    Linear,
    /// Stage s on device s mod P.
    Interleaved,
    /// Down the devices, then back up; two chunks a device.
    Vshape,
}

/// Transformer blocks of each stage.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
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
    /// Balanced over measured times, embedding and head counted; `optpipe search` and `optpipe tune` look
    /// at others, too.
    Auto,
}

/// A limit for all devices or one a device.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum MemoryLimit {
    /// The same for every device.
    All(#[schemars(schema_with = "size_schema")] String),
    /// One a device.
    Each(#[schemars(schema_with = "sizes_schema")] Vec<String>),
}

fn size_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "integer"], "minimum": 1, "examples": ["512MiB", "80GB", 1_073_741_824] })
}

fn sizes_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": size_schema(generator) })
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

impl Backend {
    /// The word in files.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
        }
    }
}

/// How long and how to solve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Solver {
    /// For one solve, e.g. `10s`, `1m30s`, `500ms`; a proven optimum ends it earlier.
    pub time_limit: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Evaluations of the search, a thread; 0 for as many as the time allows. With a number, and time
    /// enough for it, equal seeds and profiles give equal schedules: what depends on the clock, the MILP
    /// too, is left out.
    pub iterations: u64,
}

impl Default for Solver {
    fn default() -> Self {
        Solver { time_limit: "10s".to_owned(), seed: 0, iterations: 0 }
    }
}

/// When tuning stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// Relative gain of throughput below which a round counts as no gain: 0.01 is one percent.
    #[schemars(range(min = 0, max = 1))]
    pub tolerance: f64,
    /// Rounds without gain, in a row, that end the tuning.
    #[schemars(range(min = 1, max = 1000))]
    pub patience: usize,
    /// Rounds at most.
    #[schemars(range(min = 1, max = 1000))]
    pub max_rounds: usize,
}

impl Default for Stop {
    fn default() -> Self {
        Stop { tolerance: 0.01, patience: 2, max_rounds: 6 }
    }
}

impl Default for Job {
    /// The defaults, for the smallest preset.
    fn default() -> Self {
        Job {
            version: file::VERSION,
            model: "llama-15m".to_owned(),
            batch: Batch::default(),
            precision: Precision::default(),
            optimizer: Optimizer::default(),
            pipeline: Pipeline::default(),
            memory_limit: None,
            backend: Backend::default(),
            hardware: None,
            profile: None,
            solver: Solver::default(),
            run: Run::default(),
            stop: Stop::default(),
        }
    }
}

impl Job {
    /// Reads a job and its model, whose path starts at the job file's folder, and checks both and
    /// whether they fit ([`Job::check_model`]).
    pub fn read(path: &Path) -> Result<(Job, Model), FileError> {
        let text = file::read_text(path)?;
        let job: Job = file::checked(path, &text, file::parse(path, &text)?)?;
        let model = match Model::read(&job.model, path.parent()) {
            Ok(model) => model,
            // Nothing was read: the fault is the reference, in this file.
            Err(e) if e.line.is_none() && e.field.is_none() => {
                return Err(file::located(path, &text, Invalid::new("model", e.to_string())));
            }
            Err(e) => return Err(e),
        };
        match job.check_model(&model) {
            Ok(()) => Ok((job, model)),
            Err(invalid) => Err(file::located(path, &text, invalid)),
        }
    }

    /// A commented job file for a model, every field with its default.
    pub fn template(model: &str) -> String {
        template::template(model)
    }

    /// Stages of the pipeline, S = devices x chunks; one chunk where undecided.
    pub fn stages(&self) -> usize {
        self.pipeline.devices.saturating_mul(self.chunks())
    }

    /// The device of each stage.
    pub fn placement(&self) -> Vec<usize> {
        let (devices, stages) = (self.pipeline.devices, self.stages());
        match &self.pipeline.placement {
            Placement::List(list) => list.clone(),
            Placement::Named(NamedPlacement::Vshape) => {
                (0..stages).map(|s| if s < devices { s } else { stages - 1 - s }).collect()
            }
            // Both patterns of one chunk a device are s mod P too.
            Placement::Named(NamedPlacement::Auto | NamedPlacement::Linear | NamedPlacement::Interleaved) => {
                (0..stages).map(|s| s % devices).collect()
            }
        }
    }

    /// The split that the job gives; `None` for `auto`.
    pub fn layer_split(&self) -> Option<&[usize]> {
        match &self.pipeline.layer_split {
            LayerSplit::Named(NamedSplit::Auto) => None,
            LayerSplit::List(list) => Some(list),
        }
    }

    /// Time for one solve.
    pub fn time_limit(&self) -> Result<Duration, Invalid> {
        size::parse_duration(&self.solver.time_limit).map_err(|e| Invalid::new("solver.time_limit", e.to_string()))
    }

    /// The limit of each device, bytes; `None` where the job gives none.
    pub fn memory_limits(&self) -> Result<Option<Vec<u64>>, Invalid> {
        let parse = |field: String, text: &str| match size::parse_bytes(text) {
            Ok(0) => Err(Invalid::new(field, "expected more than 0 bytes, found 0")),
            Ok(bytes) => Ok(bytes),
            Err(e) => Err(Invalid::new(field, e.to_string())),
        };
        let devices = self.pipeline.devices;
        match &self.memory_limit {
            None => Ok(None),
            Some(MemoryLimit::All(text)) => {
                let bytes = parse("memory_limit".to_owned(), text)?;
                Ok(Some(vec![bytes; devices]))
            }
            Some(MemoryLimit::Each(texts)) if texts.len() != devices => Err(Invalid::new(
                "memory_limit",
                format!("expected {devices} sizes, one a device (pipeline.devices), found {}", texts.len()),
            )),
            Some(MemoryLimit::Each(texts)) => {
                let each = texts.iter().enumerate().map(|(i, text)| parse(format!("memory_limit[{i}]"), text));
                each.collect::<Result<_, _>>().map(Some)
            }
        }
    }

    /// What each device may hold, bytes: the job's limits, or what the hardware has. The CPU backend's
    /// devices share one memory, so there each has its part of it and the limits' sum must fit.
    pub fn capacity_bytes(&self, hardware: &Hardware) -> Result<Vec<u64>, Invalid> {
        let devices = self.pipeline.devices;
        if hardware.devices.len() < devices {
            return Err(Invalid::new(
                "pipeline.devices",
                format!("expected at most the {} devices of the hardware, found {devices}", hardware.devices.len()),
            ));
        }
        let memory = hardware.devices[..devices].iter().map(|d| d.memory_bytes);
        let shared = hardware.backend == "cpu";
        let Some(limits) = self.memory_limits()? else {
            return Ok(memory.map(|bytes| if shared { bytes / devices as u64 } else { usable(bytes) }).collect());
        };
        let too_much = |field: String, memory: u64, limit: u64| {
            let (has, found) = (size::format_bytes(memory), size::format_bytes(limit));
            Invalid::new(field, format!("expected at most the {has} that there are, found {found}"))
        };
        if shared {
            let (memory, sum) = (memory.min().unwrap_or(0), limits.iter().sum::<u64>());
            if sum > memory {
                return Err(too_much("memory_limit".to_owned(), memory, sum)
                    .hint("the devices of the CPU backend share the machine's memory: the limits' sum must fit"));
            }
        } else if let Some((i, (memory, limit))) = memory.zip(&limits).enumerate().find(|(_, (m, l))| *l > m) {
            let field = match &self.memory_limit {
                Some(MemoryLimit::Each(_)) => format!("memory_limit[{i}]"),
                _ => "memory_limit".to_owned(),
            };
            return Err(too_much(field, memory, *limit).hint(format!("device {i} has too little memory")));
        }
        Ok(limits)
    }

    /// The calibration that [`Job::hardware`] names. A recorded one of GPUs stands for as many machines like it as
    /// the pipeline has devices for.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn read_hardware(&self, job_file: &Path) -> Result<Option<Hardware>, FileError> {
        let Some(word) = &self.hardware else { return Ok(None) };
        let found: Hardware = record::find(record::HARDWARE, "hardware", word, job_file)?;
        Ok(Some(if record::is_recorded(record::HARDWARE, word) {
            found.repeated(self.pipeline.devices)
        } else {
            found
        }))
    }

    /// The profile that [`Job::profile`] names.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn read_profile(&self, job_file: &Path) -> Result<Option<Profile>, FileError> {
        let word = self.profile.as_ref();
        word.map(|word| record::find(record::PROFILES, "profile", word, job_file)).transpose()
    }
}

/// What tensors may take of a GPU's memory, bytes. The rest is for the driver's context, the kernels' code, the
/// workspaces of cuBLAS, and gaps between tensors.
fn usable(bytes: u64) -> u64 {
    bytes - ((1 << 30) + bytes / 50).min(bytes / 4)
}
