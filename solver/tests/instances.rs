//! Problems whose optimum was proven by another solver.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use optpipe_configs::file::read_checked;
use optpipe_solver::bound::lower_bound;
use optpipe_solver::check::check;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::{Event, SolveOptions, solve};

/// Name and optimum (none where no schedule exists) of each instance.
fn optima() -> Vec<(String, Problem, Option<i64>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/instances");
    let table = std::fs::read_to_string(folder.join("optimum.csv")).unwrap();
    let row = |line: &str| {
        let mut fields = line.split(',');
        let name = fields.next().unwrap().to_owned();
        let problem = read_checked(&folder.join(format!("{name}.yaml"))).unwrap();
        (name, problem, fields.next().unwrap().parse().ok())
    };
    table.lines().skip(1).map(row).collect()
}

#[test]
fn known_optima_are_reached() {
    let optima = optima();
    assert_eq!(optima.len(), 14);
    for (name, problem, optimum) in optima {
        // On a busy machine it may take its time; as a rule it takes seconds.
        let options = SolveOptions { time_limit: Duration::from_secs(100), ..SolveOptions::default() };
        let reached = AtomicBool::new(false);
        let mut on_event = |event: &Event| {
            if let Event::Incumbent(x) = event
                && Some(x.makespan_ns) == optimum
            {
                reached.store(true, Ordering::Relaxed);
            }
        };
        let solved = solve(&problem, &options, &mut on_event, &reached);
        let Some(optimum) = optimum else {
            let refused = solved.unwrap_err();
            assert_eq!((refused.device, refused.missing_bytes), (0, 1), "{name}");
            continue;
        };
        let solution = solved.unwrap();
        assert_eq!(check(&problem, &solution.schedule).violations, Vec::<String>::new(), "{name}");
        assert!(solution.bound_ns <= optimum, "{name}: the bound {} exceeds the optimum {optimum}", solution.bound_ns);
        assert_eq!(solution.makespan_ns, optimum, "{name}");
    }
}

#[test]
fn bounds_are_as_strong_as_known() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/instances");
    let table = std::fs::read_to_string(folder.join("optimum.csv")).unwrap();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let Ok(known) = fields[5].parse::<i64>() else { continue };
        let problem: Problem = read_checked(&folder.join(format!("{}.yaml", fields[0]))).unwrap();
        assert!(lower_bound(&problem) >= known, "{}", fields[0]);
    }
}
