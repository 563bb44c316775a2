//! `optpipe schema`

use clap::ValueEnum;
use schemars::{Schema, schema_for};

use crate::error::Result;

/// Print the JSON Schemas of the files that OptPipe reads and writes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without a name: one JSON object with the schema of every kind of file.

Example:
  optpipe schema job > job.schema.json")]
pub(super) struct Args {
    /// One kind of file
    kind: Option<File>,
}

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum File {
    Job,
    Hardware,
    Profile,
    Problem,
    Schedule,
    Measured,
    Rehearsed,
    Round,
    Solve,
    Sensitivity,
    Summary,
    Tune,
    Search,
}

fn schema(file: File) -> Schema {
    match file {
        File::Job => schema_for!(optpipe_configs::job::Job),
        File::Hardware => schema_for!(optpipe_configs::hardware::Hardware),
        File::Profile => schema_for!(optpipe_configs::profile::Profile),
        File::Problem => schema_for!(optpipe_solver::problem::Problem),
        File::Schedule => schema_for!(optpipe_solver::schedule::ScheduleFile),
        File::Measured => schema_for!(crate::measured::Measured),
        File::Rehearsed => schema_for!(crate::rehearsed::Rehearsed),
        File::Round => schema_for!(crate::summary::Round),
        File::Solve => schema_for!(crate::solved::Solved),
        File::Sensitivity => schema_for!(crate::sensitivity::file::SensitivityFile),
        File::Summary => schema_for!(crate::summary::Summary),
        File::Search => schema_for!(crate::structure::report::Report),
        File::Tune => schema_for!(crate::tune::folder::Marker),
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    match args.kind {
        Some(file) => super::emit_json(&schema(file)),
        None => {
            let all: serde_json::Map<String, serde_json::Value> = File::value_variants()
                .iter()
                .filter_map(|&file| Some((file.to_possible_value()?.get_name().to_owned(), schema(file).to_value())))
                .collect();
            super::emit_json(&all)
        }
    }
}
