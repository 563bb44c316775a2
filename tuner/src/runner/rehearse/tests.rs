//! A rehearsal against the run with all threads, and its timeline against the rules.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;

use optpipe_configs::model::Model;
use optpipe_solver::check::check;
use optpipe_solver::method::Method;
use optpipe_solver::schedule::{OpKind, Schedule};
use optpipe_solver::simulate::{simulate, simulate_unlimited};
use optpipe_solver::textbook;
use proptest::prelude::*;

use super::super::pipeline::Pipeline;
use super::super::program::Program;
use super::super::tests::fixture::{SHAPE, backend, problem, random_order, tiny, with_offloads};
use super::super::{RunError, RunPlan, run};
use super::*;
use crate::measured::Measured;

static NEVER: AtomicBool = AtomicBool::new(false);

fn plan<'a>(model: &'a Model, split: &'a [usize], problem: &'a Problem, schedule: &'a Schedule) -> RunPlan<'a> {
    let mut plan = RunPlan::new(model, split, problem, schedule, backend(problem.devices));
    (plan.microbatch_size, plan.sequence_length) = SHAPE;
    plan
}

/// The same schedule with all threads, and rehearsed on the one device that there is then.
fn both(model: &Model, split: &[usize], problem: &Problem, order: &Order) -> (Measured, Rehearsal) {
    let schedule = simulate(problem, order).unwrap().schedule;
    let mut plan = plan(model, split, problem, &schedule);
    let measured = run(&plan, &mut |_| (), &NEVER).unwrap();
    plan.backend = backend(1);
    let options = RehearseOptions { rounds: 2, tolerance: 1e-9 };
    let rehearsal = rehearse(&plan, &options, &mut |_| (), &NEVER).unwrap();
    assert_in_order(problem, &Order::of(problem, &schedule), &rehearsal);
    (measured, rehearsal)
}

/// Op set, peaks and copied bytes are those of the run with all threads.
fn assert_alike(model: &Model, split: &[usize], problem: &Problem, order: &Order) {
    let (measured, rehearsal) = both(model, split, problem, order);
    let names = |ops: &[MeasuredOp]| {
        let mut names: Vec<_> = ops.iter().map(|x| (x.device, x.op, x.stage, x.microbatch)).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(&rehearsal.ops), names(&measured.ops));
    assert_eq!(rehearsal.peak_bytes, measured.peak_bytes);
    assert_eq!(rehearsal.offloaded_bytes, measured.offloaded_bytes);
}

/// No op starts before what it waits for has ended (and come), and no queue does two things at once.
fn assert_in_order(problem: &Problem, order: &Order, rehearsal: &Rehearsal) {
    let program = Program::compile(problem, order).unwrap();
    let mut times = vec![None; program.numbers()];
    for x in &rehearsal.ops {
        let op = Op { kind: x.op, stage: x.stage, microbatch: x.microbatch };
        assert!(x.start_ns <= x.end_ns && x.end_ns <= rehearsal.step_ns, "{x:?}");
        assert!(times[program.number(op)].replace((x.start_ns, x.end_ns)).is_none(), "{op} twice");
    }
    for list in &program.workers {
        let mut free = 0;
        for &op in &list.ops {
            let (start, end) = times[program.number(op)].unwrap();
            assert!(start >= free, "{op} starts at {start}, its queue is free at {free}");
            free = end;
            for earlier in program.dependencies(program.number(op)) {
                let sender = program.op(earlier);
                let send = match sender.stage.cmp(&op.stage) {
                    std::cmp::Ordering::Less => problem.hop_forward(sender.stage),
                    std::cmp::Ordering::Greater => problem.hop_backward(op.stage),
                    std::cmp::Ordering::Equal => 0,
                };
                let there = times[earlier].unwrap().1 + send as u64;
                assert!(start >= there, "{op} starts at {start}, {sender} is there at {there}");
            }
        }
    }
    assert_eq!(rehearsal.ops.iter().map(|x| x.start_ns).min(), Some(0));
    assert_eq!(rehearsal.ops.iter().map(|x| x.end_ns).max(), Some(rehearsal.step_ns));
}

#[test]
fn ops_and_peaks_are_those_of_the_run() {
    for (method, split, placement, tied) in [
        (Method::OneFOneB, vec![1, 1], vec![0, 1], true),
        (Method::ZbH2, vec![2, 0], vec![0, 1], false),
        (Method::Interleaved, vec![1, 1, 1, 1], vec![0, 1, 0, 1], true),
        (Method::ZbV, vec![0, 1, 1, 1], vec![0, 1, 1, 0], true),
    ] {
        let model = tiny("llama-15m", split.iter().sum(), tied);
        let problem = problem(&model, &split, &placement, 4);
        let order = textbook::order(&problem, method).unwrap();
        assert_alike(&model, &split, &problem, &order);
    }
}

#[test]
fn with_a_fused_backward_too() {
    let model = tiny("llama-15m", 2, true);
    let mut problem = problem(&model, &[1, 1], &[0, 1], 3);
    problem.split_backward = false;
    let order = textbook::order(&problem, Method::OneFOneB).unwrap();
    assert_alike(&model, &[1, 1], &problem, &order);
}

/// With memory for one microbatch beside what stays of the others, there is one way for memory to go.
#[test]
fn offloads_on_the_least_memory_peak_as_in_the_run() {
    let model = tiny("llama-15m", 2, false);
    for shared in [false, true] {
        let mut problem = problem(&model, &[1, 1], &[0, 1], 4);
        if shared {
            (problem.offload_channel, problem.reload_channel) = (vec![0, 0], vec![0, 0]);
        }
        let b = &mut problem.bytes;
        for d in 0..2 {
            b.capacity[d] = b.r#static[d] + b.activation[d] + 3 * (b.activation[d] - b.offloadable[d]);
        }
        let order = textbook::order(&problem, Method::Gpipe).unwrap();
        let mut order = with_offloads(&problem, &order, |_| true, 0);
        // Where both devices share a link: out down the pipeline, back up.
        order.channels.iter_mut().for_each(|list| {
            list.sort_by_key(|op| (op.kind, op.microbatch, if op.kind == OpKind::O { op.stage } else { 1 - op.stage }));
        });
        let (measured, rehearsal) = both(&model, &[1, 1], &problem, &order);
        assert_eq!(rehearsal.peak_bytes, measured.peak_bytes);
        assert!(rehearsal.offloaded_bytes > 0 && rehearsal.offloaded_bytes == measured.offloaded_bytes);
        assert_eq!(rehearsal.ops.len(), 2 * 4 * 5);
    }
}

#[test]
fn ops_wait_for_what_comes_from_other_devices() {
    let model = tiny("llama-15m", 2, false);
    let mut problem = problem(&model, &[1, 1], &[0, 1], 2);
    (problem.offload_channel, problem.reload_channel) = (vec![0, 0], vec![1, 1]);
    let order = textbook::order(&problem, Method::Gpipe).unwrap();
    let mut order = with_offloads(&problem, &order, |_| true, 0);
    let of = |kind, stage, microbatch| Op { kind, stage, microbatch };
    // The other device's first copy goes before all of this one's.
    order.channels[0].sort_by_key(|op| (op.microbatch, op.stage));
    let schedule = simulate_unlimited(&problem, &order).unwrap().schedule;
    let plan = RunPlan { warmup_steps: 0, ..plan(&model, &[1, 1], &problem, &schedule) };
    let program = Program::compile(&problem, &order).unwrap();
    let mut pipeline = Pipeline::start_alone(&plan, &order, 1, &NEVER).unwrap();
    let boundary = Boundary::record(&plan, &NEVER).unwrap();
    pipeline.supply(boundary.supplies(&plan, 1).unwrap());
    let mut earliest = vec![0; program.numbers()];
    let waits = [(of(OpKind::F, 1, 0), 20), (of(OpKind::O, 0, 0), 60), (of(OpKind::F, 1, 1), 90)];
    for (op, ms) in waits {
        earliest[program.number(op)] = Duration::from_millis(ms).as_nanos() as u64;
    }
    let step = pipeline.execute(Some(earliest), &NEVER).unwrap();
    assert_eq!(step.times.len(), 2 * 5, "only its own ops");
    let start = |op| step.times.iter().find(|x| x.op == op).unwrap().start_ns - step.origin_ns;
    assert!(start(of(OpKind::F, 1, 0)) >= 20_000_000);
    assert!(start(of(OpKind::O, 1, 0)) >= 60_000_000, "the channel is occupied before");
    assert!(start(of(OpKind::F, 1, 1)) >= 90_000_000);
    assert!(start(of(OpKind::B, 1, 0)) >= start(of(OpKind::F, 1, 1)));
}

#[test]
fn what_is_learned_of_all_devices_is_the_timeline() {
    let model = tiny("llama-15m", 4, false);
    let problem = problem(&model, &[1, 1, 1, 1], &[0, 1, 1, 0], 3);
    let order = random_order(&problem, 5);
    let order = Order::of(&problem, &simulate_unlimited(&problem, &order).unwrap().schedule);
    let mut timeline = Timeline::predicted(&problem, &order).unwrap();
    let predicted = simulate(&problem, &order).unwrap().schedule;
    assert_eq!(timeline.step_ns(), predicted.makespan_ns as u64);
    let mut slower = problem.clone();
    let t = &mut slower.time_ns;
    for list in [&mut t.forward, &mut t.backward_input, &mut t.backward_weight, &mut t.offload, &mut t.reload] {
        list.iter_mut().enumerate().for_each(|(s, x)| *x = *x * 3 + s as i64);
    }
    for device in 0..2 {
        let own = predicted.ops[device].iter().map(|x| Op { kind: x.op, stage: x.stage, microbatch: x.microbatch });
        timeline.learn(own.map(|op| (op, slower.duration(op.kind, op.stage) as u64))).unwrap();
    }
    let expected = simulate(&slower, &order).unwrap().schedule;
    assert_eq!(timeline.step_ns(), expected.makespan_ns as u64);
    let ends = expected.ops.iter().flatten().map(|x| {
        let op = Op { kind: x.op, stage: x.stage, microbatch: x.microbatch };
        (op, (x.start_ns + slower.duration(x.op, x.stage)) as u64)
    });
    for (op, end) in ends {
        assert_eq!(timeline.end(op), end, "{op}");
    }
    // What stage 1 gets from stage 0, and nothing for the hop from stage 1 to stage 2 on its own device.
    let program = Program::compile(&problem, &order).unwrap();
    let arrivals = timeline.arrivals(1);
    let f = |stage| Op { kind: OpKind::F, stage, microbatch: 2 };
    assert_eq!(arrivals[program.number(f(1))], timeline.end(f(0)) + problem.time_ns.send_forward[0] as u64);
    assert_eq!(arrivals[program.number(f(2))], 0);
    assert_eq!(arrivals[program.number(f(3))], 0, "another device's");
}

#[test]
fn rounds_end_when_times_settle_or_when_there_are_enough() {
    let model = tiny("llama-15m", 2, true);
    let problem = problem(&model, &[1, 1], &[0, 1], 3);
    let schedule = textbook::schedule(&problem, Method::OneFOneB).unwrap();
    let plan = plan(&model, &[1, 1], &problem, &schedule);
    let go = |rounds, tolerance| {
        let mut told = Vec::new();
        let rehearsal =
            rehearse(&plan, &RehearseOptions { rounds, tolerance }, &mut |at| told.push(at), &NEVER).unwrap();
        (rehearsal, told)
    };
    // No end can move by more than the step is long, once the prediction is shorter.
    let (easy, told) = go(4, 1.0);
    assert!(easy.settled && easy.rounds.len() == 1 && !easy.interrupted, "{:?}", easy.rounds);
    assert_eq!(told.len(), 1 + 2 + 1);
    let (hard, told) = go(3, 0.0);
    assert_eq!(hard.rounds.len(), 3);
    assert!(!hard.settled, "times on a clock do not repeat to the nanosecond: {:?}", hard.rounds);
    assert_eq!(told.len(), 1 + 3 * (2 + 1));
    let (last, largest) = (hard.rounds[2].step_ns, hard.rounds[2].largest_change_ns);
    assert_eq!(told[9], RehearseProgress::Round { round: 3, step_ns: last, largest_change_ns: largest });
    assert!(matches!(
        rehearse(&plan, &RehearseOptions { rounds: 0, tolerance: 0.1 }, &mut |_| (), &NEVER),
        Err(RunError::Plan { field: "rounds", .. })
    ));
}

#[test]
fn an_interrupted_rehearsal_keeps_whole_rounds() {
    let model = tiny("llama-15m", 2, true);
    let problem = problem(&model, &[1, 1], &[0, 1], 3);
    let schedule = textbook::schedule(&problem, Method::OneFOneB).unwrap();
    let plan = plan(&model, &[1, 1], &problem, &schedule);
    let go = |when: fn(RehearseProgress) -> bool| {
        let cancel = AtomicBool::new(false);
        let mut stop = |at| cancel.store(when(at), Ordering::Relaxed);
        rehearse(&plan, &RehearseOptions { rounds: 9, tolerance: 0.0 }, &mut stop, &cancel)
    };
    assert!(matches!(go(|at| at == RehearseProgress::Recording), Err(RunError::Cancelled)));
    let first = go(|at| matches!(at, RehearseProgress::Device { round: 1, device: 1, .. }));
    assert!(matches!(first, Err(RunError::Cancelled)));
    let second = go(|at| matches!(at, RehearseProgress::Device { round: 2, device: 1, .. })).unwrap();
    assert!(second.interrupted && !second.settled);
    assert_eq!((second.rounds.len(), second.ops.len()), (1, 2 * 3 * 3));
    assert_in_order(&problem, &Order::of(&problem, &schedule), &second);
}

#[test]
fn the_memory_limit_is_each_devices_own() {
    let model = tiny("llama-15m", 2, true);
    let mut problem = problem(&model, &[1, 1], &[0, 1], 3);
    let peaks = simulate_unlimited(&problem, &textbook::order(&problem, Method::OneFOneB).unwrap()).unwrap().peak_bytes;
    problem.bytes.capacity.clone_from(&peaks);
    let schedule = textbook::schedule(&problem, Method::OneFOneB).unwrap();
    let go = |problem: &Problem, enforce_capacity| {
        let plan = RunPlan { enforce_capacity, ..plan(&model, &[1, 1], problem, &schedule) };
        let options = RehearseOptions { rounds: 1, ..RehearseOptions::default() };
        rehearse(&plan, &options, &mut |_| (), &NEVER)
    };
    let found = go(&problem, true).unwrap().peak_bytes;
    assert!(found.iter().zip(&peaks).all(|(&found, &peak)| found as i64 <= peak), "{found:?} {peaks:?}");
    // The problem says less than the tensors take.
    let mut wrong = problem.clone();
    wrong.bytes.activation[1] /= 2;
    wrong.bytes.weight_context[1] /= 4;
    wrong.bytes.offloadable[1] = 0;
    wrong.bytes.capacity[1] = check(&wrong, &schedule).peak_bytes[1];
    assert!(matches!(go(&wrong, true), Err(RunError::Memory { device: 1, .. })));
    assert!(go(&wrong, false).is_ok());
    // The schedule needs more than there is.
    problem.bytes.capacity[0] -= 1;
    assert!(matches!(go(&problem, true), Err(RunError::Schedule { .. })));
    let found = go(&problem, false).unwrap();
    assert_in_order(&problem, &Order::of(&problem, &schedule), &found);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever the order, the placement and the links: nothing gets stuck on exactly the memory that the
    /// schedule needs, and the timeline keeps every rule.
    #[test]
    fn any_order_rehearses(
        seed: u64,
        placement in proptest::collection::vec(0usize..3, 1..5),
        links in 0usize..3,
        microbatches in 1usize..4,
    ) {
        let stages = placement.len();
        let model = tiny("llama-15m", stages, seed.is_multiple_of(2));
        let split = vec![1; stages];
        let mut problem = problem(&model, &split, &placement, microbatches);
        let devices = problem.devices;
        match links {
            0 => {}
            1 => problem.reload_channel = (0..devices).collect(),
            _ => (problem.offload_channel, problem.reload_channel) = (vec![5; devices], vec![2; devices]),
        }
        let simulated = simulate_unlimited(&problem, &random_order(&problem, seed)).unwrap();
        problem.bytes.capacity.clone_from(&simulated.peak_bytes);
        let plan = RunPlan { steps: 1, ..plan(&model, &split, &problem, &simulated.schedule) };
        let options = RehearseOptions { rounds: 2, tolerance: 1e-9 };
        let rehearsal = rehearse(&plan, &options, &mut |_| (), &NEVER).unwrap();
        assert_in_order(&problem, &Order::of(&problem, &simulated.schedule), &rehearsal);
        let limits = &problem.bytes.capacity;
        prop_assert!(rehearsal.peak_bytes.iter().zip(limits).all(|(&peak, &limit)| peak as i64 <= limit));
    }
}
