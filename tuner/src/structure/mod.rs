//! The structure search: what a job leaves `auto` (layer split, chunks a device, placement, microbatch
//! size at a fixed global batch), decided by what the schedules of each structure take.
//!
//! ```text
//! sizes x layouts ─ splits ─ cheap bound ─ lower bound ─ list scheduling ─ search, halving ─ full solve
//!                                  └────────────┴── cut: no schedule of it can be the best ──┘
//! ```
//!
//! A structure is cut as soon as a bound proves that its best schedule is no shorter than one that is
//! known of another. What is left shares the time by successive halving (Jamieson and Talwalkar 2016):
//! the better half goes on and gets twice the time each.

mod candidates;
mod front;
mod halving;
pub mod profiles;
pub mod report;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::Job;
use optpipe_configs::model::Model;
use optpipe_solver::method::Method;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::{Solution, SolveOptions, solve};

use crate::cache::{self, Cache};
use crate::error::{Error, Result};
use crate::plan::{self, Plan};
use crate::progress::Progress;
use candidates::{Candidate, State};
use profiles::Profiles;
use report::{Fate, Report};

/// What a search works with.
#[derive(Clone, Copy)]
pub struct Search<'a> {
    /// What is open and what is not.
    pub job: &'a Job,
    /// Its model.
    pub model: &'a Model,
    /// Its devices and links.
    pub hardware: &'a Hardware,
    /// Its layers, for each of [`Job::microbatch_sizes`].
    pub profiles: &'a Profiles,
    /// Problems solved before.
    pub cache: Option<&'a Cache>,
    /// Time for all of it.
    pub time_limit: Duration,
    /// Which memory-time front to find.
    pub front: &'a Front,
    /// Where progress is shown.
    pub progress: &'a Progress,
    /// Set when the user wants to stop.
    pub cancel: &'a AtomicBool,
}

/// The capacities of a memory-time front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Front {
    /// No front.
    None,
    /// So many, from the least that any structure can run in to what none needs more than.
    Points(usize),
    /// These, each for all devices, bytes.
    Capacities(Vec<u64>),
}

/// The best structure and its schedule.
#[derive(Debug, Clone)]
pub struct Found {
    /// The job with everything decided.
    pub job: Job,
    /// Its problem.
    pub plan: Plan,
    /// The schedule.
    pub solution: Solution,
    /// What was looked at.
    pub report: Report,
}

/// Share of the time that the front takes, where there is one.
const FRONT_SHARE: f64 = 0.35;

impl Search<'_> {
    /// Finds the structure with the shortest step.
    ///
    /// # Errors
    /// Bad input where profiles, hardware and job do not belong together; infeasible where no structure
    /// fits, with what the one that lacks the least lacks; interrupted before anything was solved.
    pub fn run(&self) -> Result<Found> {
        let begun = Instant::now();
        let fronted = !matches!(self.front, Front::None);
        let time = if fronted { self.time_limit.mul_f64(1.0 - FRONT_SHARE) } else { self.time_limit };
        let mut candidates = self.candidates()?;
        self.progress.line(&format!(
            "{} structures: {} microbatch sizes, {} layouts of chunks and placement, up to {} layer splits each",
            candidates.len(),
            self.job.microbatch_sizes().len(),
            self.job.layouts(self.model.layers + 2).len(),
            candidates::SPLITS
        ));
        self.progress.left_in_all(Some(self.time_limit.saturating_sub(begun.elapsed())));
        self.halve(&mut candidates, begun, time)?;
        let Some(best) = best(&candidates) else {
            // The structure that lacks the least says what would help.
            let least = candidates.iter().min_by_key(|x| x.missing_bytes);
            if let Some(least) = least.filter(|x| x.missing_bytes > 0) {
                let profile = self.profiles.get(least.structure.microbatch_size)?;
                plan::problem(&profile.0, self.hardware, &self.job.with_structure(&least.structure), self.model)?;
            }
            if self.cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted(": no structure was solved yet".to_owned()));
            }
            return Err(Error::failed("no structure was solved"));
        };
        candidates[best].fate = Fate::Chosen;
        let (best, front) = if fronted { self.front(&mut candidates, best, begun)? } else { (best, Vec::new()) };
        let chosen = &candidates[best];
        let State::Solved(solution) = &chosen.state else { return Err(Error::failed("no structure was solved")) };
        Ok(Found {
            job: self.job.with_structure(&chosen.structure),
            plan: chosen.plan.clone(),
            solution: (**solution).clone(),
            report: Report::new(&candidates, best, front),
        })
    }

    /// A solve of one structure's problem.
    fn solve(
        &self,
        problem: &Problem,
        method: Method,
        time_limit: Duration,
        start: Option<&Solution>,
    ) -> Result<Solution> {
        let iterations = Some(self.job.solver.iterations).filter(|&n| n > 0);
        let options = SolveOptions {
            method,
            // By iterations the clock decides nothing.
            time_limit: if iterations.is_some() { self.time_limit } else { time_limit },
            seed: self.job.solver.seed,
            start: start.map(|solution| solution.schedule.clone()),
            start_method: start.map(|solution| solution.method.clone()),
            iterations,
            ..SolveOptions::default()
        };
        // Only a full solve is worth remembering.
        if method == Method::Auto {
            return Ok(cache::solve(problem, &options, self.cache, &mut |_| {}, self.cancel)?.0);
        }
        Ok(solve(problem, &options, &mut |_| {}, self.cancel)?)
    }

    /// Whether time is over or the user has asked to stop. By iterations the clock decides nothing.
    fn over(&self, deadline: Instant) -> bool {
        self.cancel.load(Ordering::SeqCst) || (self.job.solver.iterations == 0 && Instant::now() >= deadline)
    }
}

/// The solved candidate with the shortest step; of equals the first.
fn best(candidates: &[Candidate]) -> Option<usize> {
    let solved = candidates.iter().enumerate().filter_map(|(i, x)| Some((x.makespan_ns()?, i)));
    solved.min().map(|(_, i)| i)
}

#[cfg(test)]
mod tests;
