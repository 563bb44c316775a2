//! `optpipe solve`

mod report;
mod robust;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use optpipe_configs::file;
use optpipe_configs::hardware::Hardware;
use optpipe_configs::profile::Profile;
use optpipe_solver::method::Method;
use optpipe_solver::objective::Objective;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::ScheduleFile;
use optpipe_solver::solve::{Event, Solution, SolveOptions};

use super::input::{self, Kind};
use crate::cache::{self, Cache};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::noise::{Noise, Spreads};
use crate::plan::{self, Plan};
use crate::progress::Progress;
use crate::sensitivity;
use crate::summary::Predicted;
use crate::tune::machine;
use report::Found;
pub(super) use report::Solved;

/// Find the shortest schedule within each device's memory, with a bound
#[derive(Debug, clap::Args)]
#[command(after_help = "\
INPUT is a problem.yaml, or a job.yaml, or a profile.yaml together with --job. What a job needs and is
not given with --profile and --hardware is measured first.

Examples:
  optpipe solve problem.yaml -o schedule.yaml --time-limit 30s
  optpipe solve profile.yaml --job job.yaml --hardware hardware.yaml -o schedule.yaml
  optpipe solve job.yaml --problem-out problem.yaml -o schedule.yaml
  optpipe solve job.yaml --noise profile --sensitivity
  optpipe solve problem.yaml -o live/schedule.yaml --watch

What was solved is kept in OPTPIPE_CACHE_DIR, by default `optpipe` in the user's cache folder.")]
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
    /// Choose among several schedules by their step times under noise: `profile` draws op times from the
    /// spreads that profile and calibration measured, a percentage such as 5% the same for all ops
    #[arg(long, value_name = "profile|PERCENT")]
    noise: Option<Noise>,
    /// Also find out what 1 GiB more memory and 10 % more host bandwidth would be worth; each solve takes
    /// up to a quarter of the time limit
    #[arg(long)]
    sensitivity: bool,
    /// Keep solving and replace the schedule whenever a better one is found, for so long or until it is
    /// interrupted
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = super::duration,
          requires = "output", conflicts_with_all = ["noise", "sensitivity", "iterations"])]
    watch: Option<Option<Duration>>,
    /// A measured.yaml that a trainer writes again and again: solve for its times as soon as they differ
    #[arg(long, requires = "watch", requires = "problem_out")]
    measured: Option<PathBuf>,
    /// How far measured times may be from the problem's
    #[arg(long, default_value = "5%", requires = "measured", value_parser = super::percentage)]
    drift: f64,
    /// Neither look for this problem among those solved before nor remember it
    #[arg(long)]
    no_cache: bool,
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
    measured: Option<(Profile, Hardware)>,
    tokens_per_step: u64,
}

impl Input {
    /// How far op times are from those of the problem.
    fn spreads(&self, noise: Noise, path: &Path) -> Result<Spreads> {
        match (noise, &self.plan, &self.measured) {
            (Noise::Share(share), ..) => Ok(Spreads::share(&self.problem, share)),
            (Noise::Profile, Some(plan), Some((profile, hardware))) => {
                Ok(plan::spreads(profile, hardware, &plan.layer_split))
            }
            (Noise::Profile, ..) => Err(Error::input(format!(
                "{}: is a problem: --noise profile needs the spreads of a profile",
                path.display()
            ))
            .hint("solve a job or a profile, or give a percentage, as in --noise 5%")),
        }
    }

    /// Writes a schedule of the problem with what is known of the job.
    fn write(&self, path: &Path, problem: &Problem, solution: &Solution) -> Result<()> {
        let file = ScheduleFile {
            method: Some(solution.method.clone()),
            bound_ns: Some(solution.bound_ns),
            model: self.model.clone(),
            layer_split: self.plan.as_ref().map(|plan| plan.layer_split.clone()),
            placement: Some(problem.placement.clone()),
            microbatches: Some(problem.microbatches),
            ..ScheduleFile::new(solution.schedule.clone())
        };
        let yaml = file.to_yaml().map_err(|e| Error::failed(format!("cannot write the schedule: {e}")))?;
        file::write_text(path, &yaml).map_err(Error::write)
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let by_makespan = [("--noise", args.noise.is_some()), ("--sensitivity", args.sensitivity)];
    if let Some((name, _)) = by_makespan.iter().find(|(_, given)| *given && args.objective != Objective::Makespan) {
        return Err(Error::input(format!("{name}: expected --objective makespan, found {}", args.objective)));
    }
    let progress = Progress::new(args.quiet);
    let input = read(args, &progress)?;
    if let Some(path) = &args.problem_out {
        file::write(path, &input.problem).map_err(Error::write)?;
    }
    let cancel = interrupt::install();
    let cache = if args.no_cache { None } else { Cache::of_user() };
    let options = SolveOptions {
        method: args.method,
        objective: args.objective,
        time_limit: args.time_limit,
        seed: args.seed,
        iterations: args.iterations,
        ..SolveOptions::default()
    };
    if let Some(lasting) = args.watch {
        return watch::run(args, input, &options, cache.as_ref(), lasting, &progress);
    }
    progress.phase_within("solving", args.time_limit);
    let (solution, hit, robust) = match args.noise {
        None => {
            let mut on_event = |event: &Event| progress.update(&format!("solving: {event}"));
            let (solution, hit) = cache::solve(&input.problem, &options, cache.as_ref(), &mut on_event, cancel)?;
            (solution, hit, None)
        }
        Some(noise) => {
            let spreads = input.spreads(noise, &args.input)?;
            let (solution, robust) = robust::choose(&input.problem, &options, noise, &spreads, &progress, cancel)?;
            (solution, None, Some(robust))
        }
    };
    if let Some(hit) = hit {
        progress.line(&format!("cache: {hit}"));
    }
    let sensitivity = match args.sensitivity {
        false => None,
        true => {
            let (problem, schedule, limit) = (&input.problem, &solution.schedule, args.time_limit / 4);
            Some(sensitivity::sensitivity(problem, schedule, &options, limit, &progress, cancel)?)
        }
    };
    progress.done();

    if let Some(path) = &args.output {
        input.write(path, &input.problem, &solution)?;
    }
    let found = Found {
        input: &input,
        solution: &solution,
        predicted: Predicted::of(&input.problem, &solution.schedule, input.tokens_per_step),
        hit,
        robust: robust.as_ref(),
        sensitivity: sensitivity.as_ref(),
        written: args.output.as_deref(),
    };
    found.emit(args)?;
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
        // What is measured makes another problem.
        ("--problem-out", args.problem_out.is_some() && args.measured.is_none()),
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
            return Ok(Input { problem, model: None, plan: None, measured: None, tokens_per_step: 0 });
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

fn from_job(job_file: &Path, profile: Option<&Path>, hardware: Option<&Path>, progress: &Progress) -> Result<Input> {
    let (job, model) = input::job(job_file)?;
    let cancel = interrupt::install();
    let hardware = input::hardware(hardware, &job, job_file)?;
    let profile = input::profile(profile, &job, job_file)?;
    let (hardware, profile) = match (hardware, profile) {
        (Some(hardware), Some(profile)) => (hardware, profile),
        (hardware, profile) => {
            let mut machine = machine::open(&job, &model, job_file, None)?;
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
        measured: Some((profile, hardware)),
        tokens_per_step: crate::tune::tokens_per_step(&job),
    })
}
