//! The memory-time front of one problem: how long a step takes with how much memory, by each textbook method, as it is
//! and completed by offloads, by PipeOffload, and by us.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use optpipe_solver::check::check;
use optpipe_solver::method::Method;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;
use optpipe_solver::solve::{SolveOptions, solve};
use optpipe_solver::textbook;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::on;
use crate::error::Result;
use crate::progress::Progress;

/// Limits that are looked at beside the problem's own.
const LIMITS: usize = 9;

/// A textbook schedule of the problem, whether or not it fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MethodPoint {
    /// The method.
    pub method: String,
    /// Its peak over the limit, on the device where that is largest.
    pub memory: f64,
    /// Its makespan, ns.
    pub makespan_ns: i64,
}

/// The best schedule found under one limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitPoint {
    /// The limit of every device, over the problem's own.
    pub memory: f64,
    /// The makespan of the best schedule found, ns.
    pub makespan_ns: i64,
    /// No schedule under this limit is shorter, ns.
    pub bound_ns: i64,
}

/// What a way to schedule finds under one limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WayPoint {
    /// The limit of every device, over the problem's own.
    pub memory: f64,
    /// The makespan of its schedule, ns.
    pub makespan_ns: i64,
    /// The method that found it.
    pub method: String,
}

/// Memory and time of several schedules of one problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryTime {
    /// The textbook methods that are made for the placement.
    pub methods: Vec<MethodPoint>,
    /// Ours by list scheduling, from little memory to much; limits under which nothing can run are left out. A point
    /// is never slower than the one before.
    pub ours: Vec<LimitPoint>,
    /// Ours by everything that the solver has, under some of these limits. Files of older versions have none, nor
    /// what follows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auto: Vec<WayPoint>,
    /// PipeOffload under the same limits, where it can run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pipe_offload: Vec<WayPoint>,
    /// The textbook method that is the fastest where its order is completed by offloads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub textbook_offload: Vec<WayPoint>,
    /// Time limit of each solve, ns.
    pub time_limit_ns: u64,
}

/// The textbook methods that are made for the problem's placement, with their schedules; the memory limit does
/// not count.
pub fn textbook_schedules(problem: &Problem) -> Vec<(Method, Schedule)> {
    let methods = Method::ALL.into_iter().filter(|method| method.is_textbook());
    methods.filter_map(|method| Some((method, textbook::schedule(problem, method).ok()?))).collect()
}

/// The front around a problem and the best schedule known for it.
///
/// # Errors
/// Infeasible, where the problem itself is.
pub fn memory_time(
    problem: &Problem,
    schedule: &Schedule,
    options: &SolveOptions,
    time_limit: Duration,
    progress: &Progress,
    cancel: &AtomicBool,
) -> Result<MemoryTime> {
    let methods: Vec<MethodPoint> = textbook_schedules(problem)
        .into_iter()
        .map(|(method, schedule)| MethodPoint {
            method: method.name().to_owned(),
            memory: share(&check(problem, &schedule).peak_bytes, problem),
            makespan_ns: schedule.makespan_ns,
        })
        .collect();
    let limits: Vec<(f64, Problem)> = limits(problem, &methods)
        .into_iter()
        .map(|limit| (limit, with_limit(problem, limit)))
        .filter(|(_, limited)| limited.feasible().is_ok())
        .collect();
    let quickly = Quickly { problem, until: Instant::now() + QUICK.max(4 * time_limit), seed: options.seed, cancel };
    let mut front = MemoryTime {
        methods,
        ours: Vec::new(),
        auto: Vec::new(),
        pipe_offload: Vec::new(),
        textbook_offload: Vec::new(),
        time_limit_ns: u64::try_from(time_limit.as_nanos()).unwrap_or(u64::MAX),
    };
    let mut before: Option<Schedule> = None;
    let mut found: Vec<Schedule> = Vec::new();
    for (done, (limit, limited)) in limits.iter().enumerate() {
        if cancel.load(Ordering::SeqCst) {
            break;
        }
        let text = format!("memory-time front: point {} of {}", done + 1, limits.len());
        progress.phase_within(&text, times(time_limit, limits.len() - done));
        // What is known: the schedule itself where it fits, and that of less memory.
        let known = [on(limited, problem, schedule), before.take()];
        let start = known.into_iter().flatten().min_by_key(|known| known.makespan_ns);
        let options = SolveOptions { method: Method::AdaptiveOffload, time_limit, start, ..options.clone() };
        let solution = solve(limited, &options, &mut |_| {}, cancel)?;
        let (makespan_ns, bound_ns) = (solution.makespan_ns, solution.bound_ns);
        front.ours.push(LimitPoint { memory: *limit, makespan_ns, bound_ns });
        before = Some(solution.schedule.clone());
        found.push(solution.schedule);
        front.pipe_offload.extend(quickly.best(*limit, limited, &[Method::PipeOffload])?);
        front.textbook_offload.extend(quickly.best(*limit, limited, &quickly.textbook())?);
    }
    let some = chosen(&front.ours);
    let mut before: Option<Schedule> = None;
    for (done, &i) in some.iter().enumerate() {
        if cancel.load(Ordering::SeqCst) {
            break;
        }
        let text = format!("memory-time front: full solve {} of {}", done + 1, some.len());
        progress.phase_within(&text, times(time_limit, some.len() - done));
        let (limit, limited) = &limits[i];
        let known = [Some(found[i].clone()), before.take()];
        let start = known.into_iter().flatten().min_by_key(|known| known.makespan_ns);
        let options = SolveOptions { method: Method::Auto, time_limit, start, ..options.clone() };
        let solution = solve(limited, &options, &mut |_| {}, cancel)?;
        let method = solution.method.clone();
        front.auto.push(WayPoint { memory: *limit, makespan_ns: solution.makespan_ns, method });
        // What no schedule is faster than with this much memory, none is with less.
        for point in front.ours.iter_mut().take(i + 1) {
            point.bound_ns = point.bound_ns.max(solution.bound_ns);
        }
        before = Some(solution.schedule);
    }
    Ok(front)
}

/// Limits at which everything that the solver has is tried.
const FULL: usize = 4;
/// What PipeOffload and the textbook methods have for all limits together, or the time of four other solves: they take
/// milliseconds each, but for problems so large that a point more is not worth the time.
const QUICK: Duration = Duration::from_secs(2);

/// Some of the points: the first, the last, the problem's own limit, and what is between.
fn chosen(points: &[LimitPoint]) -> Vec<usize> {
    let Some(last) = points.len().checked_sub(1) else { return Vec::new() };
    let own = points.iter().position(|point| point.memory == 1.0);
    let mut some: Vec<usize> = (0..FULL - 1).map(|i| i * last / (FULL - 2)).chain(own).collect();
    some.sort_unstable();
    some.dedup();
    some
}

fn times(time_limit: Duration, count: usize) -> Duration {
    time_limit.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Solves that take no time worth mentioning, until they do.
struct Quickly<'a> {
    problem: &'a Problem,
    until: Instant,
    seed: u64,
    cancel: &'a AtomicBool,
}

impl Quickly<'_> {
    /// The textbook methods that are made for the placement.
    fn textbook(&self) -> Vec<Method> {
        let made = |method: &Method| method.is_textbook() && textbook::schedule(self.problem, *method).is_ok();
        Method::ALL.into_iter().filter(made).collect()
    }

    /// The fastest schedule of these methods, where one fits and there is time to find it.
    fn best(&self, memory: f64, limited: &Problem, methods: &[Method]) -> Result<Option<WayPoint>> {
        let mut best: Option<WayPoint> = None;
        for &method in methods {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.cancel.load(Ordering::SeqCst) {
                return Ok(None);
            }
            let options = SolveOptions { method, time_limit: left, seed: self.seed, ..SolveOptions::default() };
            let solution = solve(limited, &options, &mut |_| {}, self.cancel)?;
            // What does not fit even with offloads is answered by another method.
            let own = solution.method == method.name();
            if own && best.as_ref().is_none_or(|best| solution.makespan_ns < best.makespan_ns) {
                best = Some(WayPoint { memory, makespan_ns: solution.makespan_ns, method: solution.method });
            }
        }
        Ok(best)
    }
}

/// The largest peak over its device's limit.
fn share(peak_bytes: &[i64], problem: &Problem) -> f64 {
    let shares =
        peak_bytes.iter().zip(&problem.bytes.capacity).map(|(&peak, &limit)| peak as f64 / limit.max(1) as f64);
    shares.fold(0.0, f64::max)
}

/// The problem with other limits: its own times a factor.
fn with_limit(problem: &Problem, factor: f64) -> Problem {
    let mut limited = problem.clone();
    if factor != 1.0 {
        limited.bytes.capacity.iter_mut().for_each(|bytes| *bytes = (*bytes as f64 * factor).ceil() as i64);
    }
    limited
}

/// Factors in equal ratios from the least that can run to what the hungriest textbook method takes, and 1.
fn limits(problem: &Problem, methods: &[MethodPoint]) -> Vec<f64> {
    let most = methods.iter().map(|point| point.memory).fold(1.0, f64::max);
    let mut least = 1.0;
    let mut bytes = problem.clone();
    bytes.bytes.capacity.iter_mut().for_each(|capacity| *capacity = 0);
    // A device at a time, until nothing lacks: what each needs at least.
    while let Err(lacks) = bytes.feasible() {
        bytes.bytes.capacity[lacks.device] += lacks.missing_bytes.max(1);
    }
    let needed = share(&bytes.bytes.capacity, problem);
    if needed > 0.0 && needed < least {
        least = needed;
    }
    let steps = (LIMITS - 1) as f64;
    let mut factors: Vec<f64> = (0..LIMITS).map(|i| least * (most / least).powf(i as f64 / steps)).collect();
    factors.push(1.0);
    factors.sort_by(f64::total_cmp);
    factors.dedup_by(|a, b| (*a - *b).abs() < 1e-9);
    factors
}
