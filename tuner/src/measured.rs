//! `measured.yaml`: what a schedule took when it ran.

use optpipe_configs::profile::Sample;
use optpipe_solver::schedule::OpKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The measured steps of one schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Format version: 1.
    pub version: u32,
    /// `cpu` or `cuda`.
    pub backend: String,
    /// From the start of a step's first op to the end of its last, over the measured steps.
    pub step: Sample,
    /// The optimizer's part after each step, not in `step`.
    pub optimizer: Sample,
    /// Every measured step's time, ns, in the order run.
    pub steps_ns: Vec<u64>,
    /// Mean loss of each step, warm-up included.
    pub losses: Vec<f64>,
    /// Largest number of bytes held at once, a device, `static` included.
    pub peak_bytes: Vec<u64>,
    /// Bytes copied to the host in a step, all devices together.
    pub offloaded_bytes: u64,
    /// The median step, op by op: times from the start of that step.
    pub ops: Vec<MeasuredOp>,
}

/// When one op ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasuredOp {
    /// The device of its stage.
    pub device: usize,
    /// What it does.
    pub op: OpKind,
    /// Its stage.
    pub stage: usize,
    /// Its microbatch.
    pub microbatch: usize,
    /// Start in the median step, ns.
    pub start_ns: u64,
    /// End in the median step, ns.
    pub end_ns: u64,
    /// Median duration over all measured steps, ns.
    pub median_ns: u64,
}
