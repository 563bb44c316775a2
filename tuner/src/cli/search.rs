//! `optpipe search`

use std::path::PathBuf;
use std::time::Duration;

use optpipe_configs::file;
use optpipe_configs::job::{Count, Job};
use optpipe_configs::model::Model;
use optpipe_configs::record;
use optpipe_solver::schedule::ScheduleFile;
use schemars::JsonSchema;
use serde::Serialize;

use super::input;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::structure::profiles::Profiles;
use crate::structure::report::Report;
use crate::structure::{Found, Front, Search};
use crate::text;
use crate::tune::machine;

/// Choose what a job leaves `auto`: layer split, chunks, placement, microbatch size
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Structures that a bound proves to be worse than a known schedule are cut; the rest are solved, the
better half for longer. The front shows the shortest step found at other memory limits.
Layers are profiled at every microbatch size looked at. With --profile only the sizes given are
measured ones; times of others are scaled from them in proportion, and marked.

Examples:
  optpipe search job.yaml -o schedule.yaml --problem-out problem.yaml --job-out chosen.yaml
  optpipe search job.yaml --profile b1.yaml --profile b2.yaml --hardware hardware.yaml --json")]
pub(super) struct Args {
    /// The job, with `auto` where the search is to choose
    job: PathBuf,
    /// A profile of the job's model; once for each microbatch size
    #[arg(long)]
    profile: Vec<PathBuf>,
    /// The hardware, instead of the job's or a calibration
    #[arg(long)]
    hardware: Option<PathBuf>,
    /// Where to write the schedule
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Where to write the chosen structure's problem
    #[arg(long)]
    problem_out: Option<PathBuf>,
    /// Where to write the job with everything chosen
    #[arg(long)]
    job_out: Option<PathBuf>,
    /// Time for the whole search, profiling not counted
    #[arg(long, default_value = "1m", value_parser = super::duration)]
    time_limit: Duration,
    /// Points of the memory-time front; 0 for none
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(0..=64))]
    front: u16,
    /// Memory limits of the front, for all devices, instead of chosen ones: 20GiB,40GiB
    #[arg(long, value_delimiter = ',', value_parser = super::bytes, conflicts_with = "front")]
    capacities: Vec<u64>,
    /// Neither look for problems solved before nor remember these
    #[arg(long)]
    no_cache: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let (job, model) = Job::read(&args.job)?;
    let hardware = input::hardware(args.hardware.as_deref(), &job, &args.job)?;
    let mut profiles = Profiles::default();
    for path in &args.profile {
        profiles.add(file::read_checked(path)?)?;
    }
    if let (true, Some(profile)) = (profiles.is_empty(), job.read_profile(&args.job)?) {
        profiles.add(profile)?;
    }
    let progress = Progress::new(args.quiet);
    let cancel = interrupt::install();
    let mut machine = None;
    let hardware = match hardware {
        Some(hardware) => hardware,
        None => {
            progress.phase("calibrating: copies between device and host");
            machine.insert(machine::open(&job, &model, &args.job, None)?).calibrate(&job, &progress, cancel)?
        }
    };
    let front = match (args.capacities.is_empty(), args.front) {
        (false, _) => Front::Capacities(args.capacities.clone()),
        (true, 0) => Front::None,
        (true, points) => Front::Points(usize::from(points)),
    };
    let cache = if args.no_cache { None } else { Cache::of_user() };
    let none = Profiles::default();
    let search = Search {
        job: &job,
        model: &model,
        hardware: &hardware,
        profiles: &none,
        cache: cache.as_ref(),
        time_limit: args.time_limit,
        front: &front,
        progress: &progress,
        cancel,
    };
    if profiles.is_empty() {
        let mut machine = match machine {
            Some(machine) => machine,
            None => machine::open(&job, &model, &args.job, None)?,
        };
        for size in job.microbatch_sizes() {
            if !profiles.is_empty() && !(Search { profiles: &profiles, ..search }).may_run(size)? {
                continue;
            }
            progress.phase(&format!("profiling: layers of the model, {size} sequences a microbatch"));
            let mut sized = job.clone();
            sized.batch.microbatch_size = Count::Fixed(size);
            profiles.add(machine.profile(&sized, &model, &progress, cancel)?)?;
        }
    }
    let found = Search { profiles: &profiles, ..search }.run()?;
    progress.done();
    write(args, &found, &model)?;
    if args.json {
        let Found { solution, report, .. } = &found;
        super::emit_json(&Searched { method: &solution.method, gap: solution.gap(), proven: solution.proven, report })?;
    } else {
        super::emit_words(&summary(&found))?;
    }
    for path in [&args.output, &args.problem_out, &args.job_out].into_iter().flatten() {
        super::wrote(args.quiet, path.display());
    }
    if cancel.load(std::sync::atomic::Ordering::SeqCst) {
        return Err(Error::Interrupted(": this is the best so far".to_owned()));
    }
    Ok(())
}

/// What `--json` prints.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Searched<'a> {
    /// What found the schedule.
    method: &'a str,
    /// Its step over the bound of the chosen structure, less 1.
    gap: f64,
    /// Whether it is proven optimal for that structure.
    proven: bool,
    #[serde(flatten)]
    report: &'a Report,
}

fn write(args: &Args, found: &Found, model: &Model) -> Result<()> {
    let Found { job, plan, solution, .. } = found;
    if let Some(path) = &args.output {
        let file = ScheduleFile {
            method: Some(solution.method.clone()),
            bound_ns: Some(solution.bound_ns),
            model: Some(model.name.clone()),
            layer_split: Some(plan.layer_split.clone()),
            placement: Some(plan.problem.placement.clone()),
            microbatches: Some(plan.problem.microbatches),
            ..ScheduleFile::new(solution.schedule.clone())
        };
        let yaml = file.to_yaml().map_err(|e| Error::failed(format!("cannot write the schedule: {e}")))?;
        file::write_text(path, &yaml).map_err(Error::write)?;
    }
    if let Some(path) = &args.problem_out {
        file::write(path, &plan.problem).map_err(Error::write)?;
    }
    if let Some(path) = &args.job_out {
        // Its paths start at the folder of the job that was read.
        let mut job = job.clone();
        let folder = args.job.parent().unwrap_or_else(|| "".as_ref());
        let moved = |path: &std::path::Path| std::fs::canonicalize(folder.join(path)).ok();
        if let Some(model) = moved(job.model.as_ref()).filter(|_| !model_is_preset(&job.model)) {
            job.model = model.to_string_lossy().into_owned();
        }
        for (measured, records) in [(&mut job.hardware, record::HARDWARE), (&mut job.profile, record::PROFILES)] {
            if let Some(path) = measured.as_mut().filter(|path| !record::is_recorded(records, path)) {
                *path = moved(path).unwrap_or_else(|| path.to_owned());
            }
        }
        file::write(path, &job).map_err(Error::write)?;
    }
    Ok(())
}

fn model_is_preset(name: &str) -> bool {
    optpipe_configs::model::PRESETS.iter().any(|(preset, _)| *preset == name)
}

/// Structures in the table.
const SHOWN: usize = 12;

fn summary(found: &Found) -> String {
    let Found { plan, solution, report, .. } = found;
    let mut lines = vec![
        report.text(SHOWN),
        format!(
            "chosen     {} ({} ns) a step, found by {}; gap to its bound {}",
            text::duration(solution.makespan_ns),
            solution.makespan_ns,
            solution.method,
            text::gap(solution.gap())
        ),
    ];
    for (s, stage) in plan.stages.iter().enumerate() {
        let label = if s == 0 { "split" } else { "" };
        lines.push(format!("{label:<10} stage {s} on device {}: {}", stage.device, stage.layers));
    }
    lines.join("\n")
}
