//! `measured.yaml`: what a schedule took when it ran, and how that compares with what was predicted.

use std::collections::BTreeMap;

use optpipe_configs::file::{self, Check, Invalid};
use optpipe_configs::profile::Sample;
use optpipe_profiler::timing::summarise;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Op, OpKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::runner::StepRecord;

mod compare;
pub use compare::{Comparison, DeviceComparison, KindComparison, OpComparison, compare, compare_ops};

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
    /// The same as each device's own allocator counts it, temporaries and what is under way between devices
    /// included, without the workspace set aside; absent where it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocator_peak_bytes: Option<Vec<u64>>,
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

/// Steps and ops take less than 104 days.
const LONGEST_NS: u64 = 1 << 53;
/// All ops of a step together, ns: what still has a sum.
const LONGEST_SUM_NS: u128 = 1 << 62;

/// The conditions of a list of ops with start and end, as measurements and rehearsals have it.
pub(crate) fn check_ops(ops: impl Iterator<Item = (u64, u64, u64)>) -> Result<(), Invalid> {
    let mut sum = 0_u128;
    for (i, (start_ns, end_ns, median_ns)) in ops.enumerate() {
        if end_ns < start_ns {
            let message = format!("expected at least start_ns = {start_ns}, found {end_ns}");
            return Err(Invalid::new(format!("ops[{i}].end_ns"), message));
        }
        for (name, ns) in [("end_ns", end_ns), ("median_ns", median_ns)] {
            check_time(&format!("ops[{i}].{name}"), ns)?;
        }
        sum += u128::from((end_ns - start_ns).max(median_ns));
    }
    if sum > LONGEST_SUM_NS {
        return Err(Invalid::new("ops", "times too large: their sum exceeds 2^62"));
    }
    Ok(())
}

/// A time that could have been measured.
pub(crate) fn check_time(field: &str, ns: u64) -> Result<(), Invalid> {
    match ns > LONGEST_NS {
        true => Err(Invalid::new(field, format!("expected at most {LONGEST_NS}, found {ns}"))),
        false => Ok(()),
    }
}

/// A list of sizes, or one size, that memory could have.
pub(crate) fn check_bytes(field: &str, bytes: &[u64]) -> Result<(), Invalid> {
    match bytes.iter().find(|&&bytes| bytes > file::LARGEST_NUMBER) {
        Some(found) => Err(Invalid::new(field, format!("expected at most {}, found {found}", file::LARGEST_NUMBER))),
        None => Ok(()),
    }
}

impl Check for Measured {
    /// Whether the ops are those of a schedule shows only beside it. Losses are the trainer's business: times are as
    /// good where it diverges.
    fn check(&self) -> Result<(), Invalid> {
        file::check_version(self.version)?;
        self.step.check("step")?;
        self.optimizer.check("optimizer")?;
        for (i, &ns) in self.steps_ns.iter().enumerate() {
            check_time(&format!("steps_ns[{i}]"), ns)?;
        }
        check_bytes("peak_bytes", &self.peak_bytes)?;
        check_bytes("allocator_peak_bytes", self.allocator_peak_bytes.as_deref().unwrap_or_default())?;
        check_bytes("offloaded_bytes", &[self.offloaded_bytes])?;
        check_ops(self.ops.iter().map(|x| (x.start_ns, x.end_ns, x.median_ns)))
    }
}

/// The steps of a run as `measured.yaml` has them. Every record has the same ops in the same order.
pub(crate) fn collect(
    backend: String,
    problem: &Problem,
    records: &[StepRecord],
    optimizer_ns: &[u64],
    losses: Vec<f64>,
    peak_bytes: Vec<u64>,
) -> Measured {
    let steps_ns: Vec<u64> = records.iter().map(|record| record.step_ns).collect();
    let mut by_time: Vec<&StepRecord> = records.iter().collect();
    by_time.sort_by_key(|record| record.step_ns);
    let median = by_time.get(by_time.len().saturating_sub(1) / 2);
    // A step's ops stand in the order in which the threads reported them, which differs from step to step.
    let mut durations: BTreeMap<Op, Vec<u64>> = BTreeMap::new();
    for &(op, start_ns, end_ns) in records.iter().flat_map(|record| &record.ops) {
        durations.entry(op).or_default().push(end_ns - start_ns);
    }
    let mut ops: Vec<MeasuredOp> = Vec::new();
    for &(op, start_ns, end_ns) in median.iter().flat_map(|record| &record.ops) {
        ops.push(MeasuredOp {
            device: problem.placement[op.stage],
            op: op.kind,
            stage: op.stage,
            microbatch: op.microbatch,
            start_ns,
            end_ns,
            median_ns: summarise(&durations[&op], false).median_ns,
        });
    }
    ops.sort_by_key(|x| (x.device, x.start_ns, x.op, x.microbatch));
    Measured {
        version: 1,
        backend,
        step: sample(&steps_ns),
        optimizer: sample(optimizer_ns),
        steps_ns,
        losses,
        peak_bytes,
        allocator_peak_bytes: None,
        offloaded_bytes: median.map_or(0, |record| record.offloaded_bytes),
        ops,
    }
}

/// Median absolute deviation, as a part of the median, up to which steps count as stable.
const STABLE: f64 = 0.05;

/// Times of steps, ns, as a sample; stable if their median absolute deviation is at most 5 % of the
/// median.
fn sample(times_ns: &[u64]) -> Sample {
    let mut sample = summarise(times_ns, false);
    sample.stable = sample.mad_ns as f64 <= STABLE * sample.median_ns as f64;
    sample
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn medians_are_those_of_the_op_whatever_order_threads_report_in() {
        let problem: Problem = serde_yaml::from_str(
            "{devices: 2, placement: [0, 1], microbatches: 1, split_backward: true,
              time_ns: {forward: [1, 1], backward_input: [1, 1], backward_weight: [1, 1], send_forward: [0],
                        send_backward: [0], offload: [1, 1], reload: [1, 1]},
              bytes: {activation: [1, 1], weight_context: [1, 1], offloadable: [1, 1], static: [0, 0], capacity: [9, 9]},
              offload_channel: [0, 1], reload_channel: [2, 3]}",
        )
        .unwrap();
        let op = |stage| Op { kind: OpKind::F, stage, microbatch: 0 };
        let record =
            |ops: [(Op, u64, u64); 2]| StepRecord { ops: ops.to_vec(), step_ns: 130, loss: 1.0, offloaded_bytes: 0 };
        let records = [
            record([(op(0), 0, 100), (op(1), 100, 130)]),
            record([(op(1), 100, 130), (op(0), 0, 100)]),
            record([(op(1), 100, 130), (op(0), 0, 100)]),
        ];
        let measured = collect("cpu".into(), &problem, &records, &[1, 1, 1], vec![1.0; 3], vec![0, 0]);
        let medians: Vec<(usize, u64)> = measured.ops.iter().map(|x| (x.stage, x.median_ns)).collect();
        assert_eq!(medians, [(0, 100), (1, 30)]);
        assert_eq!(measured.check(), Ok(()));
    }

    #[test]
    fn what_nobody_can_have_measured_is_refused_by_name() {
        let sample = Sample { median_ns: 10, mad_ns: 0, p05_ns: 10, p95_ns: 10, count: 1, stable: true };
        let op = MeasuredOp { device: 0, op: OpKind::F, stage: 0, microbatch: 0, start_ns: 1, end_ns: 9, median_ns: 8 };
        let good = Measured {
            version: 1,
            backend: "cpu".to_owned(),
            step: sample.clone(),
            optimizer: sample,
            steps_ns: vec![10],
            losses: vec![1.0],
            peak_bytes: vec![5],
            allocator_peak_bytes: None,
            offloaded_bytes: 0,
            ops: vec![op],
        };
        assert_eq!(good.check(), Ok(()));
        let refusal = |change: fn(&mut Measured)| {
            let mut measured = good.clone();
            change(&mut measured);
            measured.check().unwrap_err().field
        };
        assert_eq!(refusal(|x| x.version = 2), "version");
        assert_eq!(refusal(|x| x.step.median_ns = u64::MAX), "step.median_ns");
        assert_eq!(refusal(|x| x.optimizer.p95_ns = 0), "optimizer.p05_ns");
        assert_eq!(refusal(|x| x.steps_ns.push(u64::MAX)), "steps_ns[1]");
        assert_eq!(refusal(|x| x.peak_bytes[0] = u64::MAX), "peak_bytes");
        assert_eq!(refusal(|x| x.allocator_peak_bytes = Some(vec![u64::MAX])), "allocator_peak_bytes");
        assert_eq!(refusal(|x| x.offloaded_bytes = u64::MAX), "offloaded_bytes");
        assert_eq!(refusal(|x| x.ops[0].end_ns = 0), "ops[0].end_ns");
        assert_eq!(refusal(|x| x.ops[0].end_ns = u64::MAX), "ops[0].end_ns");
        assert_eq!(refusal(|x| x.ops[0].median_ns = u64::MAX), "ops[0].median_ns");
        assert_eq!(refusal(|x| x.ops = vec![MeasuredOp { median_ns: LONGEST_NS, ..x.ops[0] }; 600]), "ops");
    }
}
