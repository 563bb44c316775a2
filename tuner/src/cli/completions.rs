//! `optpipe completions`.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::Cli;
use crate::error::{Error, Result};

/// Print what makes a shell complete commands and options
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  optpipe completions bash > optpipe.bash
  source optpipe.bash")]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "optpipe", &mut script);
    super::emit(&String::from_utf8(script).map_err(|e| Error::failed(e.to_string()))?)
}
