//! How the optimum moves with the problem. Each optimum is one that the solver has proven.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use common::{Most, problems};
use optpipe_solver::check::check;
use optpipe_solver::objective::Objective;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::{Solution, SolveOptions, solve};
use proptest::prelude::*;

const TINY: Most = Most { devices: 3, stages: 3, microbatches: 3, least_time: 1 };

fn solve_in(problem: &Problem, objective: Objective, seconds: u64) -> Solution {
    let options = SolveOptions { objective, time_limit: Duration::from_secs(seconds), ..SolveOptions::default() };
    solve(problem, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap()
}

/// The optimum, if it is proven in time.
fn optimum(problem: &Problem) -> Option<i64> {
    let solution = solve_in(problem, Objective::Makespan, 3);
    solution.proven.then_some(solution.makespan_ns)
}

/// An optimum that is proven in time, or the case does not count. Cases that do not are so few that a
/// solver that proves nothing fails by rejecting too many.
macro_rules! proven {
    ($problem:expr) => {
        match optimum($problem) {
            Some(x) => x,
            None => return Err(TestCaseError::reject("not proven in time")),
        }
    };
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24, max_global_rejects: 8, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn less_memory_never_helps(problem in problems(TINY), which in any::<prop::sample::Index>()) {
        let mut tight = problem.clone();
        let device = which.index(problem.devices);
        let free = problem.bytes.capacity[device] - problem.bytes.r#static[device];
        tight.bytes.capacity[device] -= free / 4;
        if tight.feasible().is_ok() {
            prop_assert!(proven!(&tight) >= proven!(&problem));
        }
    }

    #[test]
    fn more_time_never_helps(problem in problems(TINY), which in any::<prop::sample::Index>(), more in 1..5_i64) {
        let mut slow = problem.clone();
        let t = &mut slow.time_ns;
        let stage = which.index(problem.placement.len());
        let lists = [&mut t.forward, &mut t.backward_input, &mut t.backward_weight, &mut t.offload, &mut t.reload];
        lists.into_iter().nth(which.index(5)).unwrap()[stage] += more;
        prop_assert!(proven!(&slow) >= proven!(&problem));
    }

    #[test]
    fn names_do_not_matter(problem in problems(TINY)) {
        // Devices in reverse, channels under other numbers.
        let mut other = problem.clone();
        let last = problem.devices - 1;
        other.placement.iter_mut().for_each(|d| *d = last - *d);
        for list in [&mut other.bytes.r#static, &mut other.bytes.capacity] {
            list.reverse();
        }
        for list in [&mut other.offload_channel, &mut other.reload_channel] {
            list.reverse();
            list.iter_mut().for_each(|c| *c = 100 - 3 * *c);
        }
        prop_assert_eq!(proven!(&other), proven!(&problem));

        // Microbatches in reverse.
        let mut solution = solve_in(&problem, Objective::Makespan, 1);
        let last = problem.microbatches - 1;
        solution.schedule.ops.iter_mut().flatten().for_each(|x| x.microbatch = last - x.microbatch);
        prop_assert_eq!(check(&problem, &solution.schedule).violations, Vec::<String>::new());
    }

    #[test]
    fn a_period_is_between_its_bound_and_the_makespan(problem in problems(TINY)) {
        let solution = solve_in(&problem, Objective::Period, 1);
        prop_assert_eq!(check(&problem, &solution.schedule).violations, Vec::<String>::new());
        prop_assert_eq!(solution.value_ns(), solution.period_ns);
        prop_assert!(solution.bound_ns <= solution.period_ns);
        // The shortest schedule has a period, too; the best period is no longer.
        let shortest = solve_in(&problem, Objective::Makespan, 1);
        prop_assert!(shortest.period_ns <= shortest.makespan_ns);
        prop_assert!(solution.period_ns <= shortest.makespan_ns);
    }
}
