//! `optpipe check`

use std::path::PathBuf;

use optpipe_configs::file;
use optpipe_solver::bound::lower_bound;
use optpipe_solver::check::{Report, check};
use optpipe_solver::problem::Problem;
use schemars::JsonSchema;
use serde::Serialize;

use super::input;
use crate::error::{Error, Result};
use crate::text;

/// Check a schedule against its problem, rule by rule
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints each violated rule on a line and exits with 1, or the schedule's facts and exits with 0.

Example:
  optpipe solve problem.yaml -o schedule.yaml
  optpipe check problem.yaml schedule.yaml")]
pub(super) struct Args {
    /// The problem
    problem: PathBuf,
    /// The schedule
    schedule: PathBuf,
    /// Print the facts and violations as JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Facts<'a> {
    /// Whether no rule is broken.
    legal: bool,
    #[serde(flatten)]
    report: &'a Report,
    /// No schedule of the problem is shorter, ns.
    bound_ns: i64,
    /// What each device may hold, bytes.
    capacity_bytes: &'a [i64],
}

pub(super) fn run(args: &Args) -> Result<()> {
    let problem: Problem = file::read_checked(&args.problem)?;
    let schedule = input::schedule(&args.schedule)?.schedule;
    let report = check(&problem, &schedule);
    let bound_ns = lower_bound(&problem);
    if args.json {
        super::emit_json(&Facts {
            legal: report.is_legal(),
            report: &report,
            bound_ns,
            capacity_bytes: &problem.bytes.capacity,
        })?;
    } else if report.is_legal() {
        super::emit_words(&facts(&problem, &report, bound_ns))?;
    } else {
        super::emit(&report.violations.join("\n"))?;
    }
    if report.is_legal() {
        return Ok(());
    }
    let count = report.violations.len();
    Err(Error::failed(format!(
        "{}: illegal: {count} violation{} of {}",
        args.schedule.display(),
        if count == 1 { "" } else { "s" },
        args.problem.display()
    )))
}

fn facts(problem: &Problem, report: &Report, bound_ns: i64) -> String {
    let gap = report.makespan_ns as f64 / bound_ns.max(1) as f64 - 1.0;
    let mut lines = vec![
        "legal".to_owned(),
        format!("makespan   {} ({} ns)", text::duration(report.makespan_ns), report.makespan_ns),
        format!("bound      {} ({bound_ns} ns), gap {}", text::duration(bound_ns), text::gap(gap)),
        format!("bubble     {}", text::percent(report.bubble)),
        format!(
            "offloaded  {} of {} stage-microbatch pairs, {}",
            report.offloaded,
            problem.stages() * problem.microbatches,
            text::bytes(report.offloaded_bytes.unsigned_abs())
        ),
    ];
    for (device, (peak, capacity)) in report.peak_bytes.iter().zip(&problem.bytes.capacity).enumerate() {
        let label = if device == 0 { "peak" } else { "" };
        lines.push(format!(
            "{label:<10} device {device}: {} of {}",
            text::bytes(peak.unsigned_abs()),
            text::bytes(capacity.unsigned_abs())
        ));
    }
    lines.join("\n")
}
