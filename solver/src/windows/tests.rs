use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::model::Goal;
use super::network::Network;
use super::reference::Reference;
use super::window::Window;
use super::{Solver, WindowOptions, WindowStats, improve};
use crate::adaptive::Constructor;
use crate::check::check;
use crate::common::{Most, problems};
use crate::graph::Graph;
use crate::incumbent::Incumbent;
use crate::milp::tests::{brute_force, overtaking, serial, tiny};
use crate::order::Order;
use crate::plan::{Evaluator, Plan};
use crate::problem::Problem;

const MOST: Most = Most { devices: 3, stages: 5, microbatches: 4, least_time: 0 };

fn options(windows: u64) -> WindowOptions {
    WindowOptions { deadline: Instant::now() + Duration::from_secs(300), seed: 7, windows: Some(windows) }
}

/// The plan that runs one microbatch after another.
fn start(graph: &Graph<'_>) -> Incumbent {
    let incumbent = Incumbent::new(0);
    let (plan, makespan_ns) = Constructor::new(graph).construct_serial().unwrap();
    assert!(incumbent.offer(&plan, makespan_ns));
    incumbent
}

/// The makespan that the whole problem as one window leads to.
fn whole(problem: &Problem) -> i64 {
    let graph = Graph::new(problem);
    let mut evaluator = Evaluator::new(&graph);
    let incumbent = Incumbent::new(0);
    let mut plan = Plan::from_order(&graph, &Order::of(problem, &serial(problem))).unwrap();
    loop {
        let reference = Reference::new(&graph, &plan, &mut evaluator).unwrap();
        let mut window = Window::empty(&reference, i64::MAX, -1);
        for op in 0..graph.none() {
            window.add(&reference, op);
            window.toggle(&reference, graph.pair(op));
        }
        let (options, mut stats) = (options(1), WindowStats::default());
        let mut solver = Solver { reference: &reference, options: &options, incumbent: &incumbent, stats: &mut stats };
        let (horizon, goal) = solver.target(false);
        assert_eq!(goal, Goal::Makespan);
        let found = Network::new(&reference, &window, horizon, false).ok();
        let Some(better) = found.and_then(|network| solver.solve(&window, &network, goal)) else {
            return reference.makespan_ns;
        };
        let makespan_ns = evaluator.run(&graph, &better, true).unwrap();
        assert!(makespan_ns < reference.makespan_ns, "{makespan_ns}");
        plan = better;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_window_over_everything_finds_the_optimum(problem in tiny()) {
        prop_assert_eq!(whole(&problem), brute_force(&problem));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn better_plans_are_legal_and_shorter_and_the_same_for_a_seed(problem in problems(MOST)) {
        let graph = Graph::new(&problem);
        let mut evaluator = Evaluator::new(&graph);
        let mut run = || {
            let incumbent = start(&graph);
            let mut last = incumbent.makespan_ns();
            let mut makespans = Vec::new();
            improve(&graph, options(8), &incumbent, &mut |better| {
                let makespan_ns = evaluator.run(&graph, &better.plan, true).unwrap();
                let report = check(&problem, &evaluator.schedule(&graph, &better.plan));
                assert_eq!(report.violations, Vec::<String>::new());
                assert_eq!((report.makespan_ns, makespan_ns), (better.makespan_ns, better.makespan_ns));
                assert!(makespan_ns < last);
                last = makespan_ns;
                makespans.push(makespan_ns);
            });
            (makespans, incumbent.plan().map(|x| x.1))
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn overtaking_is_found_where_it_pays() {
    assert_eq!(whole(&overtaking()), 20);
    let problem = overtaking();
    let graph = Graph::new(&problem);
    let incumbent = start(&graph);
    improve(&graph, options(60), &incumbent, &mut |_| {});
    assert_eq!(incumbent.makespan_ns(), 20);
}

#[test]
fn a_stop_ends_it_at_once() {
    let problem = overtaking();
    let graph = Graph::new(&problem);
    let incumbent = start(&graph);
    // From the first better plan on, nothing more is solved.
    let stats = improve(&graph, options(u64::MAX), &incumbent, &mut |_| incumbent.stop_all());
    assert_eq!(stats.improved, 1);
    let known = incumbent.makespan_ns();
    assert_eq!(improve(&graph, options(u64::MAX), &incumbent, &mut |_| {}), WindowStats::default());
    assert_eq!(incumbent.makespan_ns(), known);
}
