#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_solver::check::check;
use optpipe_solver::method::Method;
use optpipe_solver::problem::{Problem, Sizes, Times};
use optpipe_solver::schedule::{OpKind, Schedule};
use optpipe_solver::solve::{SolveOptions, solve};
use optpipe_solver::textbook;
use proptest::prelude::*;

use super::*;
use crate::export::bars::{Bar, Bars};

#[path = "../../../solver/tests/common/mod.rs"]
mod common;

fn solved(problem: &Problem) -> Schedule {
    let options = SolveOptions {
        method: Method::AdaptiveOffload,
        time_limit: Duration::from_millis(50),
        ..SolveOptions::default()
    };
    solve(problem, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap().schedule
}

/// The schedule with pauses: every instant moves away from the start, by whole steps, as often as `cuts` say.
fn stretched(mut schedule: Schedule, cuts: &[i64], problem: &Problem) -> Schedule {
    for &cut in cuts {
        let at = cut.rem_euclid(schedule.makespan_ns.max(1));
        // Ops that run at the cut stay whole: only what starts after it moves.
        for op in schedule.ops.iter_mut().flatten().filter(|op| op.start_ns >= at) {
            op.start_ns += 2;
        }
    }
    schedule.makespan_ns = makespan(&schedule, problem);
    schedule
}

fn makespan(schedule: &Schedule, problem: &Problem) -> i64 {
    let ops = || schedule.ops.iter().flatten();
    let first = ops().map(|x| x.start_ns).min().unwrap_or(0);
    ops().map(|x| x.start_ns + problem.duration(x.op, x.stage)).max().unwrap_or(0) - first
}

/// The schedule with one op elsewhere.
fn moved(schedule: &Schedule, problem: &Problem, device: usize, bar: &Bar, start_ns: i64) -> Schedule {
    let mut moved = schedule.clone();
    let list = &mut moved.ops[device];
    let same = |x: &&mut optpipe_solver::schedule::ScheduledOp| {
        (x.op, x.stage, x.microbatch) == (bar.kind, bar.stage, bar.microbatch)
    };
    list.iter_mut().find(same).unwrap().start_ns = start_ns;
    list.sort_by_key(|x| x.start_ns);
    moved.makespan_ns = makespan(&moved, problem);
    moved
}

/// All idle time of a device, from the instants in which it computes.
fn covered(bars: &Bars, device: usize) -> i64 {
    (0..bars.makespan)
        .filter(|t| bars.devices[device].iter().any(|x| x.kind.is_compute() && x.start <= *t && *t < x.end))
        .count() as i64
}

fn most() -> common::Most {
    common::Most { devices: 3, stages: 4, microbatches: 4, least_time: 1 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The parts of the idle time are all of it, and the counted instants say the same.
    #[test]
    fn idle_time_is_the_sum_of_its_causes(problem in common::problems(most()), cuts in prop::collection::vec(0..40_i64, 0..4)) {
        let schedule = stretched(solved(&problem), &cuts, &problem);
        let bars = Bars::predicted(&problem, &schedule).unwrap();
        let found = waits(&problem, &bars);
        for (device, idle) in idle(&problem, &bars, &found).iter().enumerate() {
            prop_assert_eq!(idle.total_ns(), bars.makespan - bars.busy(device));
            prop_assert_eq!(idle.total_ns(), bars.makespan - covered(&bars, device));
            prop_assert!(idle.parts().iter().all(|&(_, ns)| ns >= 0), "{:?}", idle);
        }
    }

    /// The strict checker agrees: an op may start when it was ready, and not one instant before.
    #[test]
    fn an_op_is_ready_when_the_checker_says_so(problem in common::problems(most()), cuts in prop::collection::vec(0..40_i64, 0..3)) {
        let mut problem = problem;
        // A fused W moves with its B alone; copies of no length may jump over others.
        problem.split_backward = true;
        for time in problem.time_ns.offload.iter_mut().chain(&mut problem.time_ns.reload) {
            *time += 1;
        }
        let schedule = stretched(solved(&problem), &cuts, &problem);
        prop_assume!(check(&problem, &schedule).is_legal());
        let bars = Bars::predicted(&problem, &schedule).unwrap();
        let found = waits(&problem, &bars);
        let origin = schedule.ops.iter().flatten().map(|x| x.start_ns).min().unwrap();
        for (device, ops) in bars.devices.iter().enumerate() {
            for (bar, wait) in ops.iter().zip(&found.devices[device]) {
                prop_assert!(wait.ready_ns <= bar.start);
                let at = |ns: i64| check(&problem, &moved(&schedule, &problem, device, bar, origin + ns));
                let ready = at(wait.ready_ns);
                prop_assert!(ready.is_legal(), "{} {:?}: {:?}", bar.name(), wait, ready.violations);
                prop_assert_eq!(wait.cause == Cause::Nothing, wait.on.is_none());
                if wait.ready_ns > 0 {
                    prop_assert!(!at(wait.ready_ns - 1).is_legal(), "{} {:?} could start earlier", bar.name(), wait);
                }
            }
        }
    }

    /// The critical path goes from the beginning to the end without a pause that nobody asked for.
    #[test]
    fn the_critical_path_is_as_long_as_the_step(problem in common::problems(most())) {
        let schedule = solved(&problem);
        let bars = Bars::predicted(&problem, &schedule).unwrap();
        let found = waits(&problem, &bars);
        let path = found.critical_path(&bars);
        let bar = |at: &OpPlace| bars.devices[at.device][at.index];
        prop_assert_eq!(bar(path.last().unwrap()).end, bars.makespan);
        for pair in path.windows(2) {
            prop_assert_eq!(found.at(pair[1]).on, Some(pair[0]));
            prop_assert!(bar(&pair[0]).end <= bar(&pair[1]).start);
        }
    }
}

/// Two devices, no time on the way.
fn two_devices(microbatches: usize, capacity: i64) -> Problem {
    Problem {
        devices: 2,
        placement: vec![0, 1],
        microbatches,
        split_backward: true,
        time_ns: Times {
            forward: vec![10, 10],
            backward_input: vec![10, 10],
            backward_weight: vec![10, 10],
            send_forward: vec![0],
            send_backward: vec![0],
            offload: vec![5, 5],
            reload: vec![25, 25],
        },
        bytes: Sizes {
            activation: vec![4, 4],
            weight_context: vec![2, 2],
            offloadable: vec![4, 4],
            r#static: vec![0, 0],
            capacity: vec![capacity, capacity],
        },
        offload_channel: vec![0, 0],
        reload_channel: vec![0, 0],
    }
}

#[test]
fn each_cause_is_told_from_the_others() {
    // 1F1B of two microbatches: device 0 waits for the gradient of device 1.
    let problem = two_devices(2, 100);
    let schedule = textbook::schedule(&problem, Method::OneFOneB).unwrap();
    let bars = Bars::predicted(&problem, &schedule).unwrap();
    let idle_of = |bars: &Bars, problem: &Problem| idle(problem, bars, &waits(problem, bars));
    let found = idle_of(&bars, &problem);
    assert_eq!((found[0].warm_up_ns, found[1].warm_up_ns), (0, 10));
    assert!(found[0].neighbour_ns > 0, "{found:?}");
    assert_eq!((found[0].memory_ns, found[0].reload_ns, found[0].unforced_ns), (0, 0, 0));

    // One device, room for one activation, offloaded in between: F 1 waits for the offload of 0 to free memory,
    // B 0 for W 1 to make room for its reload and then for the reload.
    let mut one = two_devices(2, 4);
    one.devices = 1;
    one.placement = vec![0];
    let t = &mut one.time_ns;
    for times in [&mut t.forward, &mut t.backward_input, &mut t.backward_weight, &mut t.offload, &mut t.reload] {
        times.truncate(1);
    }
    (t.send_forward, t.send_backward) = (vec![], vec![]);
    let b = &mut one.bytes;
    for sizes in [&mut b.activation, &mut b.weight_context, &mut b.offloadable, &mut b.r#static, &mut b.capacity] {
        sizes.truncate(1);
    }
    (one.offload_channel, one.reload_channel) = (vec![0], vec![0]);
    let op = |op, microbatch, start_ns| optpipe_solver::schedule::ScheduledOp { op, stage: 0, microbatch, start_ns };
    let schedule = Schedule {
        makespan_ns: 93,
        ops: vec![vec![
            op(OpKind::F, 0, 0),
            op(OpKind::O, 0, 10),
            op(OpKind::F, 1, 15),
            op(OpKind::B, 1, 25),
            op(OpKind::W, 1, 38),
            op(OpKind::R, 0, 48),
            op(OpKind::B, 0, 73),
            op(OpKind::W, 0, 83),
        ]],
    };
    assert_eq!(check(&one, &schedule).violations, Vec::<String>::new());
    let bars = Bars::predicted(&one, &schedule).unwrap();
    let found = idle_of(&bars, &one);
    let expected = Idle { memory_ns: 5, reload_ns: 25, unforced_ns: 3, ..Idle::default() };
    assert_eq!(found, [expected]);
    let loads = channel_loads(&one, &bars);
    assert_eq!((loads.len(), loads[0].copies, loads[0].bytes, loads[0].busy_ns), (1, 2, 8, 30));
}

#[test]
fn a_device_without_a_stage_warms_up_all_the_time() {
    let mut problem = two_devices(1, 100);
    problem.devices = 3;
    problem.bytes.r#static.push(0);
    problem.bytes.capacity.push(1);
    problem.offload_channel.push(0);
    problem.reload_channel.push(0);
    let bars = Bars::predicted(&problem, &solved(&problem)).unwrap();
    let found = idle(&problem, &bars, &waits(&problem, &bars));
    assert_eq!(found[2], Idle { warm_up_ns: bars.makespan, ..Idle::default() });
}
