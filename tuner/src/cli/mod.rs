//! The command line: one module a command. Data goes to stdout, everything else to stderr.

mod budgets;
mod calibrate;
mod check;
mod compare;
mod complaint;
mod completions;
mod devices;
mod doctor;
mod explain;
mod export;
mod gpus;
mod init;
mod input;
mod man;
mod outputs;
mod profile;
mod rehearse;
mod report;
mod run;
mod schema;
mod search;
mod solve;
mod tune;

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};

/// Finds the best pipeline schedule for LLM training on your devices: it measures the layers and the
/// copies, solves for order and offloading within each device's memory, runs the result, and repeats.
#[derive(Debug, Parser)]
#[command(name = "optpipe", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Start here:
  optpipe init -o job.yaml                     # a commented job for a small model
  optpipe tune job.yaml --out runs/first       # profile, solve, run, until throughput converges

Exit codes: 0 fine, 1 failed, 2 bad input, 3 infeasible, 130 interrupted (Ctrl-C ends `solve --watch` with
0: that is how it is meant to end).
OPTPIPE_LOG=debug (or trace) prints what happens inside to stderr.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Args),
    Tune(tune::Args),
    Calibrate(calibrate::Args),
    Profile(profile::Args),
    Search(search::Args),
    Solve(solve::Args),
    Check(check::Args),
    Explain(explain::Args),
    Compare(compare::Args),
    Run(run::Args),
    Rehearse(rehearse::Args),
    Export(export::Args),
    Report(report::Args),
    Schema(schema::Args),
    Devices(devices::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Parses the arguments, runs the command, and reports its error.
pub fn main() -> ExitCode {
    // First of all, while this is the only thread: a device of the CPU backend computes on one core.
    if let Err(e) = optpipe_kernels::cpu::init_threads(std::num::NonZeroUsize::MIN) {
        return failed(&Error::failed(e.to_string()));
    }
    let filter = EnvFilter::try_from_env("OPTPIPE_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_writer(std::io::stderr).with_ansi(coloured()).init();
    // Clap itself prints help to stdout with code 0 and unusable arguments to stderr with code 2.
    let outcome = match Cli::parse().command {
        Command::Init(args) => init::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Search(args) => search::run(&args),
        Command::Solve(args) => solve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Rehearse(args) => rehearse::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Says on stderr what went wrong and returns its exit code.
fn failed(error: &Error) -> ExitCode {
    tracing::debug!("{error:?}");
    // Where even stderr is closed only the exit code is left to say so.
    let _ = std::io::stderr().write_all(complaint::text(error).as_bytes());
    ExitCode::from(error.exit_code())
}

/// Whether stderr shows colours: on a terminal, unless NO_COLOR says otherwise (<https://no-color.org>).
fn coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Says on stderr what was written: stdout is for data.
fn wrote(quiet: bool, what: impl std::fmt::Display) {
    if !quiet {
        // Where stderr is closed nobody wants to know.
        let _ = writeln!(std::io::stderr(), "wrote {what}");
    }
}

/// Prints data on stdout. A reader that has gone away, as `head` does, is no failure.
fn emit(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") })
        .and_then(|()| out.flush());
    match written {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::failed(format!("cannot write to stdout: {e}"))),
        _ => Ok(()),
    }
}

/// Prints text for people on stdout, as wide as a terminal is.
fn emit_words(words: &str) -> Result<()> {
    emit(&crate::text::wrapped(words, crate::table::terminal_width()))
}

/// Prints a value as JSON on stdout.
fn emit_json<T: Serialize>(value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::failed(format!("cannot write JSON: {e}")))?;
    emit(&text)
}

/// What the commands that run schedules on real tensors have in common.
#[derive(Debug, clap::Args)]
struct MeasureArgs {
    /// Measured steps, instead of the job's
    #[arg(long)]
    steps: Option<usize>,
    /// Run even where a device exceeds its capacity
    #[arg(long)]
    no_limit: bool,
    /// Print the measurement as JSON
    #[arg(long)]
    json: bool,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

/// A duration given on the command line.
fn duration(text: &str) -> std::result::Result<std::time::Duration, String> {
    optpipe_configs::size::parse_duration(text).map_err(|e| e.to_string())
}

/// A percentage as a part of 1.
fn percentage(text: &str) -> std::result::Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    number
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .map(|percent| percent / 100.0)
        .ok_or_else(|| format!("expected a percentage above 0 and up to 100 such as 2%, found `{text}`"))
}

/// A size given on the command line.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    match optpipe_configs::size::parse_bytes(text) {
        Ok(0) => Err("expected more than 0 bytes".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(e) => Err(e.to_string()),
    }
}
