//! `optpipe report`

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use optpipe_configs::file;
use optpipe_solver::solve::SolveOptions;

use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::report::{self, Run};
use crate::sensitivity::file::SensitivityFile;

/// Show what a tune found as a web page that needs nothing else
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One HTML file, which loads nothing: verdict, timeline to zoom into, any two schedules beside each other,
idle time by cause, what more memory or bandwidth would buy, rounds, solver, profile. A tune writes it
by itself; this makes it anew, or elsewhere.

Examples:
  optpipe tune job.yaml --out runs/first
  optpipe report runs/first -o report.html")]
pub(super) struct Args {
    /// A tune's folder
    run_dir: PathBuf,
    /// Where to write the page; default: report.html in the folder
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Show the page in the browser
    #[arg(long)]
    open: bool,
    /// Solve again for what more memory or bandwidth would buy, and keep it in the folder
    #[arg(long)]
    sensitivity: bool,
    /// Time limit of each solve of --sensitivity, e.g. 5s
    #[arg(long, value_parser = super::duration, default_value = "2s", requires = "sensitivity")]
    time_limit: Duration,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut run = Run::read(&args.run_dir)?;
    if args.sensitivity {
        run.sensitivity = Some(solve(args, &run)?);
    }
    let page = report::html(&run)?;
    let path = args.output.clone().unwrap_or_else(|| args.run_dir.join("report.html"));
    file::write_text(&path, &page).map_err(Error::write)?;
    super::wrote(args.quiet, path.display());
    if args.open { open(&path) } else { Ok(()) }
}

fn solve(args: &Args, run: &Run) -> Result<SensitivityFile> {
    let progress = Progress::new(args.quiet);
    let best = run.best();
    let (problem, schedule) = (&best.problem, &best.schedule);
    let options = SolveOptions::default();
    let found = SensitivityFile::solve(problem, schedule, &options, args.time_limit, &progress, interrupt::install())?;
    progress.done();
    let found = found.ok_or_else(|| Error::Interrupted(": nothing was written".to_owned()))?;
    file::write(&args.run_dir.join("sensitivity.yaml"), &found).map_err(Error::write)?;
    Ok(found)
}

/// So long an opener may take to say that it cannot.
const OPENING: Duration = Duration::from_millis(500);

/// Shows a file in the user's browser. An opener may be the browser itself, which runs on: it is not waited for, and
/// Ctrl-C is not for it.
fn open(path: &Path) -> Result<()> {
    let opener = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let failed = |why: &dyn std::fmt::Display| {
        Error::failed(format!("cannot show {}: `{opener}`: {why}", path.display()))
            .hint("open the file in a browser yourself")
    };
    let mut command = Command::new(opener);
    command.arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().map_err(|e| failed(&e))?;
    let begun = Instant::now();
    while begun.elapsed() < OPENING {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(Some(status)) => return Err(failed(&status)),
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            Err(e) => return Err(failed(&e)),
        }
    }
    Ok(())
}
