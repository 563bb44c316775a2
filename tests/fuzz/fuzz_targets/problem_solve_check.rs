//! Any text as a problem: refused, infeasible, or solved to a schedule that holds.
#![no_main]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use optpipe_configs::file;
use optpipe_solver::check::check;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::{SolveOptions, solve};

/// Larger problems only take longer.
const MOST_PAIRS: usize = 200;

fuzz_target!(|text: &str| {
    let path = Path::new("problem.yaml");
    let read = file::parse::<Problem>(path, text).and_then(|problem| file::checked(path, text, problem));
    let Ok(problem) = read else { return };
    if problem.stages() * problem.microbatches > MOST_PAIRS {
        return;
    }
    let options = SolveOptions { time_limit: Duration::from_millis(10), ..SolveOptions::default() };
    if let Ok(solution) = solve(&problem, &options, &mut |_| {}, &AtomicBool::new(false)) {
        let report = check(&problem, &solution.schedule);
        assert!(report.is_legal(), "{:?}", report.violations);
        assert!(solution.bound_ns <= solution.makespan_ns);
    }
});
