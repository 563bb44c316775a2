use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use super::policy::{Copying, Policy};
use super::*;
use crate::check::check;
use crate::testing;

/// Any policy, with copies chosen in one way.
fn policy(rng: &mut Pcg64Mcg, devices: usize, copying: Copying) -> Policy {
    Policy { copying, ..Policy::random(rng, devices) }
}

#[test]
fn a_timetable_is_found_for_every_problem_and_policy_and_is_legal() {
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    for case in 0..4_000 {
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
