//! `rehearsed.yaml`: what a schedule took when its devices took turns on one, and how that compares with what
//! was predicted.

use std::collections::BTreeMap;

use optpipe_configs::file::{self, Check, Invalid};
use optpipe_configs::hardware::check_backend;
use optpipe_profiler::timing::summarise;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{OpKind, Schedule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::measured::{Comparison, Measured, MeasuredOp, check_bytes, check_ops, check_time, compare_ops};
use crate::runner::Rehearsal;

/// A rehearsed schedule. Errors are measured over predicted, less 1; `None` where 0 was predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rehearsed {
    /// Format version: 1.
    pub version: u32,
    /// `cpu` or `cuda`.
    pub backend: String,
    /// The device at hand, as it calls itself.
    pub device: String,
    /// Measured steps of each device in a round.
    pub steps: usize,
    /// Times have settled when a round moves no op's end by more than this part of the step.
    pub tolerance: f64,
    /// Whether they have.
    pub settled: bool,
    /// Whether the rehearsal was interrupted.
    pub interrupted: bool,
    /// The rounds over all devices that came to their end.
    pub rounds: Vec<RehearsedRound>,
    /// From the start of the step's first op to the end of its last, ns.
    pub step_ns: u64,
    /// Its error.
    pub step_error: Option<f64>,
    /// Farthest that an op's end in its device's own rehearsal lies from its end in `ops`, ns: the timeline puts
    /// together what was measured at different times.
    pub largest_shift_ns: u64,
    /// The optimizer's part after a step, a device, not in `step_ns`.
    pub optimizer_ns: Vec<u64>,
    /// Largest number of bytes held at once, a device, `static` included.
    pub peak_bytes: Vec<u64>,
    /// The same as the allocator of the device at hand counts it during each device's turn, temporaries and what
    /// other devices send included, without the workspace set aside; absent where it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocator_peak_bytes: Option<Vec<u64>>,
    /// The error of each device's peak.
    pub peak_errors: Vec<Option<f64>>,
    /// Bytes copied to the host in a step, all devices together.
    pub offloaded_bytes: u64,
    /// How far the times of single ops are off, by kind.
    pub errors: Vec<KindError>,
    /// Predicted against measured, by stage and by device.
    pub comparison: Comparison,
    /// Every op: times from the start of the step.
    pub ops: Vec<RehearsedOp>,
}

/// One round over all devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RehearsedRound {
    /// The step after it, ns.
    pub step_ns: u64,
    /// Farthest that it moved an op's end, ns; the first round's, from the prediction.
    pub largest_change_ns: u64,
}

/// All ops of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KindError {
    /// What they do.
    pub op: OpKind,
    /// How many there are with a predicted time above 0.
    pub count: usize,
    /// The median of their errors' sizes.
    pub median_error: f64,
    /// The error that is farthest from 0, with its sign.
    pub worst_error: f64,
    /// The stage of that op.
    pub worst_stage: usize,
    /// Its microbatch.
    pub worst_microbatch: usize,
}

/// When one op ran, and when it was to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RehearsedOp {
    /// The device of its stage.
    pub device: usize,
    /// What it does.
    pub op: OpKind,
    /// Its stage.
    pub stage: usize,
    /// Its microbatch.
    pub microbatch: usize,
    /// Start, ns.
    pub start_ns: u64,
    /// End, ns.
    pub end_ns: u64,
    /// Start in the schedule, ns from its earliest.
    pub predicted_start_ns: u64,
    /// End in the schedule, ns from its earliest start.
    pub predicted_end_ns: u64,
}

impl Rehearsed {
    /// A rehearsal held against its schedule.
    pub fn new(
        backend: &dyn optpipe_kernels::backend::Backend,
        problem: &Problem,
        schedule: &Schedule,
        rehearsal: Rehearsal,
        steps: usize,
        tolerance: f64,
    ) -> Rehearsed {
        let Rehearsal { ops, step_ns, rounds, settled, interrupted, largest_shift_ns, .. } = rehearsal;
        let Rehearsal { optimizer_ns, peak_bytes, allocator_peak_bytes, offloaded_bytes, .. } = rehearsal;
        let comparison = compare_ops(problem, schedule, &ops, step_ns, &peak_bytes);
        let peaks = comparison.devices.iter();
        Rehearsed {
            version: 1,
            backend: backend.kind().to_string(),
            device: backend.devices().first().map_or_else(String::new, |device| device.name.clone()),
            steps,
            tolerance,
            settled,
            interrupted,
            rounds: rounds
                .iter()
                .map(|x| RehearsedRound { step_ns: x.step_ns, largest_change_ns: x.largest_change_ns })
                .collect(),
            step_ns,
            step_error: error(step_ns, comparison.predicted_step_ns),
            largest_shift_ns,
            optimizer_ns,
            peak_errors: peaks.map(|x| error(x.measured_peak_bytes, x.predicted_peak_bytes)).collect(),
            peak_bytes,
            allocator_peak_bytes,
            offloaded_bytes,
            errors: errors(problem, &ops),
            comparison,
            ops: beside_schedule(problem, schedule, &ops),
        }
    }
}

impl Check for Rehearsed {
    /// Whether the ops are those of a schedule shows only beside it.
    fn check(&self) -> Result<(), Invalid> {
        file::check_version(self.version)?;
        check_backend(&self.backend)?;
        check_time("step_ns", self.step_ns)?;
        check_time("largest_shift_ns", self.largest_shift_ns)?;
        for (i, &ns) in self.optimizer_ns.iter().enumerate() {
            check_time(&format!("optimizer_ns[{i}]"), ns)?;
        }
        check_bytes("peak_bytes", &self.peak_bytes)?;
        check_bytes("allocator_peak_bytes", self.allocator_peak_bytes.as_deref().unwrap_or_default())?;
        check_bytes("offloaded_bytes", &[self.offloaded_bytes])?;
        check_ops(self.ops.iter().map(|x| (x.start_ns, x.end_ns, 0)))?;
        let inside = |field: &str, found: Result<(), Invalid>| {
            found.map_err(|invalid| match invalid.field.starts_with('[') || invalid.field.is_empty() {
                true => Invalid { field: format!("{field}{}", invalid.field), ..invalid },
                false => Invalid { field: format!("{field}.{}", invalid.field), ..invalid },
            })
        };
        inside("tolerance", file::check_numbers(&self.tolerance))?;
        inside("rounds", file::check_numbers(&self.rounds))?;
        inside("step_error", file::check_numbers(&self.step_error))?;
        inside("peak_errors", file::check_numbers(&self.peak_errors))?;
        inside("errors", file::check_numbers(&self.errors))?;
        inside("comparison", file::check_numbers(&self.comparison))
    }
}

impl From<Rehearsed> for Measured {
    /// The one step that it puts together, for what draws or compares measured steps. A rehearsal has no losses.
    fn from(rehearsed: Rehearsed) -> Measured {
        let Rehearsed { backend, step_ns, optimizer_ns, peak_bytes, .. } = rehearsed;
        let Rehearsed { allocator_peak_bytes, offloaded_bytes, ops, .. } = rehearsed;
        let op = |x: RehearsedOp| MeasuredOp {
            device: x.device,
            op: x.op,
            stage: x.stage,
            microbatch: x.microbatch,
            start_ns: x.start_ns,
            end_ns: x.end_ns,
            median_ns: x.end_ns.saturating_sub(x.start_ns),
        };
        // Devices update their weights at the same time.
        let slowest = optimizer_ns.iter().max().copied();
        Measured {
            version: 1,
            backend,
            step: summarise(&[step_ns], false),
            optimizer: summarise(slowest.as_slice(), false),
            steps_ns: vec![step_ns],
            losses: Vec::new(),
            peak_bytes,
            allocator_peak_bytes,
            offloaded_bytes,
            ops: ops.into_iter().map(op).collect(),
        }
    }
}

fn error(measured: u64, predicted: u64) -> Option<f64> {
    (predicted > 0).then(|| measured as f64 / predicted as f64 - 1.0)
}

fn unsigned(x: i64) -> u64 {
    u64::try_from(x).unwrap_or(0)
}

/// The errors of single ops' times, by kind.
fn errors(problem: &Problem, ops: &[MeasuredOp]) -> Vec<KindError> {
    let mut by_kind: BTreeMap<OpKind, Vec<(f64, &MeasuredOp)>> = BTreeMap::new();
    for x in ops {
        if let Some(error) = error(x.median_ns, unsigned(problem.duration(x.op, x.stage))) {
            by_kind.entry(x.op).or_default().push((error, x));
        }
    }
    let describe = |(op, mut list): (OpKind, Vec<(f64, &MeasuredOp)>)| {
        list.sort_by(|a, b| a.0.abs().total_cmp(&b.0.abs()));
        let (middle, count) = (list.len() / 2, list.len());
        let median_error = (list[(count - 1) / 2].0.abs() + list[middle].0.abs()) / 2.0;
        let (worst_error, worst) = list[count - 1];
        KindError { op, count, median_error, worst_error, worst_stage: worst.stage, worst_microbatch: worst.microbatch }
    };
    // A kind is there only with an op of it.
    by_kind.into_iter().map(describe).collect()
}

/// Each op with its place in the schedule.
fn beside_schedule(problem: &Problem, schedule: &Schedule, ops: &[MeasuredOp]) -> Vec<RehearsedOp> {
    let first = schedule.ops.iter().flatten().map(|x| x.start_ns).min().unwrap_or(0);
    let predicted: BTreeMap<(OpKind, usize, usize), i64> =
        schedule.ops.iter().flatten().map(|x| ((x.op, x.stage, x.microbatch), x.start_ns - first)).collect();
    ops.iter()
        .map(|x| {
            let start = predicted.get(&(x.op, x.stage, x.microbatch)).copied().unwrap_or(0);
            RehearsedOp {
                device: x.device,
                op: x.op,
                stage: x.stage,
                microbatch: x.microbatch,
                start_ns: x.start_ns,
                end_ns: x.end_ns,
                predicted_start_ns: unsigned(start),
                predicted_end_ns: unsigned(start + problem.duration(x.op, x.stage)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn errors_are_told_by_kind_with_the_worst_op() {
        let problem: Problem = serde_yaml::from_str(
            "{devices: 1, placement: [0], microbatches: 4, split_backward: true,
              time_ns: {forward: [100], backward_input: [0], backward_weight: [50], send_forward: [],
                        send_backward: [], offload: [1], reload: [1]},
              bytes: {activation: [1], weight_context: [1], offloadable: [1], static: [0], capacity: [9]},
              offload_channel: [0], reload_channel: [1]}",
        )
        .unwrap();
        let op = |op, microbatch, median_ns| MeasuredOp {
            device: 0,
            op,
            stage: 0,
            microbatch,
            start_ns: 0,
            end_ns: median_ns,
            median_ns,
        };
        let found = errors(
            &problem,
            &[
                op(OpKind::F, 0, 110),
                op(OpKind::F, 1, 98),
                op(OpKind::F, 2, 60),
                op(OpKind::F, 3, 104),
                op(OpKind::B, 0, 10),
                op(OpKind::W, 0, 50),
            ],
        );
        assert_eq!(found.iter().map(|x| (x.op, x.count)).collect::<Vec<_>>(), [(OpKind::F, 4), (OpKind::W, 1)]);
        assert!((found[0].median_error - 0.07).abs() < 1e-12, "{found:?}");
        assert!((found[0].worst_error + 0.4).abs() < 1e-12 && found[0].worst_microbatch == 2, "{found:?}");
        assert_eq!(found[1].worst_error, 0.0);
    }
}
