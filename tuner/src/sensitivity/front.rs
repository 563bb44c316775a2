//! The memory-time front of one problem: how long a step takes with how much memory, by each textbook method
//! and by us.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

/// Memory and time of several schedules of one problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryTime {
    /// The textbook methods that are made for the placement.
    pub methods: Vec<MethodPoint>,
    /// Ours, from little memory to much; limits under which nothing can run are left out. A point is never
    /// slower than the one before.
    pub ours: Vec<LimitPoint>,
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
    let mut ours: Vec<LimitPoint> = Vec::new();
    let mut before: Option<Schedule> = None;
    for (done, limit) in limits(problem, &methods).into_iter().enumerate() {
        if cancel.load(Ordering::SeqCst) {
            break;
        }
        let limited = with_limit(problem, limit);
        if limited.feasible().is_err() {
            continue;
        }
        progress.phase(&format!("memory-time front: point {}", done + 1));
        // What is known: the schedule itself where it fits, and that of less memory.
        let known = [on(&limited, problem, schedule), before.take()];
        let start = known.into_iter().flatten().min_by_key(|known| known.makespan_ns);
        let options = SolveOptions { method: Method::AdaptiveOffload, time_limit, start, ..options.clone() };
        let solution = solve(&limited, &options, &mut |_| {}, cancel)?;
        ours.push(LimitPoint { memory: limit, makespan_ns: solution.makespan_ns, bound_ns: solution.bound_ns });
        before = Some(solution.schedule);
    }
    let time_limit_ns = u64::try_from(time_limit.as_nanos()).unwrap_or(u64::MAX);
    Ok(MemoryTime { methods, ours, time_limit_ns })
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
