//! Solving with the cache.

use std::sync::atomic::AtomicBool;

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

use super::normal::Normal;
use super::{Cache, Entry, Key};

/// What the cache had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hit {
    /// The solution itself: nothing was solved.
    Exact,
    /// A solution that was found in less time: the solver started from it.
    Shorter,
    /// A solution of a similar problem: the solver started from its order.
    Near,
}

impl std::fmt::Display for Hit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Hit::Exact => "solved before: this is the stored schedule, checked again (--no-cache solves anew)",
            Hit::Shorter => "started from the stored schedule of a shorter solve",
            Hit::Near => "started from the stored order of a similar problem",
        })
    }
}

/// Times of a similar problem differ by at most this share.
const TOLERANCE: f64 = 0.25;

/// [`optpipe_solver::solve::solve`] with what the cache knows: a stored solution that is proven optimal,
/// or was found within a time limit at least as long, is returned at once, checked against the problem;
/// another one is where the solver starts. What is found is stored.
///
/// Methods without search are not cached. A solve that is repeatable (`iterations`) never starts from
/// other solves, as that would make it depend on them.
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
    let repeatable = options.iterations.is_some();
    let searches = matches!(options.method, Method::Search | Method::Milp | Method::Auto);
    let Some(cache) = cache.filter(|_| searches && !(repeatable && options.start.is_some())) else {
        return Ok((solve::solve(problem, options, on_event, cancel)?, None));
    };
    problem.feasible()?;
    let normal = Normal::of(problem);
    let key = Key::new(&normal, options);
    let stored = cache.exact(&key, &normal).and_then(|entry| restore(problem, &normal, &entry));
    if let Some(stored) = &stored {
        let finished = stored.solution.proven
            || stored.time_limit_ns >= nanoseconds(options.time_limit)
            || repeatable && stored.solution.stop == StopReason::MethodDone;
        if finished {
            return Ok((stored.solution.clone(), Some(Hit::Exact)));
        }
    }
    let start = match stored {
        _ if repeatable => None,
        Some(stored) => Some((stored.solution.schedule, stored.solution.method, Hit::Shorter)),
        None => near(cache, &key, &normal, options.objective).map(|(schedule, method)| (schedule, method, Hit::Near)),
    };
    // What the caller knows goes first where it is better.
    let value = |schedule: &Schedule| options.objective.value_ns(problem, schedule);
    let known = options.start.as_ref().filter(|known| check(problem, known).is_legal()).map(value);
    let start = start.filter(|(schedule, ..)| known.is_none_or(|known| value(schedule) < known));
    let (solution, hit) = match start {
        None => (solve::solve(problem, options, on_event, cancel)?, None),
        Some((schedule, method, hit)) => {
            let options = SolveOptions { start: Some(schedule), ..options.clone() };
            let mut solution = solve::solve(problem, &options, on_event, cancel)?;
            // Where nothing beat the stored schedule, what found that one is the answer.
            if solution.method == "start" {
                solution.method = method;
            }
            (solution, Some(hit))
        }
    };
    let cut_short = solution.stop == StopReason::Cancelled;
    let time_limit_ns = if cut_short { 0 } else { nanoseconds(options.time_limit) };
    if let Some(entry) = entry(&normal, &key, &solution, time_limit_ns).filter(|_| !(cut_short && repeatable)) {
        cache.store(&key, &entry);
    }
    Ok((solution, hit))
}

/// A stored solution in the problem's own times.
struct Stored {
    solution: Solution,
    time_limit_ns: u64,
}

/// What an entry says about the problem, if that is true.
fn restore(problem: &Problem, normal: &Normal, entry: &Entry) -> Option<Stored> {
    let mut solution = entry.solution.clone();
    solution.schedule = normal.restored(&solution.schedule)?;
    solution.makespan_ns = solution.schedule.makespan_ns;
    solution.period_ns = Objective::Period.value_ns(problem, &solution.schedule);
    solution.bound_ns = solution.bound_ns.checked_mul(normal.unit_ns)?;
    let report = check(problem, &solution.schedule);
    if !report.is_legal() || solution.bound_ns > solution.value_ns() {
        tracing::debug!("cache: a stored schedule is illegal and ignored: {:?}", report.violations.first());
        return None;
    }
    solution.proven = solution.value_ns() <= solution.bound_ns;
    // These tell of the time when it was solved.
    solution.parts.clear();
    solution.trace.clear();
    Some(Stored { solution, time_limit_ns: entry.time_limit_ns })
}

/// The entry for a solution.
fn entry(normal: &Normal, key: &Key, solution: &Solution, time_limit_ns: u64) -> Option<Entry> {
    let schedule = normal.reduced(&solution.schedule)?;
    let mut stored = solution.clone();
    stored.makespan_ns = schedule.makespan_ns;
    stored.period_ns = Objective::Period.value_ns(&normal.problem, &schedule);
    stored.schedule = schedule;
    // Some optimal schedule is a multiple of the unit long, so bounds may be rounded up to one.
    stored.bound_ns = solution.bound_ns.checked_add(normal.unit_ns - 1)? / normal.unit_ns;
    stored.parts.clear();
    stored.trace.clear();
    stored.milp = None;
    Some(Entry { options: key.options.clone(), problem: normal.problem.clone(), time_limit_ns, solution: stored })
}

/// The best schedule of this problem that an order of a similar one leads to, and what found that order.
fn near(cache: &Cache, key: &Key, normal: &Normal, objective: Objective) -> Option<(Schedule, String)> {
    let similar = cache.near(key).into_iter().filter(|entry| {
        // Two shapes may have one fingerprint.
        let same = entry.problem.placement == normal.problem.placement
            && entry.problem.microbatches == normal.problem.microbatches
            && entry.problem.offload_channel == normal.problem.offload_channel
            && entry.problem.reload_channel == normal.problem.reload_channel;
        same && normal.distance(&entry.problem).is_some_and(|distance| distance <= TOLERANCE)
    });
    // In normal form both name their channels alike, so that the order of one is one of the other.
    let starts = similar.filter_map(|entry| {
        let order = Order::of(&entry.problem, &entry.solution.schedule);
        let schedule = simulate(&normal.problem, &order).ok()?.schedule;
        Some((objective.value_ns(&normal.problem, &schedule), schedule, entry.solution.method))
    });
    let (_, schedule, method) = starts.min_by_key(|(value, ..)| *value)?;
    Some((normal.restored(&schedule)?, method))
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
