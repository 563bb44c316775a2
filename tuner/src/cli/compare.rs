//! `optpipe compare`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use optpipe_configs::file;
use optpipe_solver::bound::lower_bound;
use optpipe_solver::method::Method;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;
use optpipe_solver::solve::{SolveOptions, solve};
use optpipe_solver::textbook;
use schemars::JsonSchema;
use serde::Serialize;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::summary::Predicted;
use crate::{table, text};

/// Solve a problem with every method and compare
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Textbook schedules ignore the memory limit: `fits` says whether they could run. Every gap is to the
best bound that any method proved.

With --budgets the question is another one: what do search and MILP add to the heuristic alone, and how
does the gap close with time? Each method runs once for each budget.

Examples:
  optpipe compare problem.yaml --time-limit 10s
  optpipe compare problem.yaml --budgets 1s,10s")]
pub(super) struct Args {
    /// The problem
    problem: PathBuf,
    /// Time for each method that searches
    #[arg(long, default_value = "10s", value_parser = super::duration)]
    time_limit: Duration,
    /// Compare heuristic, search and MILP after each of these times instead
    #[arg(long, value_parser = super::duration, value_delimiter = ',', conflicts_with = "time_limit")]
    budgets: Vec<Duration>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

/// One method.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Row {
    /// Its name; `+ offload` where its order is completed by offloads.
    method: String,
    #[serde(flatten)]
    found: Option<Found>,
    /// Time that it took, ns.
    solve_ns: u64,
    /// Why it has no schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// The schedule of a method.
#[derive(Debug, Serialize, JsonSchema)]
struct Found {
    /// Its makespan, ns.
    makespan_ns: i64,
    /// Against the best bound of all methods; absent where the schedule does not fit.
    gap: Option<f64>,
    /// Share of the devices' time in which they do not compute.
    bubble: f64,
    /// Peak of each device, `static` included.
    peak_bytes: Vec<u64>,
    /// Whether no device holds more than it may.
    fits: bool,
    /// Stage-microbatch pairs whose activations go to the host.
    offloaded: usize,
    /// Their bytes.
    offloaded_bytes: u64,
}

/// What `--json` prints.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Comparison<'a> {
    /// The best bound of all methods, ns.
    bound_ns: i64,
    /// What each device may hold.
    capacity_bytes: &'a [i64],
    /// One entry a method, the textbook ones first.
    methods: &'a [Row],
}

pub(super) fn run(args: &Args) -> Result<()> {
    let problem: Problem = file::read_checked(&args.problem)?;
    problem.feasible()?;
    let progress = Progress::new(args.quiet);
    let cancel = interrupt::install();
    if !args.budgets.is_empty() {
        super::budgets::run(&problem, &args.budgets, args.seed, args.json, &progress, cancel)?;
        return if cancel.load(Ordering::SeqCst) {
            Err(Error::Interrupted(": not every method was run".to_owned()))
        } else {
            Ok(())
        };
    }
    let mut bound_ns = lower_bound(&problem);
    let mut rows = Vec::new();
    for (done, method) in Method::ALL.into_iter().enumerate() {
        if cancel.load(Ordering::SeqCst) {
            break;
        }
        let searching = Method::ALL[done..].iter().filter(|method| takes_all(**method)).count();
        progress.left_in_all(Some(args.time_limit.saturating_mul(u32::try_from(searching).unwrap_or(u32::MAX))));
        let name = format!("solving with {method}, {} of {}", done + 1, Method::ALL.len());
        progress.phase_within(&name, args.time_limit);
        let mut fits = false;
        if method.is_textbook() {
            let started = Instant::now();
            let (found, note) = match textbook::schedule(&problem, method) {
                Ok(schedule) => (Some(judge(&problem, &schedule)), None),
                Err(e) => (None, Some(format!("not for this problem: {e}"))),
            };
            // Where the textbook schedule itself fits or does not apply, there is nothing to complete.
            fits = found.as_ref().is_none_or(|found| found.fits);
            rows.push(Row { method: method.name().to_owned(), found, solve_ns: nanoseconds(started), note });
        }
        if !fits {
            let started = Instant::now();
            let options =
                SolveOptions { method, time_limit: args.time_limit, seed: args.seed, ..SolveOptions::default() };
            let solution = solve(&problem, &options, &mut |_| {}, cancel)?;
            bound_ns = bound_ns.max(solution.bound_ns);
            let suffix = if method.is_textbook() { " + offload" } else { "" };
            // A textbook order that does not fit even so is answered with another method's schedule.
            let note =
                solution.parts.iter().find(|part| part.name == method.name()).and_then(|part| part.note.as_ref());
            let note = note.map(|note| format!("{method}{suffix}: {note}"));
            let found = note.is_none().then(|| judge(&problem, &solution.schedule));
            rows.push(Row { method: format!("{method}{suffix}"), found, solve_ns: nanoseconds(started), note });
        }
    }
    progress.done();
    for found in rows.iter_mut().filter_map(|row| row.found.as_mut()).filter(|found| found.fits) {
        found.gap = Some((found.makespan_ns as f64 / bound_ns.max(1) as f64 - 1.0).max(0.0));
    }
    if args.json {
        super::emit_json(&Comparison { bound_ns, capacity_bytes: &problem.bytes.capacity, methods: &rows })?;
    } else {
        super::emit_words(&report(&rows, bound_ns))?;
    }
    if cancel.load(Ordering::SeqCst) {
        return Err(Error::Interrupted(": not every method was run".to_owned()));
    }
    Ok(())
}

/// Whether a method goes on for as long as it may; the others are done at once, or nearly.
fn takes_all(method: Method) -> bool {
    matches!(method, Method::Search | Method::Milp | Method::Auto)
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn judge(problem: &Problem, schedule: &Schedule) -> Found {
    let predicted = Predicted::of(problem, schedule, 0);
    let fits = predicted.over_limit(problem).iter().all(|&over| over == 0);
    Found {
        makespan_ns: predicted.step_ns,
        gap: None,
        bubble: predicted.bubble,
        peak_bytes: predicted.peak_bytes,
        fits,
        offloaded: predicted.offloaded,
        offloaded_bytes: predicted.offloaded_bytes,
    }
}

fn report(rows: &[Row], bound_ns: i64) -> String {
    let line = |row: &Row| {
        let Some(found) = &row.found else {
            let mut cells = vec!["-".to_owned(); 8];
            cells[0] = row.method.clone();
            return cells;
        };
        vec![
            row.method.clone(),
            text::duration(found.makespan_ns),
            found.gap.map_or_else(|| "-".to_owned(), text::gap),
            text::percent(found.bubble),
            text::bytes(found.peak_bytes.iter().copied().max().unwrap_or(0)),
            if found.fits { "yes" } else { "no" }.to_owned(),
            text::bytes(found.offloaded_bytes),
            text::duration(row.solve_ns as i64),
        ]
    };
    let heading = ["method", "makespan", "gap", "bubble", "largest peak", "fits", "offloaded", "solve time"];
    let mut lines = vec![table::table(heading, rows.iter().map(line).collect()).to_string()];
    lines.extend(rows.iter().filter_map(|row| row.note.clone()));
    lines.push(format!("No schedule that fits takes less than {} ({bound_ns} ns).", text::duration(bound_ns)));
    lines.join("\n")
}
