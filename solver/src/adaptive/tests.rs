#![allow(clippy::unwrap_used)]

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use super::periodic::Pattern;
use super::policy::{Copying, Policy};
use super::*;
use crate::check::check;
use crate::testing;

/// Any policy, with copies chosen in one way.
fn policy(rng: &mut Pcg64Mcg, devices: usize, copying: Copying) -> Policy {
    Policy { copying, pattern: None, ..Policy::random(rng, devices) }
}

#[test]
fn a_timetable_is_found_for_every_problem_and_policy_and_is_legal() {
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    for case in 0..8_000 {
        let problem = testing::random(&mut rng);
        let graph = Graph::new(&problem);
        let mut constructor = Constructor::new(&graph);
        for _ in 0..4 {
            let policy = policy(&mut rng, problem.devices, Copying::Timetable);
            let made = constructor.construct(&policy);
            let (plan, makespan) = made.unwrap_or_else(|| panic!("case {case}: {policy:?} is stuck on {problem:?}"));
            let report = check(&problem, &constructor.evaluator.schedule(&graph, &plan));
            assert_eq!(report.violations, Vec::<String>::new(), "case {case}: {policy:?} on {problem:?}");
            assert_eq!(report.makespan_ns, makespan);
        }
    }
}

#[test]
fn patterns_are_legal_and_repeat() {
    let mut rng = Pcg64Mcg::seed_from_u64(3);
    for case in 0..2_000 {
        let problem = testing::random(&mut rng);
        let graph = Graph::new(&problem);
        let mut constructor = Constructor::new(&graph);
        let pattern = Pattern::random(&mut rng, problem.devices);
        let order = periodic::order(&graph, &constructor.shape, &pattern);
        let mut all: Vec<u32> = order.sequences.iter().flatten().copied().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..3 * graph.pairs as u32), "case {case}: {pattern:?} on {problem:?}");
        // Each group comes as late after the one before as the first did.
        let group = pattern.group.clamp(1, problem.microbatches);
        for s in 0..graph.stages {
            for kind in [OpKind::F, OpKind::B, OpKind::W] {
                let end = |j: usize| order.end[graph.op(kind, s, j) as usize];
                let steps: Vec<i64> = (group..problem.microbatches).map(|j| end(j) - end(j - group)).collect();
                assert!(steps.windows(2).all(|x| x[0] == x[1]), "case {case}: {pattern:?} on {problem:?}");
            }
        }
        let policy = Policy { pattern: Some(pattern), ..Policy::random(&mut rng, problem.devices) };
        let Some((plan, makespan)) = constructor.construct(&policy) else { continue };
        let report = check(&problem, &constructor.evaluator.schedule(&graph, &plan));
        assert_eq!(report.violations, Vec::<String>::new(), "case {case}: {policy:?} on {problem:?}");
        assert_eq!(report.makespan_ns, makespan);
    }
}

#[test]
fn a_pattern_keeps_devices_busy_between_filling_and_draining() {
    for (devices, microbatches) in [(1, 3), (2, 16), (4, 32), (8, 64)] {
        let problem = testing::uniform(devices, (0..devices).collect(), microbatches);
        let graph = Graph::new(&problem);
        let mut constructor = Constructor::new(&graph);
        let pattern =
            Pattern { group: 1, stretch: 1.0, forward_wait: 0.0, turn_wait: 0.0, backward_wait: 0.0, weight_wait: 0.0 };
        let (_, makespan) = constructor.construct(&Policy { pattern: Some(pattern), ..Policy::SERIAL }).unwrap();
        // A microbatch goes down and back once; a W behind it may add to that.
        let most = 3 * microbatches + 3 * devices;
        assert!(makespan <= most as i64, "{devices} devices, {microbatches} microbatches: {makespan} > {most}");
    }
}

#[test]
fn constructions_do_not_depend_on_those_before() {
    let mut rng = Pcg64Mcg::seed_from_u64(2);
    for _ in 0..50 {
        let problem = testing::random(&mut rng);
        let graph = Graph::new(&problem);
        let mut constructor = Constructor::new(&graph);
        let policies: Vec<Policy> = (0..6).map(|_| Policy::random(&mut rng, problem.devices)).collect();
        for policy in &policies {
            let alone = Constructor::new(&graph).construct(policy);
            assert_eq!(constructor.construct(policy), alone, "{policy:?} on {problem:?}");
        }
    }
}
