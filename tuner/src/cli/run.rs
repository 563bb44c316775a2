//! `optpipe run`

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use optpipe_configs::file;
use optpipe_configs::job::Engine;
use optpipe_solver::problem::Problem;

use super::input;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::measured::Measured;
use crate::progress::Progress;
use crate::summary::{Observed, Predicted};
use crate::text;
use crate::tune::local::{Local, Running};
use crate::tune::torchrun::Torchrun;

/// Run a schedule on real tensors and measure it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The steps are real training steps of the job's model. A tune's folder has problem and schedule
of every round, so that any of them can be measured again.

Example:
  optpipe tune job.yaml --out runs/first
  optpipe run job.yaml runs/first/schedule.yaml --problem runs/first/problem.yaml -o measured.yaml")]
pub(super) struct Args {
    /// Model, batch, precision, optimizer and backend
    job: PathBuf,
    /// What to run; its `layer_split`, where present, goes before the job's
    schedule: PathBuf,
    /// The problem that the schedule solves
    #[arg(long)]
    problem: PathBuf,
    /// Where to write measured.yaml
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    measure: super::MeasureArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut runnable = input::runnable(&args.job, &args.problem, &args.schedule)?;
    if let Some(steps) = args.measure.steps {
        runnable.job.run.steps = steps;
    }
    let input::Runnable { job, model, problem, schedule, layer_split, workspace } = &runnable;
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
    progress.phase("running");
    let measured = match job.run.engine {
        Engine::Native => Local::new(job, model)?.measure(&running, &progress, cancel)?,
        Engine::Torch => {
            let limit = running.enforce.then_some(problem.bytes.capacity.as_slice());
            Torchrun::new(job, model, &args.job, None)?.measure(&running, limit, &progress, cancel)?
        }
    };
    progress.done();
    if let Some(path) = &args.output {
        file::write(path, &measured).map_err(Error::write)?;
    }
    if args.measure.json {
        super::emit_json(&measured)?;
    } else {
        let tokens = crate::tune::tokens_per_step(job);
        let predicted = Predicted::of(problem, schedule, tokens);
        super::emit_words(&report(&measured, &predicted, &Observed::of(&measured, problem.devices, tokens), problem))?;
    }
    if cancel.load(Ordering::SeqCst) {
        return Err(Error::Interrupted(String::new()));
    }
    Ok(())
}

fn report(measured: &Measured, predicted: &Predicted, observed: &Observed, problem: &Problem) -> String {
    let step = &measured.step;
    let mut lines = vec![
        format!(
            "step       {} ±{} over {} steps; predicted {} (x{:.2})",
            text::duration(step.median_ns as i64),
            text::duration(step.mad_ns as i64),
            step.count,
            text::duration(predicted.step_ns),
            step.median_ns as f64 / predicted.step_ns.max(1) as f64
        ),
        format!("tokens/s   {}", text::count(observed.tokens_per_second.round() as u64)),
        format!("bubble     {}; predicted {}", text::percent(observed.bubble), text::percent(predicted.bubble)),
        format!("optimizer  {} after each step", text::duration(measured.optimizer.median_ns as i64)),
        format!("offloaded  {} a step", text::bytes(measured.offloaded_bytes)),
    ];
    let peaks = measured.peak_bytes.iter().zip(&predicted.peak_bytes).zip(&problem.bytes.capacity);
    for (device, ((&peak, &expected), capacity)) in peaks.enumerate() {
        let label = if device == 0 { "peak" } else { "" };
        lines.push(format!(
            "{label:<10} device {device}: {} of {}; predicted {}",
            text::bytes(peak),
            text::bytes(capacity.unsigned_abs()),
            text::bytes(expected)
        ));
    }
    if let (Some(first), Some(last)) = (measured.losses.first(), measured.losses.last()) {
        lines.push(format!("loss       {first:.4} at the first step, {last:.4} at the last"));
    }
    lines.join("\n")
}
