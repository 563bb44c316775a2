//! The MILP of OptPipe (arXiv 2510.05186, section 4): start times, order binaries between the ops of a
//! queue, offload decisions, memory rows, channels. It improves a given schedule, proves it optimal, or
//! says how far from the optimum it can be.
//!
//! ```text
//! scale ── network (windows, forced orders) ── model (memory, cuts) ── engine (HiGHS) ── extract
//! ```
//!
//! Each model has a target: the makespan is at most that, which is below the best known one. The lower the
//! target, the narrower the windows and the smaller the model. A solution is an improvement; infeasibility
//! is a bound; so targets between the known bound and the best known schedule close in on the optimum.
//! That bound is HiGHS's word, within its floating-point tolerances; the bounds of [`crate::bound`] are exact.
//!
//! Where nothing can be offloaded, microbatches may be kept in order at every stage without loss. With
//! offloading that is a restriction: the model is then solved in that order first, being far smaller, for
//! improvements; and then in full, which alone yields a bound.

mod crowding;
mod cuts;
pub(crate) mod engine;
mod extract;
mod improve;
mod memory;
mod model;
mod network;
pub(crate) mod scale;
mod size;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;
mod watch;

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::check;
use crate::order::Order;
use crate::problem::Problem;
use crate::schedule::Schedule;
use crate::simulate::simulate;

/// Most binaries of a model that is built: larger ones do not leave the root of the tree in a minute.
pub const MOST_BINARIES: usize = 30_000;

/// Limits of [`improve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MilpOptions {
    /// Time for everything, building the models included.
    pub time_limit: Duration,
    /// Threads of HiGHS.
    pub threads: usize,
}

impl Default for MilpOptions {
    fn default() -> Self {
        MilpOptions { time_limit: Duration::from_secs(30), threads: 1 }
    }
}

/// Why there is no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MilpError {
    /// The schedule to improve is not legal.
    #[error("the schedule to start from is not legal: {0}")]
    IllegalStart(String),
    /// The model would be too large to be of use.
    #[error("the model would have about {binaries} binaries, more than the {MOST_BINARIES} it is built with")]
    TooLarge {
        /// Estimated binaries.
        binaries: usize,
    },
    /// HiGHS failed.
    #[error("the MILP solver failed: {0}")]
    Solver(String),
}

/// Size of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MilpSize {
    /// Variables, binaries included.
    pub variables: usize,
    /// Binaries.
    pub binaries: usize,
    /// Rows.
    pub rows: usize,
}

/// One step of a solve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MilpPoint {
    /// Time since the start, s.
    pub time_s: f64,
    /// Makespan of the best schedule so far, ns.
    pub incumbent_ns: i64,
    /// No schedule is shorter, ns.
    pub bound_ns: i64,
}

/// What the MILP did.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MilpStats {
    /// Models solved, or refuted before any search.
    pub models: usize,
    /// Variables of the largest model solved, binaries included.
    pub variables: usize,
    /// Its binaries.
    pub binaries: usize,
    /// Its rows.
    pub rows: usize,
    /// Best bound that the root of a tree gave, ns, of models that lose no schedule; None if there were
    /// none.
    pub root_bound_ns: Option<i64>,
    /// No schedule that keeps the microbatches in order at every stage is shorter, ns: equal to
    /// `bound_ns` where nothing can be offloaded; None if nothing beyond the bound given was proven.
    pub in_order_bound_ns: Option<i64>,
    /// Nodes of the trees of all models.
    pub nodes: i64,
    /// Time taken, s.
    pub time_s: f64,
    /// Gap over time.
    pub points: Vec<MilpPoint>,
}

/// Result of [`improve`].
#[derive(Debug, Clone, PartialEq)]
pub struct MilpOutcome {
    /// A schedule shorter than the one given, re-derived by the simulator and checked; None if none was
    /// found.
    pub schedule: Option<Schedule>,
    /// No legal schedule at all is shorter, ns; None if the MILP proved nothing beyond the bound given.
    pub bound_ns: Option<i64>,
    /// Whether the best schedule, found or given, is optimal.
    pub proven: bool,
    /// What was done.
    pub stats: MilpStats,
}

/// Size of the full model, estimated without building it: windows and forced orders, which often take
/// away half of it, are not counted in.
pub fn size(problem: &Problem) -> MilpSize {
    size::estimate(problem, !size::may_offload(problem))
}

/// What others have found in the meantime.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Known {
    /// A shorter schedule than before; it must be legal.
    pub schedule: Option<Schedule>,
    /// No schedule is shorter, ns; 0 if nothing is new.
    pub bound_ns: i64,
}

/// Improves a legal schedule, or proves it optimal. `lower_bound_ns` is a bound that is already known.
/// `on_progress` hears of every better schedule and bound; `news` is asked, every few milliseconds, for what
/// others have found. Time limit and `cancel` end it within moments: what HiGHS does then no one waits for.
///
/// # Errors
/// [`MilpError`]; once there is a better schedule or bound, nothing is an error any more.
pub fn improve(
    problem: &Problem,
    start: &Schedule,
    lower_bound_ns: i64,
    options: &MilpOptions,
    on_progress: &mut dyn FnMut(&MilpPoint, Option<&Schedule>),
    news: &mut dyn FnMut() -> Known,
    cancel: &AtomicBool,
) -> Result<MilpOutcome, MilpError> {
    let begin = Instant::now();
    let report = check(problem, start);
    if let Some(violation) = report.violations.first() {
        return Err(MilpError::IllegalStart(violation.clone()));
    }
    // The same order again, without the waiting that it does not need.
    let compact = simulate(problem, &Order::of(problem, start)).ok().map(|x| x.schedule);
    let given = report.makespan_ns;
    let compact = compact.filter(|x| x.makespan_ns < given && check(problem, x).is_legal());
    let best = compact.clone().unwrap_or_else(|| Schedule { makespan_ns: given, ..start.clone() });
    let left = MilpOptions { time_limit: options.time_limit.saturating_sub(begin.elapsed()), ..*options };
    let known_ns = best.makespan_ns;
    let watched = watch::run(problem, best, lower_bound_ns, &left, on_progress, news, cancel);
    let schedule = watched.schedule.or(compact);
    if let (Err(error), None, None) = (watched.result, &schedule, watched.bound) {
        return Err(error);
    }
    let makespan_ns = schedule.as_ref().map_or(known_ns, |x| x.makespan_ns);
    let mut stats = watched.stats;
    stats.time_s = begin.elapsed().as_secs_f64();
    Ok(MilpOutcome {
        proven: watched.bound.unwrap_or(lower_bound_ns) >= makespan_ns,
        bound_ns: watched.bound,
        schedule,
        stats,
    })
}
