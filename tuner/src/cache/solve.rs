//! Solving with the cache.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use optpipe_solver::check::check;
use optpipe_solver::method::Method;
use optpipe_solver::objective::Objective;
use optpipe_solver::order::Order;
use optpipe_solver::problem::{Infeasible, Problem};
use optpipe_solver::schedule::Schedule;
use optpipe_solver::simulate::simulate;
use optpipe_solver::solve::{self, Event, Solution, SolveOptions, StopReason};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::entry::{Entry, Head};
use super::normal::Normal;
use super::{Cache, Key};

/// What the cache had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hit {
    /// The solution itself: nothing was solved.
    Exact,
    /// A solution that was found in less time: the solver started from it.
    Shorter,
    /// A solution of the same problem that was found with other options or by another build: the solver
    /// started from it.
    OtherOptions,
    /// A solution of a similar problem: the solver started from its order.
    Near,
}

impl std::fmt::Display for Hit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Hit::Exact => "solved before: this is the stored schedule, checked again (--no-cache solves anew)",
            Hit::Shorter => "started from the stored schedule of a shorter solve",
            Hit::OtherOptions => "started from the stored schedule of a solve with other options, or by another build",
            Hit::Near => "started from the stored order of a similar problem",
        })
    }
}

/// Times of a similar problem differ by at most this share.
const TOLERANCE: f64 = 0.25;
/// So many similar problems' orders are tried, the nearest ones.
const MOST_STARTS: usize = 4;
/// No further one is tried after this share of the time limit.
const START_SHARE: f64 = 0.05;

/// [`optpipe_solver::solve::solve`] with what the cache knows: a stored solution that is proven optimal,
/// or was found within a time limit at least as long, is returned at once, checked against the problem,
/// if the schedule that the caller starts from is no better; another one is where the solver starts. What
/// is found is stored, merged with what was stored before.
///
/// Looking for a solution is part of the time limit. Methods without search are not cached, and only
/// `auto` starts from what other problems or options left: a method asked for by name shows what it can
/// do itself. A solve that is repeatable (`iterations`) never starts from other solves, as that would make
/// it depend on them.
///
/// # Errors
/// [`Infeasible`], as the solver.
pub fn solve(
    problem: &Problem,
    options: &SolveOptions,
    cache: Option<&Cache>,
    on_event: &mut dyn FnMut(&Event),
    cancel: &AtomicBool,
) -> Result<(Solution, Option<Hit>), Infeasible> {
    let begun = Instant::now();
    let repeatable = options.iterations.is_some();
    let searches = matches!(options.method, Method::Search | Method::Milp | Method::Auto);
    let Some(cache) = cache.filter(|_| searches && !(repeatable && options.start.is_some())) else {
        return Ok((solve::solve(problem, options, on_event, cancel)?, None));
    };
    problem.feasible()?;
    let user = User { problem, options, cache, normal: Normal::of(problem, options.objective) };
    let key = Key::new(&user.normal, options);
    let stored = user.stored(&key);

    // What the caller knows goes first where it is better.
    let known = options.start.as_ref().filter(|known| check(problem, known).is_legal());
    let known = known.map(|known| options.objective.value_ns(problem, known));
    if let Some(stored) = stored.as_ref().filter(|stored| known.is_none_or(|x| stored.solution.value_ns() <= x)) {
        let finished = stored.solution.proven
            || stored.time_limit_ns >= nanoseconds(options.time_limit)
            || repeatable && stored.solution.stop == StopReason::MethodDone;
        if finished {
            return Ok((stored.solution.clone(), Some(Hit::Exact)));
        }
    }
    let bound_ns = stored.as_ref().map_or(0, |stored| stored.solution.bound_ns);
    let start = match stored {
        _ if repeatable => None,
        Some(stored) => {
            let value_ns = stored.solution.value_ns();
            Some(Start {
                value_ns,
                schedule: stored.solution.schedule,
                method: stored.solution.method,
                hit: Hit::Shorter,
            })
        }
        None if options.method == Method::Auto => user.near(&key, begun, cancel),
        None => None,
    };
    let start = start.filter(|start| known.is_none_or(|known| start.value_ns < known));
    let hit = start.as_ref().map(|start| start.hit);
    let mut remaining = options.clone();
    if let Some(start) = start {
        (remaining.start, remaining.start_method) = (Some(start.schedule), Some(start.method));
    }
    remaining.time_limit = options.time_limit.saturating_sub(begun.elapsed());
    let mut solution = solve::solve(problem, &remaining, on_event, cancel)?;
    solution.raise_bound(bound_ns);
    let cut_short = solution.stop == StopReason::Cancelled;
    if !(cut_short && repeatable) {
        let time_limit_ns = if cut_short { 0 } else { nanoseconds(options.time_limit) };
        user.store(&key, Stored { solution: solution.clone(), time_limit_ns });
    }
    Ok((solution, hit))
}

/// A stored solution in the problem's own times.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) solution: Solution,
    pub(super) time_limit_ns: u64,
}

/// A schedule to start from.
struct Start {
    value_ns: i64,
    schedule: Schedule,
    /// What found it, or the order that led to it.
    method: String,
    hit: Hit,
}

/// One who uses the cache for a problem.
pub(super) struct User<'a> {
    pub(super) problem: &'a Problem,
    pub(super) options: &'a SolveOptions,
    pub(super) cache: &'a Cache,
    pub(super) normal: Normal,
}

impl User<'_> {
    /// What is stored for this problem and these options, if it is true.
    pub(super) fn stored(&self, key: &Key) -> Option<Stored> {
        self.restore(self.cache.exact(key, &self.normal)?)
    }

    /// What an entry says about the problem, if that is true.
    fn restore(&self, entry: Entry) -> Option<Stored> {
        let unit_ns = self.normal.unit_ns;
        let mut solution = entry.solution;
        solution.schedule = self.normal.restored(&solution.schedule)?;
        solution.bound_ns = solution.bound_ns.checked_mul(unit_ns)?;
        // First of all: nothing else is made for schedules that may be anything.
        let report = check(self.problem, &solution.schedule);
        if !report.is_legal() {
            tracing::debug!("cache: a stored schedule is illegal and ignored: {:?}", report.violations.first());
            return None;
        }
        solution.objective = self.options.objective;
        solution.makespan_ns = solution.schedule.makespan_ns;
        solution.period_ns = Objective::Period.value_ns(self.problem, &solution.schedule);
        if solution.bound_ns > solution.value_ns() {
            tracing::debug!("cache: a stored bound is above its schedule, and both are ignored");
            return None;
        }
        solution.proven = solution.value_ns() == solution.bound_ns;
        if entry.head.unit_ns != unit_ns {
            // These have the times of the problem that was solved.
            solution.parts.clear();
            solution.trace.clear();
            solution.milp = None;
        }
        Some(Stored { solution, time_limit_ns: entry.head.time_limit_ns })
    }

    /// Stores a solution, merged with what is stored by now.
    pub(super) fn store(&self, key: &Key, found: Stored) {
        let _lock = self.cache.lock();
        let merged = match self.stored(key) {
            Some(stored) => stored.merged(found, self.options.iterations.is_some()),
            None => found,
        };
        if let Some(entry) = self.entry(key, merged) {
            self.cache.store(key, &entry);
        }
    }

    /// The entry for a solution; `None` where a time is no multiple of the unit.
    fn entry(&self, key: &Key, found: Stored) -> Option<Entry> {
        let Stored { mut solution, time_limit_ns } = found;
        let Normal { problem, unit_ns } = &self.normal;
        solution.schedule = self.normal.reduced(&solution.schedule)?;
        solution.makespan_ns = solution.schedule.makespan_ns;
        solution.period_ns = Objective::Period.value_ns(problem, &solution.schedule);
        // Some schedule of the least makespan takes a multiple of the unit, so that bounds may be rounded
        // up to one; for the period the unit is 1.
        solution.bound_ns = solution.bound_ns.checked_add(unit_ns - 1)? / unit_ns;
        let (options, problem) = (key.options.clone(), problem.clone());
        Some(Entry { head: Head { options, problem, time_limit_ns, unit_ns: *unit_ns }, solution })
    }

    /// The best schedule of this problem that an order of a similar one leads to.
    fn near(&self, key: &Key, begun: Instant, cancel: &AtomicBool) -> Option<Start> {
        let mut best: Option<Start> = None;
        for (i, opened) in self.cache.near(key, &self.normal, TOLERANCE).into_iter().take(MOST_STARTS).enumerate() {
            // The nearest one is tried whatever the limit: starting from it is what makes the most of it.
            let late = i > 0 && begun.elapsed() > self.options.time_limit.mul_f64(START_SHARE);
            if late || cancel.load(Ordering::SeqCst) {
                break;
            }
            let Some(start) = opened.entry().and_then(|entry| self.start(entry)) else { continue };
            if best.as_ref().is_none_or(|best| start.value_ns < best.value_ns) {
                best = Some(start);
            }
        }
        best
    }

    /// The schedule that a similar problem's order leads to.
    fn start(&self, entry: Entry) -> Option<Start> {
        let (problem, schedule) = (&entry.head.problem, &entry.solution.schedule);
        if !check(problem, schedule).is_legal() {
            return None;
        }
        // In normal form both name their channels alike, so that the order of one is one of the other.
        let schedule = simulate(&self.normal.problem, &Order::of(problem, schedule)).ok()?.schedule;
        let schedule = self.normal.restored(&schedule)?;
        // One objective's normal form divides times, the other's does not.
        let [other, own] = [problem, &self.normal.problem].map(|x| Normal::of(x, Objective::Makespan).problem);
        let hit = if other == own { Hit::OtherOptions } else { Hit::Near };
        let value_ns = self.options.objective.value_ns(self.problem, &schedule);
        Some(Start { value_ns, schedule, method: entry.solution.method, hit })
    }
}

impl Stored {
    /// What two solves of one problem under the same options know together: the better schedule, the
    /// higher bound, the longer limit. Of repeatable solves, one that came to its end is the answer
    /// whatever others found.
    fn merged(self, other: Stored, repeatable: bool) -> Stored {
        let rank = |x: &Stored| {
            let ended = matches!(x.solution.stop, StopReason::MethodDone | StopReason::Optimal);
            (repeatable && !ended, x.solution.value_ns(), Reverse(x.time_limit_ns))
        };
        let (mut best, other) = if rank(&self) <= rank(&other) { (self, other) } else { (other, self) };
        best.solution.raise_bound(other.solution.bound_ns);
        best.time_limit_ns = best.time_limit_ns.max(other.time_limit_ns);
        best
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
