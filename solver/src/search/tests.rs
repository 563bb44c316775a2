//! What an edit changes, timed alone, equals the whole plan timed anew.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::moves::Mover;
use super::state::State;
use crate::adaptive::Constructor;
use crate::adaptive::policy::Policy;
use crate::check::check;
use crate::common::{Most, problems};
use crate::graph::Graph;
use crate::objective::Objective;
use crate::plan::Evaluator;
use crate::problem::Problem;

const MOST: Most = Most { devices: 4, stages: 6, microbatches: 5, least_time: 0 };
const POSITIVE: Most = Most { least_time: 1, ..MOST };

/// Tries edits; after each, all times, waits and places must be those of the plan timed from scratch.
fn edits_keep_times(problem: &Problem, objective: Objective, seed: u64) -> Result<(), TestCaseError> {
    let graph = Graph::new(problem);
    let mut constructor = Constructor::new(&graph);
    // With offloads where there is such a plan: its ops wait because of memory from the start.
    let offloading = Policy::grid(problem.devices)
        .iter()
        .filter_map(|x| constructor.construct(x))
        .map(|x| x.0)
        .find(|plan| plan.offloaded.contains(&true));
    let Some(plan) = offloading.or_else(|| Some(constructor.construct_serial()?.0)) else { return Ok(()) };
    let Some(mut state) = State::new(&graph, plan, objective) else {
        return Err(TestCaseError::fail("the plan cannot run"));
    };
    let mut mover = Mover::new(&state, Pcg64Mcg::seed_from_u64(seed));
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut evaluator = Evaluator::new(&graph);
    evaluator.path.release = (0..problem.devices).map(|d| state.times.release(d)).collect();
    // An edit that is dropped before it is timed leaves everything as it was.
    state.revert();
    for _ in 0..150 {
        let before = state.plan.clone();
        mover.edit(&mut state);
        let edited = state.edited();
        let threshold = state.objective * (0.95 + 0.15 * rng.random::<f64>());
        let limit = state.limit(threshold);
        let kept = state.settle(threshold);
        // The decision is that of a whole evaluation.
        let whole = evaluator.run(&graph, &edited, true).ok();
        let measures = whole.map(|_| state.measure_of(&evaluator.path.end, &edited));
        let wanted = measures.is_some_and(|(value, objective)| value <= limit && objective <= threshold);
        if edited == before {
            prop_assert!(!kept);
        } else {
            prop_assert_eq!(kept, wanted, "{:?} {} {}", measures, limit, threshold);
        }
        prop_assert_eq!(&state.plan, if kept { &edited } else { &before });
        prop_assert_eq!(state.times.verify(&graph), Ok(()));
        prop_assert!(evaluator.run(&graph, &state.plan, true).is_ok());
        prop_assert_eq!(state.measure_of(&evaluator.path.end, &state.plan).0, state.value_ns);
        prop_assert_eq!(&evaluator.path.end, &state.times.ends().to_vec());
        for (q, queue) in state.plan.queues.iter().enumerate() {
            for (i, &op) in queue.iter().enumerate() {
                let (x, y) = (&evaluator.nodes[op as usize], &state.times.evaluator.nodes[op as usize]);
                prop_assert_eq!((x.copy, x.freed), (y.copy, y.freed), "queue {}", q);
                prop_assert_eq!(state.times.place[op as usize] as usize, i);
            }
        }
        if kept {
            mover.accepted();
            let schedule = evaluator.schedule(&graph, &state.plan);
            prop_assert_eq!(check(problem, &schedule).violations, Vec::<String>::new());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn edits_keep_times_where_times_are_positive(problem in problems(POSITIVE), seed in any::<u64>()) {
        let mut problem = problem;
        for times in [&mut problem.time_ns.offload, &mut problem.time_ns.reload] {
            times.iter_mut().for_each(|x| *x += 1);
        }
        for objective in Objective::ALL {
            edits_keep_times(&problem, objective, seed)?;
        }
    }

    #[test]
    fn edits_keep_times_where_times_may_be_zero(problem in problems(MOST), seed in any::<u64>()) {
        for objective in Objective::ALL {
            edits_keep_times(&problem, objective, seed)?;
        }
    }
}
