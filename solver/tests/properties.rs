//! What holds for every problem, whatever it looks like.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use common::{Most, problems};
use optpipe_configs::file::Check;
use optpipe_solver::bound::lower_bound;
use optpipe_solver::check::check;
use optpipe_solver::method::Method;
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::OpKind;
use optpipe_solver::simulate::simulate;
use optpipe_solver::solve::{Solution, SolveOptions, StopReason, solve};
use optpipe_solver::textbook;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

const MOST: Most = Most { devices: 4, stages: 6, microbatches: 5, least_time: 0 };
const POSITIVE: Most = Most { least_time: 1, ..MOST };

fn solve_for(problem: &Problem, method: Method, iterations: u64) -> Solution {
    let options = SolveOptions {
        method,
        iterations: Some(iterations),
        time_limit: Duration::from_secs(600),
        ..SolveOptions::default()
    };
    solve(problem, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_method_makes_legal_schedules_no_shorter_than_the_bound(problem in problems(MOST)) {
        problem.check().map_err(|e| TestCaseError::fail(e.message))?;
        let bound = lower_bound(&problem);
        for method in Method::ALL.into_iter().filter(|&x| x != Method::Milp) {
            let solution = solve_for(&problem, method, 3_000);
            let report = check(&problem, &solution.schedule);
            prop_assert_eq!(&report.violations, &Vec::<String>::new(), "{}", method);
            prop_assert_eq!(report.makespan_ns, solution.makespan_ns);
            prop_assert!(report.makespan_ns >= bound, "{}: {} < {}", method, report.makespan_ns, bound);
            prop_assert!(solution.makespan_ns >= solution.bound_ns);
            prop_assert!(solution.bound_ns >= bound);
        }
    }

    #[test]
    fn the_simulator_agrees_with_the_checker(problem in problems(POSITIVE)) {
        let solution = solve_for(&problem, Method::Search, 1_000);
        let again = simulate(&problem, &Order::of(&problem, &solution.schedule)).unwrap();
        let report = check(&problem, &again.schedule);
        prop_assert_eq!(&report.violations, &Vec::<String>::new());
        prop_assert_eq!(report.peak_bytes, again.peak_bytes);
        prop_assert!(report.makespan_ns <= solution.makespan_ns);
    }

    #[test]
    fn the_order_of_a_legal_schedule_runs_no_later(problem in problems(MOST), iterations in 0..2_000_u64) {
        let schedule = solve_for(&problem, Method::Search, iterations).schedule;
        // What allocates and frees at one instant has no order.
        let time = |kind, stage, microbatch| {
            let mut found = schedule.ops.iter().flatten();
            let x = found.find(|x| (x.op, x.stage, x.microbatch) == (kind, stage, microbatch));
            x.map(|x| (x.start_ns, x.start_ns + problem.duration(kind, stage)))
        };
        for s in 0..problem.stages() {
            for j in 0..problem.microbatches {
                let [f, b, o, r] = [OpKind::F, OpKind::B, OpKind::O, OpKind::R].map(|kind| time(kind, s, j));
                let at_once = |x: Option<(i64, i64)>, y: Option<(i64, i64)>| {
                    matches!((x, y), (Some(x), Some(y)) if x.0 == y.1)
                };
                prop_assume!(!at_once(f, b) && !at_once(f, o) && !at_once(r, b));
            }
        }
        let again = simulate(&problem, &Order::of(&problem, &schedule));
        let again = again.map_err(|e| TestCaseError::fail(e.to_string()))?.schedule;
        let starts = |schedule: &optpipe_solver::schedule::Schedule| {
            let all = schedule.ops.iter().flatten();
            all.map(|x| ((x.op, x.stage, x.microbatch), x.start_ns)).collect::<std::collections::BTreeMap<_, _>>()
        };
        for ((op, then), now) in starts(&schedule).iter().zip(starts(&again).values()) {
            prop_assert!(now <= then, "{:?}: {} after {}", op, now, then);
        }
    }

    #[test]
    fn starts_count_from_the_earliest(problem in problems(POSITIVE), offset in -1_000..1_000_i64) {
        let schedule = solve_for(&problem, Method::AdaptiveOffload, 0).schedule;
        let mut later = schedule.clone();
        later.ops.iter_mut().flatten().for_each(|x| x.start_ns += offset);
        prop_assert_eq!(check(&problem, &later), check(&problem, &schedule));
        prop_assert_eq!(Order::of(&problem, &later), Order::of(&problem, &schedule));
    }

    #[test]
    fn textbook_schedules_break_no_rule_but_the_memory_limit(problem in problems(MOST)) {
        let mut roomy = problem.clone();
        roomy.bytes.capacity.iter_mut().for_each(|x| *x += 1_000);
        for method in Method::ALL.into_iter().filter(|x| x.is_textbook()) {
            if let Ok(schedule) = textbook::schedule(&problem, method) {
                prop_assert_eq!(check(&roomy, &schedule).violations, Vec::<String>::new(), "{}", method);
            }
        }
    }

    #[test]
    fn the_same_seed_and_iterations_give_the_same_schedule(problem in problems(MOST)) {
        let first = solve_for(&problem, Method::Auto, 2_000);
        let second = solve_for(&problem, Method::Auto, 2_000);
        prop_assert_eq!(first.schedule, second.schedule);
    }

    #[test]
    fn frozen_stages_cost_nothing_more(problem in problems(POSITIVE), which in any::<prop::sample::Index>()) {
        // The first stages are not trained: no gradient, nothing kept for one.
        let mut frozen = problem.clone();
        let first = which.index(problem.stages() + 1);
        for s in 0..first {
            frozen.time_ns.backward_input[s] = 0;
            frozen.time_ns.backward_weight[s] = 0;
            frozen.bytes.weight_context[s] = 0;
        }
        let whole = solve_for(&problem, Method::Search, 1_000);
        let order = Order::of(&problem, &whole.schedule);
        let in_that_order = simulate(&frozen, &order).unwrap();
        prop_assert!(in_that_order.schedule.makespan_ns <= whole.makespan_ns);
        let options = SolveOptions {
            method: Method::AdaptiveOffload,
            start: Some(in_that_order.schedule),
            iterations: Some(0),
            ..SolveOptions::default()
        };
        let solution = solve(&frozen, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap();
        prop_assert_eq!(check(&frozen, &solution.schedule).violations, Vec::<String>::new());
        prop_assert!(solution.bound_ns <= solution.makespan_ns && solution.makespan_ns <= whole.makespan_ns);
    }

    #[test]
    fn one_byte_less_than_one_microbatch_needs_is_refused(problem in problems(MOST), which in any::<prop::sample::Index>()) {
        let mut problem = problem;
        let device = which.index(problem.devices);
        // What is needed there: the capacity at which nothing is missing.
        problem.bytes.capacity[device] = 0;
        if let Err(needs) = problem.feasible() {
            problem.bytes.capacity[device] = needs.needed_bytes - 1;
            let options = SolveOptions::default();
            let refused = solve(&problem, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap_err();
            prop_assert_eq!((refused.device, refused.missing_bytes), (device, 1));
        }
    }
}

/// All orders in which some lists can be merged, each keeping its own order.
fn merges(lists: &[Vec<optpipe_solver::schedule::Op>]) -> Vec<Vec<optpipe_solver::schedule::Op>> {
    if lists.iter().all(Vec::is_empty) {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (i, list) in lists.iter().enumerate().filter(|x| !x.1.is_empty()) {
        let mut rest = lists.to_vec();
        let first = rest[i].remove(0);
        debug_assert_eq!(first, list[0]);
        all.extend(merges(&rest).into_iter().map(|mut x| {
            x.insert(0, first);
            x
        }));
    }
    all
}

/// The shortest makespan of all orders of two microbatches, at one or two stages, each on a device of its
/// own, no offloading.
fn brute_force(problem: &Problem) -> i64 {
    use optpipe_solver::schedule::Op;
    let list =
        |stage, microbatch| [OpKind::F, OpKind::B, OpKind::W].map(|kind| Op { kind, stage, microbatch }).to_vec();
    let orders: Vec<Vec<Vec<Op>>> = (0..problem.stages()).map(|s| merges(&[list(s, 0), list(s, 1)])).collect();
    let channels = textbook::order(problem, Method::Gpipe).unwrap().channels;
    let mut best = i64::MAX;
    for first in &orders[0] {
        for second in orders.get(1).unwrap_or(&vec![Vec::new()]) {
            let mut devices = vec![Vec::new(); problem.devices];
            devices[problem.placement[0]] = first.clone();
            if let Some(&d) = problem.placement.get(1) {
                devices[d] = second.clone();
            }
            let order = Order { devices, channels: channels.clone() };
            if let Ok(x) = simulate(problem, &order) {
                best = best.min(x.schedule.makespan_ns);
            }
        }
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn search_agrees_with_all_orders_on_tiny_problems(
        problem in problems(Most { devices: 2, stages: 2, microbatches: 2, least_time: 1 }),
    ) {
        let mut problem = problem;
        problem.devices = 2;
        problem.microbatches = 2;
        problem.placement = (0..problem.stages()).collect();
        let b = &mut problem.bytes;
        b.offloadable.iter_mut().for_each(|x| *x = 0);
        for list in [&mut b.r#static, &mut b.capacity] {
            list.resize(2, 0);
        }
        for list in [&mut problem.offload_channel, &mut problem.reload_channel] {
            list.resize(2, 0);
        }
        while let Err(e) = problem.feasible() {
            problem.bytes.capacity[e.device] += e.missing_bytes;
        }
        let optimum = brute_force(&problem);
        prop_assert!(lower_bound(&problem) <= optimum);
        prop_assert_eq!(solve_for(&problem, Method::Search, 30_000).makespan_ns, optimum);
    }
}

#[test]
fn a_cancelled_solve_returns_the_best_so_far_and_says_so() {
    let problem = problems(Most { devices: 4, stages: 6, microbatches: 5, least_time: 1 });
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let problem = problem.new_tree(&mut runner).unwrap().current();
    let solution = solve(&problem, &SolveOptions::default(), &mut |_| {}, &AtomicBool::new(true)).unwrap();
    assert!(check(&problem, &solution.schedule).is_legal());
    assert!(matches!(solution.stop, StopReason::Cancelled | StopReason::Optimal));
}

#[test]
fn a_schedule_that_is_given_is_never_lost() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let problem = problems(POSITIVE).new_tree(&mut runner).unwrap().current();
    let good = solve_for(&problem, Method::Search, 20_000).schedule;
    let options = SolveOptions {
        method: Method::AdaptiveOffload,
        start: Some(good.clone()),
        iterations: Some(0),
        ..SolveOptions::default()
    };
    let solution = solve(&problem, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap();
    assert!(solution.makespan_ns <= good.makespan_ns);
}
