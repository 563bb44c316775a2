//! Predicted against measured.

use std::collections::BTreeMap;

use optpipe_configs::file::Check;
use optpipe_profiler::timing::summarise;
use optpipe_solver::check::check;
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{OpKind, Schedule};
use optpipe_solver::simulate::{simulate, simulate_unlimited};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Measured, MeasuredOp};

/// Ops that [`Comparison::worst`] lists.
const WORST: usize = 10;

/// A schedule as predicted and as it ran. A ratio is measured over predicted, `None` where 0 was
/// predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// The schedule's makespan, ns.
    pub predicted_step_ns: u64,
    /// The median measured step, ns.
    pub measured_step_ns: u64,
    /// Ratio of the two.
    pub step_ratio: Option<f64>,
    /// The makespan of the same order with every op's measured median in place of its predicted time, ns: what
    /// the error of single times explains. The rest, up to the measured step, is waiting that the problem does
    /// not know. Absent where the order's simulation fails.
    pub replayed_step_ns: Option<u64>,
    /// Mean over the kinds below of |measured - predicted| / predicted, weighted by predicted time; compute
    /// only.
    pub compute_error: f64,
    /// Each kind of op of each stage.
    pub kinds: Vec<KindComparison>,
    /// The ops whose times are furthest off, in ns.
    pub worst: Vec<OpComparison>,
    /// Each device.
    pub devices: Vec<DeviceComparison>,
}

/// All ops of one kind at one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KindComparison {
    /// What they do.
    pub op: OpKind,
    /// Their stage.
    pub stage: usize,
    /// How many ran in a step.
    pub count: usize,
    /// Predicted time of one, ns.
    pub predicted_ns: u64,
    /// Median of their medians, ns.
    pub measured_ns: u64,
    /// Fastest and slowest of their medians, ns.
    pub range_ns: [u64; 2],
    /// Ratio.
    pub ratio: Option<f64>,
}

/// One op.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpComparison {
    /// What it does.
    pub op: OpKind,
    /// Its stage.
    pub stage: usize,
    /// Its microbatch.
    pub microbatch: usize,
    /// Predicted time, ns.
    pub predicted_ns: u64,
    /// Median measured time, ns.
    pub measured_ns: u64,
    /// Ratio.
    pub ratio: Option<f64>,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceComparison {
    /// Most bytes held at once by the schedule, static ones included.
    pub predicted_peak_bytes: u64,
    /// Most bytes held at once in the run.
    pub measured_peak_bytes: u64,
    /// The limit, bytes.
    pub capacity_bytes: u64,
    /// Predicted time computing in a step, ns.
    pub predicted_busy_ns: u64,
    /// Measured time computing in the median step, ns.
    pub measured_busy_ns: u64,
}

/// Holds what was measured against what was predicted.
pub fn compare(problem: &Problem, schedule: &Schedule, measured: &Measured) -> Comparison {
    compare_ops(problem, schedule, &measured.ops, measured.step.median_ns, &measured.peak_bytes)
}

/// Holds a step's ops, its length and each device's peak against what was predicted.
pub fn compare_ops(
    problem: &Problem,
    schedule: &Schedule,
    ops: &[MeasuredOp],
    measured_step_ns: u64,
    peak_bytes: &[u64],
) -> Comparison {
    let mut by_kind: BTreeMap<(usize, OpKind), Vec<u64>> = BTreeMap::new();
    let mut worst = Vec::with_capacity(ops.len());
    let mut busy = vec![[0u64; 2]; problem.devices];
    for x in ops.iter().filter(|x| x.stage < problem.stages() && x.device < problem.devices) {
        let predicted_ns = unsigned(problem.duration(x.op, x.stage));
        by_kind.entry((x.stage, x.op)).or_default().push(x.median_ns);
        worst.push(OpComparison {
            op: x.op,
            stage: x.stage,
            microbatch: x.microbatch,
            predicted_ns,
            measured_ns: x.median_ns,
            ratio: ratio(x.median_ns, predicted_ns),
        });
        if x.op.is_compute() {
            busy[x.device][0] += predicted_ns;
            busy[x.device][1] += x.end_ns - x.start_ns;
        }
    }
    worst.sort_by_key(|x| std::cmp::Reverse(x.measured_ns.abs_diff(x.predicted_ns)));
    worst.truncate(WORST);
    let kinds: Vec<KindComparison> = by_kind
        .into_iter()
        .map(|((stage, op), times)| {
            let predicted_ns = unsigned(problem.duration(op, stage));
            let measured_ns = summarise(&times, false).median_ns;
            let ends = [times.iter().min(), times.iter().max()];
            let range_ns = ends.map(|end| end.copied().unwrap_or(0));
            let ratio = ratio(measured_ns, predicted_ns);
            KindComparison { op, stage, count: times.len(), predicted_ns, measured_ns, range_ns, ratio }
        })
        .collect();
    let compute = || kinds.iter().filter(|x| x.op.is_compute());
    let weight: u64 = compute().map(|x| x.count as u64 * x.predicted_ns).sum();
    let off: u64 = compute().map(|x| x.count as u64 * x.measured_ns.abs_diff(x.predicted_ns)).sum();
    let order = Order::of(problem, schedule);
    let predicted_peaks = check(problem, schedule).peak_bytes;
    let devices = (0..problem.devices)
        .map(|d| DeviceComparison {
            predicted_peak_bytes: predicted_peaks.get(d).copied().map_or(0, unsigned),
            measured_peak_bytes: peak_bytes.get(d).copied().unwrap_or(0),
            capacity_bytes: unsigned(problem.bytes.capacity[d]),
            predicted_busy_ns: busy[d][0],
            measured_busy_ns: busy[d][1],
        })
        .collect();
    let predicted_step_ns = unsigned(schedule.makespan_ns);
    Comparison {
        predicted_step_ns,
        measured_step_ns,
        step_ratio: ratio(measured_step_ns, predicted_step_ns),
        replayed_step_ns: replay(problem, &order, &kinds),
        compute_error: off as f64 / weight.max(1) as f64,
        kinds,
        worst,
        devices,
    }
}

/// The order's makespan with the measured times.
fn replay(problem: &Problem, order: &Order, kinds: &[KindComparison]) -> Option<u64> {
    let mut measured = problem.clone();
    let t = &mut measured.time_ns;
    for x in kinds {
        let list = match x.op {
            OpKind::F => &mut t.forward,
            OpKind::B => &mut t.backward_input,
            OpKind::W => &mut t.backward_weight,
            OpKind::O => &mut t.offload,
            OpKind::R => &mut t.reload,
        };
        list[x.stage] = i64::try_from(x.measured_ns).ok()?;
    }
    measured.check().ok()?;
    // A textbook order may exceed the limit; it was run without one then.
    let simulated = simulate(&measured, order).or_else(|_| simulate_unlimited(&measured, order));
    simulated.ok().map(|x| unsigned(x.schedule.makespan_ns))
}

fn unsigned(x: i64) -> u64 {
    u64::try_from(x).unwrap_or(0)
}

fn ratio(measured: u64, predicted: u64) -> Option<f64> {
    (predicted > 0).then(|| measured as f64 / predicted as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use optpipe_solver::method::Method;
    use optpipe_solver::problem::{Sizes, Times};
    use optpipe_solver::schedule::Op;
    use optpipe_solver::textbook;

    use super::*;
    use crate::measured::collect;
    use crate::runner::StepRecord;

    fn problem() -> Problem {
        Problem {
            devices: 2,
            placement: vec![0, 1],
            microbatches: 3,
            split_backward: true,
            time_ns: Times {
                forward: vec![100, 200],
                backward_input: vec![120, 90],
                backward_weight: vec![70, 0],
                send_forward: vec![10],
                send_backward: vec![10],
                offload: vec![50, 50],
                reload: vec![50, 50],
            },
            bytes: Sizes {
                activation: vec![8, 8],
                weight_context: vec![4, 4],
                offloadable: vec![8, 8],
                r#static: vec![1, 2],
                capacity: vec![24, 24],
            },
            offload_channel: vec![0, 1],
            reload_channel: vec![2, 3],
        }
    }

    /// The schedule as if it had run with every time multiplied.
    fn ran(problem: &Problem, schedule: &Schedule, factor: u64) -> Measured {
        let ops = schedule.ops.iter().flatten().map(|x| {
            let (start, length) = (x.start_ns as u64 * factor, problem.duration(x.op, x.stage) as u64 * factor);
            (Op { kind: x.op, stage: x.stage, microbatch: x.microbatch }, start, start + length)
        });
        let step_ns = schedule.makespan_ns as u64 * factor;
        let record = StepRecord { ops: ops.collect(), step_ns, loss: 1.0, offloaded_bytes: 0 };
        let peaks = check(problem, schedule).peak_bytes.into_iter().map(unsigned).collect();
        collect("cpu".to_owned(), problem, &[record.clone(), record], &[7, 7], vec![1.0; 2], peaks)
    }

    #[test]
    fn a_run_as_predicted_is_told_from_one_twice_as_slow() {
        let problem = problem();
        let schedule = textbook::schedule(&problem, Method::OneFOneB).unwrap();
        let same = compare(&problem, &schedule, &ran(&problem, &schedule, 1));
        assert_eq!((same.step_ratio, same.compute_error), (Some(1.0), 0.0));
        assert_eq!(same.replayed_step_ns, Some(same.predicted_step_ns));
        assert!(same.kinds.iter().all(|x| x.count == 3 && x.measured_ns == x.predicted_ns));
        for device in &same.devices {
            assert_eq!(device.predicted_peak_bytes, device.measured_peak_bytes);
            assert_eq!(device.predicted_busy_ns, device.measured_busy_ns);
        }

        let slow = compare(&problem, &schedule, &ran(&problem, &schedule, 2));
        assert_eq!((slow.step_ratio, slow.compute_error), (Some(2.0), 1.0));
        // The W of stage 1 takes no time: there is no ratio to 0.
        let nothing = |x: &OpKind, stage| *x == OpKind::W && stage == 1;
        assert!(slow.kinds.iter().all(|x| x.ratio == if nothing(&x.op, x.stage) { None } else { Some(2.0) }));
        assert_eq!(slow.worst[0].predicted_ns, 200);
        // Sends are still predicted, so that the replay falls short of the step by what they took longer.
        assert!(slow.replayed_step_ns.unwrap() < slow.measured_step_ns);
        assert!(slow.replayed_step_ns.unwrap() > slow.predicted_step_ns);
    }
}
