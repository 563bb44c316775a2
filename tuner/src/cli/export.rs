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
#[command(
    override_usage = "optpipe export [OPTIONS] --to <TO> [PROBLEM] <SCHEDULE>",
    after_help = "\
Example:
  optpipe export schedule.yaml --to svg -o timeline.svg
  optpipe export schedule.yaml --to chrome-trace -o trace.json   # ui.perfetto.dev
  optpipe export schedule.yaml --to torch -o torch/              # a folder
  optpipe export schedule.yaml --to json -o readable/            # with a reader to start from, page and schemas
  optpipe export problem.yaml schedule.yaml --to csv"
)]
pub(super) struct Args {
    /// The schedule; before it may stand the problem that it solves
    #[arg(required = true, num_args = 1..=2, value_name = "SCHEDULE")]
    files: Vec<PathBuf>,
    /// The problem that it solves [default: problem.yaml beside the schedule]
    #[arg(long)]
    problem: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum)]
    to: Format,
    /// Where to write, a folder for torch; stdout if absent. With yaml or json a folder that is there, or a name with
    /// a slash behind it, gets a reader in Python, a page on the format and the JSON Schemas besides
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

/// The paths of problem and schedule.
fn operands(args: &Args) -> Result<(PathBuf, &Path)> {
    match (args.files.as_slice(), &args.problem) {
        ([schedule], Some(problem)) => Ok((problem.clone(), schedule)),
        ([schedule], None) => Ok((input::problem_beside(schedule)?, schedule)),
        ([problem, schedule], None) => Ok((problem.clone(), schedule)),
        _ => {
            Err(Error::input("the problem is given twice")
                .hint("optpipe export SCHEDULE --problem PROBLEM --to FORMAT"))
        }
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let (problem_file, schedule_file) = operands(args)?;
    let problem: Problem = file::read_checked(&problem_file)?;
    let mut schedule = input::schedule(schedule_file)?;
    if let Some(split) = &args.layer_split {
        schedule.layer_split = Some(split.clone());
    }
    let measured: Option<Measured> = match &args.measured {
        Some(path) => Some(input::measured(path)?),
        None => None,
    };
    if let Some(violation) = check(&problem, &schedule.schedule).violations.first() {
        return Err(Error::input(format!("{}: illegal: {violation}", schedule_file.display()))
            .hint("`optpipe check PROBLEM SCHEDULE` lists every violation"));
    }
    let failed = |e: &dyn std::fmt::Display| Error::input(format!("{}: {e}", schedule_file.display()));
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
        Format::Torch => return torch(args, schedule_file, &problem, &schedule),
    };
    match &args.output {
        Some(folder) if matches!(args.to, Format::Yaml | Format::Json) && names_folder(folder) => {
            let extension = if args.to == Format::Json { "json" } else { "yaml" };
            let problem = match args.to {
                Format::Json => serde_json::to_string(&problem).map_err(|e| unwritable(&e))? + "\n",
                _ => serde_yaml::to_string(&problem).map_err(|e| unwritable(&e))?,
            };
            write_folder(folder, &export::table::folder(extension, text, problem))
        }
        Some(path) => {
            file::write_text(path, &text).map_err(Error::write)?;
            super::wrote(false, path.display());
            Ok(())
        }
        None => super::emit(&text),
    }
}

/// Whether a path is meant as a folder's.
fn names_folder(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().to_string_lossy().ends_with(std::path::is_separator)
}

/// The torch folder: written only once all of it is known to be right.
fn torch(args: &Args, schedule_file: &Path, problem: &Problem, schedule: &ScheduleFile) -> Result<()> {
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
        .map_err(|e| Error::input(format!("{}: {e}", schedule_file.display())))?;
    write_folder(folder, &files)
}

fn write_folder(folder: &Path, files: &[(PathBuf, String)]) -> Result<()> {
    for (name, text) in files {
        let path: PathBuf = Path::new(folder).join(name);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent)
            .map_err(|e| Error::failed(format!("cannot make the folder {}: {e}", parent.display())))?;
        file::write_text(&path, text).map_err(Error::write)?;
    }
    super::wrote(false, format_args!("{} files to {}", files.len(), folder.display()));
    Ok(())
}
