//! `optpipe export`

use std::path::PathBuf;

use clap::ValueEnum;
use optpipe_configs::file;
use optpipe_solver::check::check;
use optpipe_solver::problem::Problem;

use super::input;
use crate::error::{Error, Result};
use crate::export::{self, TimelineOptions};
use crate::measured::Measured;

/// Turn a schedule into a picture or a trace
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  optpipe export problem.yaml schedule.yaml --to svg -o timeline.svg
  optpipe export problem.yaml schedule.yaml --to chrome-trace -o trace.json   # ui.perfetto.dev")]
pub(super) struct Args {
    /// The problem
    problem: PathBuf,
    /// Its schedule
    schedule: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    to: Format,
    /// Where to write; stdout if absent
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// A measured.yaml or rehearsed.yaml to show beside the prediction
    #[arg(long)]
    measured: Option<PathBuf>,
    /// Heading of the picture
    #[arg(long)]
    title: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A picture: one row a device, copies and memory under it
    Svg,
    /// Chrome trace format, for Perfetto
    ChromeTrace,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let problem: Problem = file::read_checked(&args.problem)?;
    let schedule = input::schedule(&args.schedule)?;
    let measured: Option<Measured> = match &args.measured {
        Some(path) => Some(input::measured(path)?),
        None => None,
    };
    if let Some(violation) = check(&problem, &schedule.schedule).violations.first() {
        return Err(Error::input(format!("{}: illegal: {violation}", args.schedule.display()))
            .hint("`optpipe check PROBLEM SCHEDULE` lists every violation"));
    }
    let failed = |e: export::ExportError| Error::input(format!("{}: {e}", args.schedule.display()));
    let text = match args.to {
        Format::ChromeTrace => export::trace_json(&problem, &schedule.schedule, measured.as_ref()).map_err(failed)?,
        Format::Svg => {
            let title = args.title.clone().or_else(|| schedule.model.clone());
            let options = match title {
                Some(title) => TimelineOptions { title, ..TimelineOptions::default() },
                None => TimelineOptions::default(),
            };
            export::timeline_svg(&problem, &schedule.schedule, measured.as_ref(), &options).map_err(failed)?
        }
    };
    match &args.output {
        Some(path) => {
            file::write_text(path, &text).map_err(Error::write)?;
            super::emit(&format!("wrote {}", path.display()))
        }
        None => super::emit(&text),
    }
}
