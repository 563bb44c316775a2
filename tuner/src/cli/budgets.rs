//! `optpipe compare --budgets`: what search and MILP add to the heuristic, over time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use optpipe_solver::method::Method;
use optpipe_solver::milp::MilpSize;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::{Solution, SolveOptions, StopReason, solve};
use schemars::JsonSchema;
use serde::Serialize;

use crate::error::Result;
use crate::progress::Progress;
use crate::{table, text};

/// The heuristic, what is added to it step by step, and the MILP on the heuristic alone.
const METHODS: [(&str, Method); 4] = [
    ("heuristic", Method::AdaptiveOffload),
    ("heuristic + search", Method::Search),
    ("heuristic + search + MILP", Method::Auto),
    ("heuristic + MILP", Method::Milp),
];

/// One method after one budget.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Row {
    /// What ran, in words.
    method: &'static str,
    /// The same, as `--method` of `optpipe solve` takes it.
    solver_method: Method,
    /// The time that it had, s.
    budget_s: f64,
    /// Time that it took, s: less than the budget where the optimum was proven or nothing was left to do.
    solve_s: f64,
    /// The makespan of the best schedule, ns.
    makespan_ns: i64,
    /// The bound that this run proved, ns.
    bound_ns: i64,
    /// Of the makespan against that bound.
    gap: f64,
    /// Why the run ended.
    stop: StopReason,
    /// What the MILP did, where it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    milp: Option<Milp>,
}

/// The MILP of a run.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Milp {
    /// The largest model solved.
    #[serde(flatten)]
    size: MilpSize,
    /// Models solved.
    models: usize,
    /// Nodes of the trees of all models.
    nodes: i64,
    /// The best bound that the root of a tree gave, ns.
    root_bound_ns: Option<i64>,
}

/// What `--json` prints.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Budgets")]
pub(super) struct Comparison<'a> {
    /// The best bound of all runs, ns.
    bound_ns: i64,
    /// One entry a method and budget.
    budgets: &'a [Row],
}

/// Runs every method for every budget and prints what it found. The time limit shapes what a method does,
/// so that each budget is a run of its own, unless a shorter one has come to an end by itself.
pub(super) fn run(
    problem: &Problem,
    budgets: &[Duration],
    seed: u64,
    json: bool,
    progress: &Progress,
    cancel: &AtomicBool,
) -> Result<()> {
    let mut budgets = budgets.to_vec();
    budgets.sort_unstable();
    budgets.dedup();
    let mut rows = Vec::new();
    for (name, method) in METHODS {
        let mut last: Option<(Solution, f64)> = None;
        for &budget in &budgets {
            if cancel.load(Ordering::SeqCst) {
                break;
            }
            let ended = last.take().filter(|x| matches!(x.0.stop, StopReason::Optimal | StopReason::MethodDone));
            let (solution, solve_s) = match ended {
                Some(ended) => ended,
                None => {
                    progress.phase_within(&format!("{name}, {}", text::duration(budget.as_nanos() as i64)), budget);
                    let begun = std::time::Instant::now();
                    let options = SolveOptions { method, time_limit: budget, seed, ..SolveOptions::default() };
                    let solution = solve(problem, &options, &mut |_| {}, cancel)?;
                    (solution, begun.elapsed().as_secs_f64())
                }
            };
            rows.push(row(name, method, budget, solve_s, &solution));
            last = Some((solution, solve_s));
        }
    }
    progress.done();
    let bound_ns = rows.iter().map(|row| row.bound_ns).max().unwrap_or(0);
    if json {
        super::emit_json(&Comparison { bound_ns, budgets: &rows })
    } else {
        super::emit_words(&report(&rows, bound_ns))
    }
}

fn row(name: &'static str, method: Method, budget: Duration, solve_s: f64, solution: &Solution) -> Row {
    let milp = solution.milp.as_ref().map(|stats| Milp {
        size: MilpSize { variables: stats.variables, binaries: stats.binaries, rows: stats.rows },
        models: stats.models,
        nodes: stats.nodes,
        root_bound_ns: stats.root_bound_ns,
    });
    Row {
        method: name,
        solver_method: method,
        budget_s: budget.as_secs_f64(),
        solve_s,
        makespan_ns: solution.makespan_ns,
        bound_ns: solution.bound_ns,
        gap: solution.gap(),
        stop: solution.stop,
        milp,
    }
}

fn report(rows: &[Row], bound_ns: i64) -> String {
    let seconds = |s: f64| text::duration((s * 1e9) as i64);
    let line = |row: &Row| {
        let milp =
            |show: &dyn Fn(&Milp) -> Option<String>| row.milp.as_ref().and_then(show).unwrap_or_else(|| "-".to_owned());
        vec![
            row.method.to_owned(),
            seconds(row.budget_s),
            seconds(row.solve_s),
            text::duration(row.makespan_ns),
            text::duration(row.bound_ns),
            text::gap(row.gap),
            milp(&|x| Some(format!("{}/{}/{}", x.size.variables, x.size.binaries, x.size.rows))),
            milp(&|x| x.root_bound_ns.map(text::duration)),
        ]
    };
    let heading = ["method", "budget", "took", "makespan", "bound", "gap", "MILP vars/binaries/rows", "root bound"];
    let table = table::table(heading, rows.iter().map(line).collect());
    format!("{table}\nNo schedule that fits takes less than {} ({bound_ns} ns).", text::duration(bound_ns))
}
