//! `optpipe solve --watch`

use std::time::{Duration, Instant};

use optpipe_configs::file;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::{Solution, SolveOptions};

use super::{Args, Found, Input};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::summary::Predicted;
use crate::watch::{Follow, Watch};

/// Solves for so long or until it is interrupted, which is no failure here: the files hold the best so far.
pub(super) fn run(
    args: &Args,
    mut input: Input,
    options: &SolveOptions,
    cache: Option<&Cache>,
    lasting: Option<Duration>,
    progress: &Progress,
) -> Result<()> {
    let follow = args.measured.clone().map(|path| Follow { path, tolerance: args.drift });
    let watch = Watch {
        problem: &input.problem,
        options,
        cache,
        follow: follow.as_ref(),
        deadline: lasting.and_then(|lasting| Instant::now().checked_add(lasting)),
        progress,
        cancel: interrupt::install(),
    };
    match lasting {
        Some(lasting) => progress.phase_within("solving on", lasting),
        None => progress.phase("solving on, until it is interrupted"),
    }
    let mut write = |problem: &Problem, new_problem: bool, solution: &Solution| {
        // A trainer reads both when the schedule is new: the problem goes first.
        if let Some(path) = args.problem_out.as_ref().filter(|_| new_problem) {
            file::write(path, problem).map_err(Error::write)?;
        }
        args.output.as_ref().map_or(Ok(()), |path| input.write(path, problem, solution))
    };
    let (problem, solution) = watch.run(&mut write)?;
    progress.done();
    let predicted = Predicted::of(&problem, &solution.schedule, input.tokens_per_step);
    input.problem = problem;
    let found = Found {
        input: &input,
        solution: &solution,
        predicted,
        hit: None,
        robust: None,
        sensitivity: None,
        written: args.output.as_deref(),
    };
    found.emit(args)
}
