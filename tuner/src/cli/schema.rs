//! `optpipe schema`

use clap::builder::PossibleValuesParser;

use crate::error::Result;
use crate::readers::READERS;

/// Print the JSON Schemas of the files that OptPipe reads and writes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without a name: one JSON object with the schema of every kind of file.

Example:
  optpipe schema job > job.schema.json")]
pub(super) struct Args {
    /// One kind of file
    #[arg(value_parser = PossibleValuesParser::new(READERS.iter().filter(|x| x.has_schema()).map(|x| x.name)))]
    kind: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let schemas = READERS.iter().filter_map(|reader| Some((reader.name, reader.schema()?.to_value())));
    match &args.kind {
        Some(kind) => {
            let one = schemas.filter(|(name, _)| name == kind).map(|(_, schema)| schema).next();
            super::emit_json(&one)
        }
        None => super::emit_json(&schemas.collect::<std::collections::BTreeMap<_, _>>()),
    }
}
