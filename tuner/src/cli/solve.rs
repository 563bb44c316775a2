//! `optpipe solve`

use std::path::{Path, PathBuf};
use std::time::Duration;

use optpipe_configs::file;
use optpipe_configs::hardware::Hardware;
use optpipe_configs::profile::Profile;
use optpipe_solver::method::Method;
use optpipe_solver::milp::MilpStats;
use optpipe_solver::objective::Objective;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::ScheduleFile;
use optpipe_solver::solve::{Event, Solution, SolveOptions, solve};
use serde::Serialize;

use super::input::{self, Kind};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::plan::{self, Plan};
use crate::progress::Progress;
use crate::summary::Predicted;
use crate::text;
use crate::tune::local::Local;
use crate::tune::machine::Machine;

/// Find the shortest schedule within each device's memory, with a bound
#[derive(Debug, clap::Args)]
#[command(after_help = "\
INPUT is a problem.yaml, or a job.yaml, or a profile.yaml together with --job. What a job needs and is
not given with --profile and --hardware is measured first.

Examples:
  optpipe solve problem.yaml -o schedule.yaml --time-limit 30s
  optpipe solve profile.yaml --job job.yaml --hardware hardware.yaml -o schedule.yaml
  optpipe solve job.yaml --problem-out problem.yaml -o schedule.yaml")]
pub(super) struct Args {
    /// A problem, a job, or a profile
    input: PathBuf,
    /// Where to write the schedule; without it only the numbers are printed
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Time for the search; proven optima end it early
    #[arg(long, default_value = "30s", value_parser = super::duration)]
    time_limit: Duration,
    /// auto, or one of gpipe, 1f1b, interleaved, zb-h1, zb-h2, zb-v, v-half, v-min, pipe-offload,
    /// adaptive-offload, search, milp
    #[arg(long, default_value = "auto")]
    method: Method,
    /// makespan, or period: the longest span of a device, where the next step starts on a device as soon
    /// as its own is over
    #[arg(long, default_value = "makespan")]
    objective: Objective,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Evaluations of the search, a thread: makes the schedule depend on the seed alone, not on the
    /// machine's speed
    #[arg(long)]
    iterations: Option<u64>,
    /// The job, where INPUT is a profile
    #[arg(long)]
    job: Option<PathBuf>,
    /// The profile, where INPUT is a job
    #[arg(long)]
    profile: Option<PathBuf>,
    /// The hardware, where INPUT is a job or a profile
    #[arg(long)]
    hardware: Option<PathBuf>,
    /// Also write the problem that was made from job, profile and hardware
    #[arg(long)]
    problem_out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

/// What is solved, and what goes beside the schedule in its file.
struct Input {
    problem: Problem,
    model: Option<String>,
    plan: Option<Plan>,
    tokens_per_step: u64,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let progress = Progress::new(args.quiet);
    let input = read(args, &progress)?;
    if let Some(path) = &args.problem_out {
        file::write(path, &input.problem).map_err(Error::write)?;
    }
    let cancel = interrupt::install();
    progress.phase(&format!("solving, at most {}", text::duration(args.time_limit.as_nanos() as i64)));
    let options = SolveOptions {
        method: args.method,
        objective: args.objective,
        time_limit: args.time_limit,
        seed: args.seed,
        start: None,
        iterations: args.iterations,
    };
    let mut on_event = |event: &Event| progress.update(&format!("solving: {event}"));
    let solution = solve(&input.problem, &options, &mut on_event, cancel)?;
    progress.done();

    if let Some(path) = &args.output {
        let file = ScheduleFile {
            method: Some(solution.method.clone()),
            bound_ns: Some(solution.bound_ns),
            model: input.model.clone(),
            layer_split: input.plan.as_ref().map(|plan| plan.layer_split.clone()),
            placement: Some(input.problem.placement.clone()),
            microbatches: Some(input.problem.microbatches),
            ..ScheduleFile::new(solution.schedule.clone())
        };
        let yaml = file.to_yaml().map_err(|e| Error::failed(format!("cannot write the schedule: {e}")))?;
        file::write_text(path, &yaml).map_err(Error::write)?;
    }
    let predicted = Predicted::of(&input.problem, &solution.schedule, input.tokens_per_step);
    if args.json {
        super::emit_json(&Solved::new(&input, &solution, &predicted, args.output.as_deref()))?;
    } else {
        super::emit(&report(&input, &solution, &predicted, args.output.as_deref()))?;
    }
    if cancel.load(std::sync::atomic::Ordering::SeqCst) {
        return Err(Error::Interrupted(": this is the best so far".to_owned()));
    }
    Ok(())
}

fn read(args: &Args, progress: &Progress) -> Result<Input> {
    let of_a_job = [
        ("--job", args.job.is_some()),
        ("--profile", args.profile.is_some()),
        ("--hardware", args.hardware.is_some()),
        ("--problem-out", args.problem_out.is_some()),
    ];
    let unexpected = |what: &str, name: &str| {
        Err(Error::input(format!("{}: {what}: {name} says nothing about it", args.input.display())))
    };
    let (job_file, profile_file) = match input::kind(&args.input)? {
        Kind::Problem => {
            if let Some((name, _)) = of_a_job.iter().find(|(_, given)| *given) {
                return unexpected("is a problem", name);
            }
            let problem: Problem = file::read_checked(&args.input)?;
            return Ok(Input { problem, model: None, plan: None, tokens_per_step: 0 });
        }
        Kind::Job if args.job.is_some() => return unexpected("is a job itself", "--job"),
        Kind::Job => (args.input.clone(), args.profile.clone()),
        Kind::Profile if args.profile.is_some() => return unexpected("is a profile itself", "--profile"),
        Kind::Profile => match &args.job {
            Some(job) => (job.clone(), Some(args.input.clone())),
            None => {
                return Err(Error::input(format!(
                    "{}: is a profile: devices, batch and memory limit are a job's",
                    args.input.display()
                ))
                .hint("give one with --job job.yaml; `optpipe init` writes one"));
            }
        },
        Kind::Hardware => {
            return Err(Error::input(format!(
                "{}: expected a problem, a job or a profile, found a hardware file",
                args.input.display()
            ))
            .hint("optpipe solve job.yaml --hardware hardware.yaml"));
        }
        Kind::Schedule => {
            return Err(Error::input(format!(
                "{}: expected a problem, a job or a profile, found a schedule",
                args.input.display()
            ))
            .hint("`optpipe check PROBLEM SCHEDULE` checks a schedule"));
        }
    };
    from_job(&job_file, profile_file.as_deref(), args.hardware.as_deref(), progress)
}

fn from_job(job: &Path, profile: Option<&Path>, hardware: Option<&Path>, progress: &Progress) -> Result<Input> {
    let (job, model, named) = input::job(job)?;
    let cancel = interrupt::install();
    let hardware: Option<Hardware> = match hardware {
        Some(path) => Some(file::read_checked(path)?),
        None => named,
    };
    let profile: Option<Profile> = profile.map(file::read_checked).transpose()?;
    let (hardware, profile) = match (hardware, profile) {
        (Some(hardware), Some(profile)) => (hardware, profile),
        (hardware, profile) => {
            let mut machine = Local::new(&job, &model)?;
            let hardware = match hardware {
                Some(hardware) => hardware,
                None => {
                    progress.phase("calibrating: copies between device and host");
                    machine.calibrate(&job, progress, cancel)?
                }
            };
            let profile = match profile {
                Some(profile) => profile,
                None => {
                    progress.phase("profiling: layers of the model");
                    machine.profile(&job, &model, progress, cancel)?
                }
            };
            (hardware, profile)
        }
    };
    let plan = plan::problem(&profile, &hardware, &job, &model)?;
    Ok(Input {
        problem: plan.problem.clone(),
        model: Some(model.name.clone()),
        plan: Some(plan),
        tokens_per_step: crate::tune::tokens_per_step(&job),
    })
}

/// What `--json` prints.
#[derive(Serialize)]
struct Solved<'a> {
    objective: Objective,
    makespan_ns: i64,
    period_ns: i64,
    bound_ns: i64,
    gap: f64,
    proven: bool,
    method: &'a str,
    stop: &'a optpipe_solver::solve::StopReason,
    bubble: f64,
    peak_bytes: &'a [u64],
    capacity_bytes: &'a [i64],
    offloaded: usize,
    offloaded_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer_split: Option<&'a [usize]>,
    parts: &'a [optpipe_solver::solve::PartRecord],
    trace: &'a [optpipe_solver::solve::TracePoint],
    #[serde(skip_serializing_if = "Option::is_none")]
    milp: Option<&'a MilpStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<&'a Path>,
}

impl<'a> Solved<'a> {
    fn new(input: &'a Input, solution: &'a Solution, predicted: &'a Predicted, schedule: Option<&'a Path>) -> Self {
        Solved {
            objective: solution.objective,
            makespan_ns: solution.makespan_ns,
            period_ns: solution.period_ns,
            bound_ns: solution.bound_ns,
            gap: solution.gap(),
            proven: solution.proven,
            method: &solution.method,
            stop: &solution.stop,
            bubble: predicted.bubble,
            peak_bytes: &predicted.peak_bytes,
            capacity_bytes: &input.problem.bytes.capacity,
            offloaded: predicted.offloaded,
            offloaded_bytes: predicted.offloaded_bytes,
            layer_split: input.plan.as_ref().map(|plan| plan.layer_split.as_slice()),
            parts: &solution.parts,
            trace: &solution.trace,
            milp: solution.milp.as_ref(),
            schedule,
        }
    }
}

fn report(input: &Input, solution: &Solution, predicted: &Predicted, written: Option<&Path>) -> String {
    let problem = &input.problem;
    let mut lines = vec![
        format!(
            "makespan   {} ({} ns), found by {}",
            text::duration(solution.makespan_ns),
            solution.makespan_ns,
            solution.method
        ),
        format!("period     {} ({} ns)", text::duration(solution.period_ns), solution.period_ns),
        format!(
            "bound      {} ({} ns) on the {}, gap {}",
            text::duration(solution.bound_ns),
            solution.bound_ns,
            solution.objective,
            text::gap(solution.gap())
        ),
        format!("bubble     {}", text::percent(predicted.bubble)),
        format!(
            "offloaded  {} of {} stage-microbatch pairs, {}",
            predicted.offloaded,
            problem.stages() * problem.microbatches,
            text::bytes(predicted.offloaded_bytes)
        ),
    ];
    for (device, (&peak, capacity)) in predicted.peak_bytes.iter().zip(&problem.bytes.capacity).enumerate() {
        let label = if device == 0 { "peak" } else { "" };
        lines.push(format!(
            "{label:<10} device {device}: {} of {}",
            text::bytes(peak),
            text::bytes(capacity.unsigned_abs())
        ));
    }
    if let Some(plan) = &input.plan {
        for (s, stage) in plan.stages.iter().enumerate() {
            let label = if s == 0 { "split" } else { "" };
            lines.push(format!("{label:<10} stage {s} on device {}: {}", stage.device, stage.layers));
        }
    }
    if let Some(path) = written {
        lines.push(format!("wrote      {}", path.display()));
    }
    lines.join("\n")
}
