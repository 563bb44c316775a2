//! Prints bounds on the makespan of problem files: the combinatorial one, the counter relaxation's, and
//! the seconds it took.
//!
//! ```sh
//! cargo run --release -p optpipe-solver --example bound -- 30s 123.4ms problem.yaml
//! ```
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use optpipe_configs::file;
use optpipe_solver::bound::{counter_bound, lower_bound};
use optpipe_solver::problem::Problem;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [time, best, file] = arguments.as_slice() else {
        return Err("expected: TIME BEST_MAKESPAN problem.yaml".into());
    };
    let time = humantime::parse_duration(time)?;
    let best_ns = (best.parse::<f64>()? * 1e6) as i64;
    let problem: Problem = file::read_checked(Path::new(file))?;
    let combinatorial = lower_bound(&problem);
    let begun = Instant::now();
    let mut trace = Vec::new();
    let mut on_bound = |bound: i64| trace.push((begun.elapsed().as_secs_f64(), bound));
    let never = AtomicBool::new(false);
    let bound = counter_bound(&problem, combinatorial, &|| best_ns, begun + time, &never, &mut on_bound);
    println!(
        "combinatorial {combinatorial} counter {bound} best {best_ns} gap {:.2} % after {:.1} s of {:.1} s",
        100.0 * (best_ns as f64 / bound as f64 - 1.0),
        trace.last().map_or(0.0, |x| x.0),
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}
