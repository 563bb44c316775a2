//! `optpipe man`.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_mangen::Man;
use optpipe_configs::file;

use super::Cli;
use crate::error::{Error, Result};

/// Write the manual pages, one a command
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  optpipe man -o man1
  man ./man1/optpipe-tune.1")]
pub(super) struct Args {
    /// The folder they go into
    #[arg(short, long, default_value = ".")]
    output: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut root = Cli::command();
    root.build();
    let pages = std::iter::once(("optpipe.1".to_owned(), root.clone())).chain(
        root.get_subcommands()
            .filter(|command| command.get_name() != "help")
            .map(|command| (format!("optpipe-{}.1", command.get_name()), command.clone())),
    );
    let failed = |e: std::io::Error| Error::failed(format!("cannot write a manual page: {e}"));
    for (name, command) in pages {
        let title = name.trim_end_matches(".1").to_owned();
        let mut page = Vec::new();
        Man::new(command).title(title.to_uppercase()).render(&mut page).map_err(failed)?;
        let text = String::from_utf8(page).map_err(|e| Error::failed(e.to_string()))?;
        let path = args.output.join(&name);
        file::write_text(&path, &text).map_err(Error::write)?;
        super::wrote(false, path.display());
    }
    Ok(())
}
