//! `optpipe init`

use std::path::PathBuf;

use optpipe_configs::file;
use optpipe_configs::job::{Batch, Job};
use optpipe_configs::model::Model;

use crate::error::{Error, Result};

/// Write a commented job file with every field and its default
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  optpipe init --model llama-15m -o job.yaml
  optpipe tune job.yaml --out runs/first")]
pub(super) struct Args {
    /// A preset, or the path of a Hugging Face config.json relative to the job file
    #[arg(long, default_value = "llama-15m")]
    model: String,
    /// Where to write; `-` is stdout
    #[arg(short, long, default_value = "job.yaml")]
    output: PathBuf,
    /// Overwrite an existing file
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let model = Model::read(&args.model, args.output.parent())?;
    let text = short_enough(Job::template(&args.model), model.max_positions);
    if args.output.as_os_str() == "-" {
        return super::emit(&text);
    }
    if args.output.exists() && !args.force {
        return Err(Error::input(format!("{}: exists already", args.output.display()))
            .hint("--force overwrites it, -o chooses another name"));
    }
    file::write_text(&args.output, &text).map_err(Error::write)?;
    super::wrote(false, args.output.display());
    Ok(())
}

/// The job with sequences that the model has positions for: the default is too long for small ones.
fn short_enough(text: String, positions: usize) -> String {
    let default = Batch::default().sequence_length;
    if positions >= default {
        return text;
    }
    let line = format!("  sequence_length: {default}\n");
    text.replace(
        &line,
        &format!("  # (Left out, {default}: this model has fewer positions.)\n  sequence_length: {positions}\n"),
    )
}
