#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use optpipe_configs::profile::Sample;
use optpipe_solver::order::Order;
use optpipe_solver::problem::{Problem, Sizes, Times};
use optpipe_solver::schedule::{Op, OpKind, Schedule, ScheduledOp};
use optpipe_solver::simulate::simulate_unlimited;
use proptest::prelude::*;

use super::ExportError;
use super::bars::Bars;
use crate::measured::{Measured, MeasuredOp};

mod timeline;
mod trace;
mod units;

/// The example of the file format's description: two devices, three microbatches.
fn example() -> Problem {
    Problem {
        devices: 2,
        placement: vec![0, 1],
        microbatches: 3,
        split_backward: true,
        time_ns: Times {
            forward: vec![100; 2],
            backward_input: vec![100; 2],
            backward_weight: vec![100; 2],
            send_forward: vec![10],
            send_backward: vec![10],
            offload: vec![150; 2],
            reload: vec![150; 2],
        },
        bytes: Sizes {
            activation: vec![8; 2],
            weight_context: vec![4; 2],
            offloadable: vec![8; 2],
            r#static: vec![0; 2],
            capacity: vec![24; 2],
        },
        offload_channel: vec![0, 1],
        reload_channel: vec![2, 3],
    }
}

/// A problem of equal stages.
fn uniform(placement: Vec<usize>, microbatches: usize) -> Problem {
    let stages = placement.len();
    let devices = placement.iter().max().unwrap() + 1;
    Problem {
        devices,
        microbatches,
        split_backward: true,
        time_ns: Times {
            forward: vec![12_345_678; stages],
            backward_input: vec![13_456_789; stages],
            backward_weight: vec![9_876_543; stages],
            send_forward: vec![1_234_567; stages - 1],
            send_backward: vec![1_234_567; stages - 1],
            offload: vec![15_432_109; stages],
            reload: vec![14_321_098; stages],
        },
        bytes: Sizes {
            activation: vec![314_159_265; stages],
            weight_context: vec![100_000_000; stages],
            offloadable: vec![271_828_182; stages],
            r#static: vec![3 << 30; devices],
            capacity: vec![8 << 30; devices],
        },
        offload_channel: (0..devices).collect(),
        reload_channel: (devices..2 * devices).collect(),
        placement,
    }
}

/// A schedule in which, by `seed`, any op that can go next goes next, and every second activation or
/// so is offloaded if `copies`. Legal but for the memory limit.
fn any_schedule(problem: &Problem, seed: u64, copies: bool) -> Schedule {
    use OpKind::{B, F, O, R, W};
    let (stages, microbatches) = (problem.stages(), problem.microbatches);
    let mut state = seed;
    let mut random = move |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut names: Vec<usize> = problem.offload_channel.iter().chain(&problem.reload_channel).copied().collect();
    names.sort_unstable();
    names.dedup();
    let mut order = Order { devices: vec![Vec::new(); problem.devices], channels: vec![Vec::new(); names.len()] };
    let channel = |name: usize| names.iter().position(|&n| n == name).unwrap();
    let mut ready: Vec<Op> = (0..microbatches).map(|j| Op { kind: F, stage: 0, microbatch: j }).collect();
    while !ready.is_empty() {
        let op = ready.swap_remove(random(ready.len()));
        let at = |kind, stage| Op { kind, stage, ..op };
        let device = problem.placement[op.stage];
        order.devices[device].push(op);
        match op.kind {
            F if op.stage + 1 < stages => ready.push(at(F, op.stage + 1)),
            F => ready.push(at(B, op.stage)),
            B if !problem.split_backward => {
                order.devices[device].push(at(W, op.stage));
                ready.extend((op.stage > 0).then(|| at(B, op.stage - 1)));
            }
            B => {
                ready.push(at(W, op.stage));
                ready.extend((op.stage > 0).then(|| at(B, op.stage - 1)));
            }
            _ => {}
        }
        if op.kind == F && copies && random(2) == 0 {
            order.channels[channel(problem.offload_channel[device])].push(at(O, op.stage));
            order.channels[channel(problem.reload_channel[device])].push(at(R, op.stage));
            order.devices[device].push(at(R, op.stage));
        }
    }
    simulate_unlimited(problem, &order).unwrap().schedule
}

/// A measurement in which every op starts and ends a little off the schedule, so that ops may overlap.
fn near(problem: &Problem, schedule: &Schedule) -> Measured {
    let mut ops = Vec::new();
    for (device, list) in schedule.ops.iter().enumerate() {
        for (i, op) in list.iter().enumerate() {
            let start_ns = op.start_ns as u64 * 21 / 20 + (i as u64 * 7) % 5;
            let median_ns = problem.duration(op.op, op.stage) as u64 * 21 / 20 + (i as u64 * 11) % 7;
            let (op, stage, microbatch) = (op.op, op.stage, op.microbatch);
            ops.push(MeasuredOp { device, op, stage, microbatch, start_ns, end_ns: start_ns + median_ns, median_ns });
        }
    }
    let step_ns = ops.iter().map(|op| op.end_ns).max().unwrap_or(0);
    let sample = Sample { median_ns: step_ns, mad_ns: 3, p05_ns: step_ns, p95_ns: step_ns, count: 5, stable: true };
    Measured {
        version: 1,
        backend: "cpu".to_owned(),
        step: sample.clone(),
        optimizer: sample,
        steps_ns: vec![step_ns; 5],
        losses: vec![1.0; 5],
        peak_bytes: problem.bytes.capacity.iter().map(|&c| c as u64 + 1).collect(),
        allocator_peak_bytes: None,
        offloaded_bytes: 0,
        ops,
    }
}

/// Any small problem, with lengths and sizes of 0, devices without stages, and shared channels.
fn any_problem() -> impl Strategy<Value = Problem> {
    (1_usize..4, 1_usize..5, 1_usize..5, any::<bool>()).prop_flat_map(
        |(devices, stages, microbatches, split_backward)| {
            let times = || prop::collection::vec(prop_oneof![Just(0_i64), 1_i64..3000], stages);
            let sends = || prop::collection::vec(0_i64..100, stages - 1);
            let shares = prop::collection::vec((0_i64..5000, 0.0..=1.0, 0.0..=1.0), stages);
            let channels = || prop::collection::vec(0_usize..4, devices);
            (
                prop::collection::vec(0..devices, stages),
                [times(), times(), times(), times(), times()],
                [sends(), sends()],
                shares,
                prop::collection::vec((0_i64..3000, 0_i64..20_000), devices),
                [channels(), channels()],
            )
                .prop_map(move |(placement, times, sends, shares, memories, channels)| {
                    let [forward, backward_input, backward_weight, offload, reload] = times;
                    let [send_forward, send_backward] = sends;
                    let [offload_channel, reload_channel] = channels;
                    let part = |whole: i64, share: f64| (whole as f64 * share) as i64;
                    Problem {
                        devices,
                        placement,
                        microbatches,
                        split_backward,
                        time_ns: Times {
                            forward,
                            backward_input,
                            backward_weight,
                            send_forward,
                            send_backward,
                            offload,
                            reload,
                        },
                        bytes: Sizes {
                            activation: shares.iter().map(|x| x.0).collect(),
                            weight_context: shares.iter().map(|x| part(x.0, x.1)).collect(),
                            offloadable: shares.iter().map(|x| part(x.0, x.2)).collect(),
                            r#static: memories.iter().map(|x| x.0).collect(),
                            capacity: memories.iter().map(|x| x.1).collect(),
                        },
                        offload_channel,
                        reload_channel,
                    }
                })
        },
    )
}

/// Every op of a schedule, with start (from the earliest) and duration.
fn ops_of(problem: &Problem, schedule: &Schedule) -> BTreeMap<(char, usize, usize), (i64, i64)> {
    let origin = schedule.ops.iter().flatten().map(|op| op.start_ns).min().unwrap_or(0);
    (schedule.ops.iter().flatten())
        .map(|op| {
            let times = (op.start_ns - origin, problem.duration(op.op, op.stage));
            ((op.op.letter(), op.stage, op.microbatch), times)
        })
        .collect()
}

#[test]
fn a_schedule_of_another_problem_is_refused() {
    let problem = example();
    let good = any_schedule(&problem, 1, true);
    let mut fewer = good.clone();
    fewer.ops.pop();
    let refused = Bars::predicted(&problem, &fewer).unwrap_err();
    assert_eq!(refused, ExportError::Devices { what: "schedule", expected: 2, found: 1 });
    assert_eq!(refused.to_string(), "the schedule has 1 devices, the problem 2");
    for (stage, microbatch) in [(2, 0), (1, 0), (0, 3)] {
        let mut other = good.clone();
        other.ops[0].push(ScheduledOp { op: OpKind::W, stage, microbatch, start_ns: 0 });
        let refused = Bars::predicted(&problem, &other).unwrap_err();
        assert!(matches!(refused, ExportError::NoSuchOp { device: 0, .. }), "{refused}");
    }
    let mut late = good;
    late.ops[0][0].start_ns = i64::MAX;
    assert!(matches!(Bars::predicted(&problem, &late), Err(ExportError::Times { .. })));
}

#[test]
fn a_measurement_that_cannot_be_is_refused() {
    let problem = example();
    let good = near(&problem, &any_schedule(&problem, 1, true));
    let mut backwards = good.clone();
    (backwards.ops[2].start_ns, backwards.ops[2].end_ns) = (7, 6);
    assert!(matches!(Bars::measured(&problem, &backwards), Err(ExportError::Times { what: "measurement", .. })));
    let mut huge = good.clone();
    huge.ops[2].start_ns = u64::MAX;
    assert!(matches!(Bars::measured(&problem, &huge), Err(ExportError::Times { .. })));
    let mut fewer = good.clone();
    fewer.peak_bytes.pop();
    assert!(matches!(Bars::measured(&problem, &fewer), Err(ExportError::Devices { .. })));
    let mut elsewhere = good;
    elsewhere.ops[2].device = 5;
    assert!(matches!(Bars::measured(&problem, &elsewhere), Err(ExportError::NoSuchOp { .. })));
}
