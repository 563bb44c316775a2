//! `optpipe export`

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use optpipe_configs::file;
use optpipe_configs::model::Model;
use optpipe_solver::check::check;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::ScheduleFile;

use super::input;
use crate::error::{Error, Result};
use crate::export::{self, TimelineOptions};
use crate::measured::Measured;

/// Turn a schedule into a picture, a trace, or what a trainer runs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  optpipe export problem.yaml schedule.yaml --to svg -o timeline.svg
  optpipe export problem.yaml schedule.yaml --to chrome-trace -o trace.json   # ui.perfetto.dev
  optpipe export problem.yaml schedule.yaml --to torch -o torch/              # a folder")]
pub(super) struct Args {
    /// The problem
    problem: PathBuf,
    /// Its schedule
    schedule: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    to: Format,
    /// Where to write, a folder for torch; stdout if absent
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// A measured.yaml or rehearsed.yaml to show beside the prediction
    #[arg(long)]
    measured: Option<PathBuf>,
    /// Heading of the picture
    #[arg(long)]
    title: Option<String>,
    /// The model, a preset or its config.json; for torch, where the schedule names another path or none
    #[arg(long)]
    model: Option<String>,
    /// Transformer blocks of each stage; where the schedule does not say
    #[arg(long, value_delimiter = ',')]
    layer_split: Option<Vec<usize>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A picture: one row a device, copies and memory under it
    Svg,
    /// Chrome trace format, for Perfetto
    ChromeTrace,
    /// A folder for torch.distributed.pipelining and trainers on it, with a package that offloads
    Torch,
    /// Arguments for Megatron-Core, with their distance from the schedule
    Megatron,
    /// A Python file with a PipeSchedule of DeepSpeed
    Deepspeed,
    /// The schedule, complete
    Yaml,
    /// The same as JSON; `optpipe schema schedule` prints its schema
    Json,
    /// One op a line, with its end
    Csv,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let problem: Problem = file::read_checked(&args.problem)?;
    let mut schedule = input::schedule(&args.schedule)?;
    if let Some(split) = &args.layer_split {
        schedule.layer_split = Some(split.clone());
    }
    let measured: Option<Measured> = match &args.measured {
        Some(path) => Some(input::measured(path)?),
        None => None,
    };
    if let Some(violation) = check(&problem, &schedule.schedule).violations.first() {
        return Err(Error::input(format!("{}: illegal: {violation}", args.schedule.display()))
            .hint("`optpipe check PROBLEM SCHEDULE` lists every violation"));
    }
    let failed = |e: &dyn std::fmt::Display| Error::input(format!("{}: {e}", args.schedule.display()));
    let unwritable = |e: &dyn std::fmt::Display| Error::failed(format!("cannot write the schedule: {e}"));
    let text = match args.to {
        Format::ChromeTrace => {
            export::trace_json(&problem, &schedule.schedule, measured.as_ref()).map_err(|e| failed(&e))?
        }
        Format::Svg => {
            let title = args.title.clone().or_else(|| schedule.model.clone());
            let options = match title {
                Some(title) => TimelineOptions { title, ..TimelineOptions::default() },
                None => TimelineOptions::default(),
            };
            export::timeline_svg(&problem, &schedule.schedule, measured.as_ref(), &options).map_err(|e| failed(&e))?
        }
        Format::Megatron => export::megatron(&problem, &schedule).map_err(|e| failed(&e))?,
        Format::Deepspeed => export::deepspeed(&problem, &schedule).map_err(|e| failed(&e))?,
        Format::Csv => export::table::csv(&problem, &schedule).map_err(|e| failed(&e))?,
        Format::Yaml => export::table::complete(&problem, &schedule).to_yaml().map_err(|e| unwritable(&e))?,
        Format::Json => {
            let complete = export::table::complete(&problem, &schedule);
            serde_json::to_string(&complete).map_err(|e| unwritable(&e))? + "\n"
        }
        Format::Torch => return torch(args, &problem, &schedule),
    };
    match &args.output {
        Some(path) => {
            file::write_text(path, &text).map_err(Error::write)?;
            super::emit(&format!("wrote {}", path.display()))
        }
        None => super::emit(&text),
    }
}

/// Writes the folder: only once all of it is known to be right.
fn torch(args: &Args, problem: &Problem, schedule: &ScheduleFile) -> Result<()> {
    let folder = args
        .output
        .as_deref()
        .ok_or_else(|| Error::input("torch takes a folder").hint("name one: --to torch -o FOLDER"))?;
    let model = match (&args.model, &schedule.model) {
        (Some(model), _) => Some(Model::read(model, None)?),
        (None, Some(model)) => {
            let read = Model::read(model, None);
            Some(read.map_err(|e| Error::from(e).hint("name the schedule's model with --model"))?)
        }
        (None, None) => None,
    };
    let files = export::torch::torch(problem, schedule, model.as_ref())
        .map_err(|e| Error::input(format!("{}: {e}", args.schedule.display())))?;
    for (name, text) in &files {
        let path: PathBuf = Path::new(folder).join(name);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent)
            .map_err(|e| Error::failed(format!("cannot make the folder {}: {e}", parent.display())))?;
        file::write_text(&path, text).map_err(Error::write)?;
    }
    super::emit(&format!("wrote {} files to {}", files.len(), folder.display()))
}
