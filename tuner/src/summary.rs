//! `summary.yaml`: what a tune found, in numbers that can be checked.

use std::collections::BTreeMap;

use optpipe_configs::file::{Check, Invalid, check_numbers, check_version};
use optpipe_configs::profile::Sample;
use optpipe_solver::milp::MilpStats;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::measured::Measured;
use crate::plan::{DeviceMemory, StagePlan};

/// The outcome of a tune.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Format version: 1.
    pub version: u32,
    /// The OptPipe that wrote it.
    pub optpipe: String,
    /// The model, as its config.json or preset is named.
    pub model: String,
    /// `cpu` or `cuda`.
    pub backend: String,
    /// Number format of weights and activations.
    pub precision: String,
    /// Parameters of the model (numbers, not bytes); a matrix that two stages hold counts once.
    pub parameters: u64,
    /// Tokens of one step: sequence length x microbatch size x microbatches.
    pub tokens_per_step: u64,
    /// Devices.
    pub devices: usize,
    /// Microbatches a step.
    pub microbatches: usize,
    /// Why the tuning stopped.
    pub stop: StopReason,
    /// What failed, where that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The best measured schedule, the one in `schedule.yaml`. Its measurement is the one made together
    /// with the textbook schedules, where they ran, else that of its round.
    pub best: Outcome,
    /// The round that made it, from 1.
    pub best_round: usize,
    /// No legal schedule of that round's problem is shorter than this, ns.
    pub bound_ns: i64,
    /// Predicted step time over the bound, less 1.
    pub gap: f64,
    /// Whether the schedule is proven optimal for that round's problem.
    pub proven: bool,
    /// The textbook schedules on the same problem.
    pub textbook: Vec<Outcome>,
    /// Every round.
    pub rounds: Vec<Round>,
    /// What each stage holds and takes by the profile.
    pub stages: Vec<StagePlan>,
    /// Static memory of each device and its limit.
    pub memory: Vec<DeviceMemory>,
    /// Where the time of the tuning itself went, ns.
    pub cost: Cost,
    /// Size of the MILP and how its gap closed, if it ran in the best round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milp: Option<MilpStats>,
    /// The files beside this one and what they hold.
    pub files: BTreeMap<String, String>,
}

impl Check for Summary {
    fn check(&self) -> Result<(), Invalid> {
        check_version(self.version)?;
        for (i, round) in self.rounds.iter().enumerate() {
            check_version(round.version)
                .map_err(|invalid| Invalid { field: format!("rounds[{i}].{}", invalid.field), ..invalid })?;
        }
        check_numbers(self)
    }
}

/// Why a tuning stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Throughput gained less than the tolerance in as many rounds in a row as the job's patience.
    Converged,
    /// The job's largest number of rounds.
    RoundLimit,
    /// Stopped by the user.
    Interrupted,
    /// What measures failed; what was measured before counts.
    Failed,
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            StopReason::Converged => "converged",
            StopReason::RoundLimit => "round limit reached",
            StopReason::Interrupted => "interrupted",
            StopReason::Failed => "failed",
        })
    }
}

/// What one schedule should take and what it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// `optpipe`, or the textbook schedule's name.
    pub name: String,
    /// By the problem, before it ran. Absent where the schedule does not apply to the placement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
    /// What running it took. Absent where it was not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Observed>,
    /// Bytes by which the predicted peak exceeds the limit, a device; 0 where it fits.
    pub over_limit_bytes: Vec<u64>,
    /// Why something above is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Outcome {
    /// Whether the predicted peak is within the limit on every device.
    pub fn fits(&self) -> bool {
        self.over_limit_bytes.iter().all(|&b| b == 0)
    }

    /// Measured over predicted step time.
    pub fn ratio(&self) -> Option<f64> {
        let (predicted, measured) = (self.predicted.as_ref()?, self.measured.as_ref()?);
        Some(measured.step.median_ns as f64 / predicted.step_ns.max(1) as f64)
    }
}

/// What a schedule should take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// Makespan, ns.
    pub step_ns: i64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Share of the devices' time in which they do not compute.
    pub bubble: f64,
    /// Peak, a device, `static` included.
    pub peak_bytes: Vec<u64>,
    /// Stage-microbatch pairs whose activations go to the host.
    pub offloaded: usize,
    /// Their bytes.
    pub offloaded_bytes: u64,
}

/// What running a schedule took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Observed {
    /// Step time over the measured steps.
    pub step: Sample,
    /// Tokens a second at the median step.
    pub tokens_per_second: f64,
    /// Share of the devices' time in the median step in which they do not compute.
    pub bubble: f64,
    /// Peak, a device, `static` included.
    pub peak_bytes: Vec<u64>,
    /// Bytes copied to the host in a step.
    pub offloaded_bytes: u64,
}

impl Predicted {
    /// Judges a schedule by the strict checker's numbers.
    pub fn of(problem: &Problem, schedule: &Schedule, tokens_per_step: u64) -> Self {
        let report = optpipe_solver::check::check(problem, schedule);
        Predicted {
            step_ns: report.makespan_ns,
            tokens_per_second: tokens_per_second(tokens_per_step, report.makespan_ns.unsigned_abs()),
            bubble: report.bubble,
            peak_bytes: report.peak_bytes.iter().map(|b| b.unsigned_abs()).collect(),
            offloaded: report.offloaded,
            offloaded_bytes: report.offloaded_bytes.unsigned_abs(),
        }
    }

    /// Bytes by which the peak exceeds each device's capacity.
    pub fn over_limit(&self, problem: &Problem) -> Vec<u64> {
        self.peak_bytes
            .iter()
            .zip(&problem.bytes.capacity)
            .map(|(&peak, &capacity)| peak.saturating_sub(capacity.unsigned_abs()))
            .collect()
    }
}

impl Observed {
    /// Condenses a measurement.
    pub fn of(measured: &Measured, devices: usize, tokens_per_step: u64) -> Self {
        let compute: u64 =
            measured.ops.iter().filter(|op| op.op.is_compute()).map(|op| op.end_ns.saturating_sub(op.start_ns)).sum();
        let first = measured.ops.iter().map(|op| op.start_ns).min().unwrap_or(0);
        let last = measured.ops.iter().map(|op| op.end_ns).max().unwrap_or(0);
        let span = last.saturating_sub(first).max(1) as f64;
        Observed {
            step: measured.step.clone(),
            tokens_per_second: tokens_per_second(tokens_per_step, measured.step.median_ns),
            bubble: 1.0 - compute as f64 / (devices as f64 * span),
            peak_bytes: measured.peak_bytes.clone(),
            offloaded_bytes: measured.offloaded_bytes,
        }
    }
}

/// Tokens a second of a step; 0 for a step of no time.
pub fn tokens_per_second(tokens: u64, step_ns: u64) -> f64 {
    if step_ns == 0 { 0.0 } else { tokens as f64 / (step_ns as f64 / 1e9) }
}

/// One round: `rounds/NN/round.yaml`, and a line of the summary's convergence history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// Format version: 1.
    pub version: u32,
    /// From 1.
    pub round: usize,
    /// What found the schedule.
    pub method: String,
    /// What the round's problem says the schedule takes.
    pub predicted: Predicted,
    /// What it took.
    pub measured: Observed,
    /// Measured over predicted step time.
    pub ratio: f64,
    /// No legal schedule of the round's problem is shorter, ns.
    pub bound_ns: i64,
    /// Predicted over the bound, less 1.
    pub gap: f64,
    /// Whether the schedule is proven optimal for the round's problem.
    pub proven: bool,
    /// Throughput against the best of the rounds before, less 1. Absent in the first round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain: Option<f64>,
    /// Whether no round before was faster.
    pub best_so_far: bool,
    /// Time the solve took, ns.
    pub solve_ns: u64,
    /// Time the measurement took, ns.
    pub run_ns: u64,
    /// Size of the MILP and how its gap closed, if it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milp: Option<MilpStats>,
}

impl Check for Round {
    fn check(&self) -> Result<(), Invalid> {
        check_version(self.version)?;
        check_numbers(self)
    }
}

/// Where the time of a tuning went, ns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Calibrating the hardware; 0 if it was given.
    pub calibrate_ns: u64,
    /// Profiling the layers.
    pub profile_ns: u64,
    /// Solving, over all rounds.
    pub solve_ns: u64,
    /// Running, over all rounds, the textbook schedules not counted.
    pub run_ns: u64,
}
