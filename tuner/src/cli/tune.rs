//! `optpipe tune`

use std::path::PathBuf;

use optpipe_configs::job::Job;

use super::input;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::summary::{StopReason, Summary};
use crate::tune::folder::{Earlier, Folder};
use crate::tune::{TORCHRUN, Tuning, machine};
use crate::{table, text};

/// Profile, solve, run, and repeat until throughput converges
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The folder then holds schedule.yaml (the best measured schedule), problem.yaml, hardware.yaml,
profile.yaml, summary.yaml, report.html (all of it on a page), trace.json (ui.perfetto.dev), timeline.svg
and rounds/NN/.
What the job leaves `auto` is chosen before the first round, see `optpipe search`.
Ctrl-C stops after writing the best so far; --resume goes on after that, or after a crash, with what
the folder holds.

Example:
  optpipe init -o job.yaml
  optpipe tune job.yaml --out runs/first")]
pub(super) struct Args {
    /// What to tune
    job: PathBuf,
    /// Output folder
    #[arg(long, short)]
    out: PathBuf,
    /// A profile.yaml of this job to use instead of profiling
    #[arg(long)]
    profile: Option<PathBuf>,
    /// A hardware.yaml to use instead of calibrating; goes before the job's
    #[arg(long)]
    hardware: Option<PathBuf>,
    /// Go on with the tune that the folder holds
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Remove the tune that the folder holds and start again
    #[arg(long)]
    force: bool,
    /// Neither look for problems solved before nor remember these
    #[arg(long)]
    no_cache: bool,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
    /// Print the summary as JSON instead of tables
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let (job, model) = Job::read(&args.job)?;
    let hardware = input::hardware(args.hardware.as_deref(), &job, &args.job)?;
    let profile = input::profile(args.profile.as_deref(), &job, &args.job)?;
    let earlier = match (args.resume, args.force) {
        (true, _) => Earlier::Resume,
        (_, true) => Earlier::Replace,
        _ => Earlier::Keep,
    };
    let folder = Folder::open(&args.out, &job, &model, earlier)?;
    let progress = Progress::new(args.quiet);
    let cancel = interrupt::install();
    progress.line(&format!("{model}"));
    let cache = if args.no_cache { None } else { Cache::of_user() };
    let mut machine = machine::open(&job, &model, &args.job, Some(&folder.path(TORCHRUN)))?;
    let tuning = Tuning {
        job: &job,
        model: &model,
        hardware,
        profile,
        cache: cache.as_ref(),
        folder: &folder,
        machine: &mut *machine,
        progress: &progress,
        cancel,
    };
    let summary = tuning.run()?;
    progress.done();
    if args.json {
        super::emit_json(&summary)?;
    } else {
        super::emit_words(&report(&summary, &folder))?;
    }
    match summary.stop {
        StopReason::Interrupted => Err(Error::Interrupted(format!(
            ": the best so far is in {}; --resume goes on from here",
            folder.root().display()
        ))),
        StopReason::Failed => Err(Error::failed(summary.failure.unwrap_or_default())
            .hint(format!("the best before that is in {}; --resume goes on from there", folder.root().display()))),
        StopReason::Converged | StopReason::RoundLimit => Ok(()),
    }
}

fn report(summary: &Summary, folder: &Folder) -> String {
    let bound = text::duration(summary.bound_ns);
    let verdict = if summary.proven {
        format!("proven optimal for the problem of round {}", summary.best_round)
    } else {
        format!("at most {} above the bound {bound} of round {}", text::gap(summary.gap), summary.best_round)
    };
    let mut lines = vec![
        format!(
            "{}, {} parameters, {} devices, {} microbatches, {} tokens a step",
            summary.model,
            text::count(summary.parameters),
            summary.devices,
            summary.microbatches,
            text::count(summary.tokens_per_step)
        ),
        table::comparison(summary).to_string(),
        format!("The schedule is {verdict}."),
    ];
    for outcome in &summary.textbook {
        if let Some(note) = &outcome.note {
            lines.push(format!("{}: {note}", outcome.name));
        }
    }
    lines.push(format!(
        "\n{} after {} round{}:",
        sentence(&summary.stop.to_string()),
        summary.rounds.len(),
        if summary.rounds.len() == 1 { "" } else { "s" }
    ));
    lines.push(table::rounds(summary).to_string());
    lines.push(format!("\nFiles in {}:", folder.root().display()));
    lines.extend(summary.files.iter().map(|(name, what)| format!("  {name:<16} {what}")));
    lines.join("\n")
}

/// With a capital.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
