//! `optpipe schema`

use std::collections::BTreeMap;

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser};
use schemars::Schema;

use super::outputs::{self, Output};
use crate::error::Result;
use crate::readers::{READERS, Reader};

/// Print the JSON Schemas of the files that OptPipe reads and writes, and of what `--json` prints
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without a name: one JSON object with all of them.

Examples:
  optpipe schema job > job.schema.json
  optpipe schema output-solve      # what `optpipe solve --json` prints")]
pub(super) struct Args {
    /// A kind of file, or `output-` and a command for what that prints with `--json`
    #[arg(value_parser = PossibleValuesParser::new(names()))]
    kind: Option<String>,
}

/// What there are schemas of, files first.
fn names() -> impl Iterator<Item = PossibleValue> {
    let files = READERS.iter().filter(|reader| reader.has_schema()).map(|reader| PossibleValue::new(reader.name));
    files.chain(Output::value_variants().iter().filter_map(ValueEnum::to_possible_value))
}

fn schema(name: &str) -> Option<Schema> {
    let file = READERS.iter().find(|reader| reader.name == name).and_then(Reader::schema);
    file.or_else(|| Output::from_str(name, false).ok().map(outputs::schema))
}

pub(super) fn run(args: &Args) -> Result<()> {
    match &args.kind {
        // The parser has seen to it that there is one.
        Some(name) => super::emit_json(&schema(name)),
        None => {
            let names = names().map(|name| name.get_name().to_owned());
            let all: BTreeMap<String, Option<Schema>> = names.map(|name| (name.clone(), schema(&name))).collect();
            super::emit_json(&all)
        }
    }
}
