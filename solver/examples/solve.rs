//! Solves a problem file, prints what happens, and writes the schedule:
//!
//! ```sh
//! cargo run --release -p optpipe-solver --example solve -- problem.yaml 10s schedule.yaml [method [objective]]
//! ```
//!
//! The last line on stdout is JSON: makespan and bound in ns, and what each part of the solve did.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use optpipe_configs::file;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::ScheduleFile;
use optpipe_solver::solve::{SolveOptions, solve};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [problem, time_limit, output, more @ ..] = arguments.as_slice() else {
        return Err("expected: problem.yaml TIME schedule.yaml [METHOD [OBJECTIVE]]".into());
    };
    let problem: Problem = file::read_checked(Path::new(problem))?;
    let mut options = SolveOptions { time_limit: humantime::parse_duration(time_limit)?, ..SolveOptions::default() };
    if let [name, ..] = more {
        options.method = name.parse()?;
    }
    if let [_, name, ..] = more {
        options.objective = name.parse()?;
    }
    let never = AtomicBool::new(false);
    let solution = solve(&problem, &options, &mut |event| eprintln!("{event}"), &never)?;
    file::write_text(Path::new(output), &ScheduleFile::new(solution.schedule).to_yaml()?)?;
    let summary = serde_json::json!({
        "makespan_ns": solution.makespan_ns,
        "period_ns": solution.period_ns,
        "bound_ns": solution.bound_ns,
        "proven": solution.proven,
        "method": solution.method,
        "parts": solution.parts,
    });
    println!("{summary}");
    Ok(())
}
