//! `optpipe rehearse`

use std::path::PathBuf;
use std::time::Instant;

use clap::builder::RangedU64ValueParser;
use optpipe_configs::file;
use optpipe_configs::job::Engine;
use optpipe_solver::problem::Problem;

use super::input;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::rehearsed::Rehearsed;
use crate::runner::{RehearseOptions, RehearseProgress};
use crate::table;
use crate::text;
use crate::tune::local::{self, Running};

/// Run a pipeline's devices one at a time on one device and measure the whole
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each device's list runs with that device's layers, copies and memory limit; what other devices
send arrives when their rehearsals say so, in the first round when the prediction says so. Rounds
over all devices repeat until the times settle.

Example:
  optpipe tune job.yaml --out runs/first
  optpipe rehearse job.yaml runs/first/schedule.yaml -o rehearsed.yaml")]
pub(super) struct Args {
    /// Model, batch, precision, optimizer and backend
    job: PathBuf,
    /// What to rehearse; its `layer_split`, where present, goes before the job's
    schedule: PathBuf,
    /// The problem that the schedule solves [default: problem.yaml beside the schedule]
    #[arg(long)]
    problem: Option<PathBuf>,
    /// Where to write rehearsed.yaml
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Rounds over all devices, at most
    #[arg(long, default_value_t = RehearseOptions::default().rounds, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    rounds: usize,
    /// Times have settled when a round moves no op's end by more than this part of the step
    #[arg(long, default_value = "2%", value_parser = super::percentage)]
    tolerance: f64,
    #[command(flatten)]
    measure: super::MeasureArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let problem = args.problem.clone().unwrap_or_else(|| args.schedule.with_file_name("problem.yaml"));
    let mut runnable = input::runnable(&args.job, &problem, &args.schedule).map_err(|e| match args.problem {
        None if !problem.exists() => e.hint("name the problem that the schedule solves with --problem"),
        _ => e,
    })?;
    if let Some(steps) = args.measure.steps {
        runnable.job.run.steps = steps;
    }
    let input::Runnable { job, model, problem, schedule, layer_split, workspace } = &runnable;
    if job.run.engine == Engine::Torch {
        return Err(Error::input(format!("{}: run.engine: expected native, found torch", args.job.display()))
            .hint("OptPipe itself rehearses, device by device; `optpipe run` measures with PyTorch"));
    }
    let progress = Progress::new(args.measure.quiet);
    let cancel = interrupt::install();
    let running = Running {
        layer_split,
        microbatch_size: job.microbatch_size(),
        workspace: Some(workspace),
        problem,
        schedule,
        enforce: !args.measure.no_limit,
    };
    let options = RehearseOptions { rounds: args.rounds, tolerance: args.tolerance };
    let mut begun = None;
    let mut on_progress = |at: RehearseProgress| {
        if let RehearseProgress::Device { round, device, .. } = at {
            let done = (round - 1) * problem.devices + device;
            let begun = *begun.get_or_insert_with(Instant::now);
            if let Ok(count @ 1..) = u32::try_from(done) {
                let more = u32::try_from(args.rounds.saturating_mul(problem.devices) - done).unwrap_or(u32::MAX);
                progress.left_in_all(Some((begun.elapsed() / count).saturating_mul(more)));
            }
        }
        tell(&progress, args.rounds, problem.devices, at);
    };
    let rehearsed = local::rehearse(job, model, &running, &options, &mut on_progress, cancel)?;
    progress.done();
    if let Some(path) = &args.output {
        file::write(path, &rehearsed).map_err(Error::write)?;
    }
    if args.measure.json {
        super::emit_json(&rehearsed)?;
    } else {
        super::emit_words(&report(&rehearsed, problem))?;
    }
    if rehearsed.interrupted {
        let count = rehearsed.rounds.len();
        let rounds = if count == 1 { "round" } else { "rounds" };
        return Err(Error::Interrupted(format!(": the times of {count} {rounds} were kept")));
    }
    Ok(())
}

fn tell(progress: &Progress, rounds: usize, devices: usize, at: RehearseProgress) {
    match at {
        RehearseProgress::Recording => progress.phase("recording what the stages send to each other"),
        RehearseProgress::Device { round, device, step_ns } => progress.phase(&format!(
            "round {round} of at most {rounds}: device {device} of {devices}, step {} so far",
            text::duration(step_ns as i64)
        )),
        RehearseProgress::Round { round, step_ns, largest_change_ns } => progress.line(&format!(
            "round {round}: step {}, no op's end moved by more than {}",
            text::duration(step_ns as i64),
            text::duration(largest_change_ns as i64)
        )),
    }
}

fn report(rehearsed: &Rehearsed, problem: &Problem) -> String {
    let signed = |error: Option<f64>| error.map_or_else(|| "-".to_owned(), |x| format!("{:+.1} %", 100.0 * x));
    let comparison = &rehearsed.comparison;
    let last = rehearsed.rounds.last().map_or(0, |round| round.largest_change_ns);
    let (count, plural) = (rehearsed.rounds.len(), if rehearsed.rounds.len() == 1 { "" } else { "s" });
    let mut lines = vec![
        format!(
            "step       {}; predicted {} ({})",
            text::duration(rehearsed.step_ns as i64),
            text::duration(comparison.predicted_step_ns as i64),
            signed(rehearsed.step_error)
        ),
        format!(
            "settled    {} after {count} round{plural}: the last moved an op's end by up to {}",
            if rehearsed.settled { "yes," } else { "no," },
            text::duration(last as i64)
        ),
        format!("offloaded  {} a step", text::bytes(rehearsed.offloaded_bytes)),
    ];
    for (device, (found, error)) in comparison.devices.iter().zip(&rehearsed.peak_errors).enumerate() {
        let label = if device == 0 { "peak" } else { "" };
        lines.push(format!(
            "{label:<10} device {device}: {} of {}; predicted {} ({})",
            text::bytes(found.measured_peak_bytes),
            text::bytes(problem.bytes.capacity[device].unsigned_abs()),
            text::bytes(found.predicted_peak_bytes),
            signed(*error)
        ));
    }
    let heading = ["op", "count", "median error", "worst error", "at"];
    let rows = rehearsed.errors.iter().map(|x| {
        vec![
            x.op.letter().to_string(),
            x.count.to_string(),
            format!("{:.1} %", 100.0 * x.median_error),
            signed(Some(x.worst_error)),
            format!("stage {}, microbatch {}", x.worst_stage, x.worst_microbatch),
        ]
    });
    lines.push(table::table(heading, rows.collect()).to_string());
    lines.join("\n")
}
