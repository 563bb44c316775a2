//! A whole pipeline on one device: its devices take turns.
//!
//! The device at hand plays one device of the pipeline after another: it holds that device's layers alone,
//! computes its list on real tensors, copies on real channels and has that device's memory limit. It is the
//! [`Pipeline`] of a run with one device's threads. What other devices would send lies ready (recorded once, by
//! [`boundary`]); an op that needs it waits for the time at which it would come.
//!
//! ```text
//! predicted times ─► Timeline ─ arrivals ─► device 0, 1, … in turn ─ measured times ─┐
//!                        ▲                                                           │
//!                        └───────────────────────────────────────────────────────────┘
//! ```
//!
//! # The times of others
//! A rehearsal measures how long each op occupies its queue: from when it waits for nothing until its end. The
//! timeline replays the whole order with these times, and with the predicted ones of what has not been measured
//! yet; dependencies, queues, sends and memory are kept as in a run. It says when things arrive from other
//! devices, and is brought up to date after each device (Gauss-Seidel). As the order is fixed, the only thing
//! that arrivals can change is what runs at the same time as what, a copy beside a product: rounds over all
//! devices end when no op's end moves by more than the tolerance. From the second round on, whose arrivals are
//! measured ones, an op's time is its median over all rounds: what one round measures by chance settles, too.

mod boundary;
#[cfg(test)]
mod tests;
mod timeline;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_profiler::timing::summarise;
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Op;

use super::error::RunError;
use super::pipeline::Pipeline;
use super::{NO_LIMIT, RunPlan, validate};
use crate::measured::MeasuredOp;
use boundary::Boundary;
use timeline::Timeline;

/// When a rehearsal ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RehearseOptions {
    /// Rounds over all devices, at most; at least 1.
    pub rounds: usize,
    /// Times have settled when a round moves no op's end by more than this part of the step.
    pub tolerance: f64,
}

impl Default for RehearseOptions {
    fn default() -> Self {
        RehearseOptions { rounds: 5, tolerance: 0.02 }
    }
}

/// Where a rehearsal is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RehearseProgress {
    /// The tensors that stages send to each other are recorded.
    Recording,
    /// A device takes its turn.
    Device {
        /// The round, from 1.
        round: usize,
        /// The device.
        device: usize,
        /// The step as known so far, ns.
        step_ns: u64,
    },
    /// A round is over.
    Round {
        /// The round, from 1.
        round: usize,
        /// The step as known now, ns.
        step_ns: u64,
        /// Farthest that the round moved an op's end, ns.
        largest_change_ns: u64,
    },
}

/// One round over all devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// The step after it, ns.
    pub step_ns: u64,
    /// Farthest that it moved an op's end, ns.
    pub largest_change_ns: u64,
}

/// A rehearsed pipeline.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    /// Every op, from the start of the step's first, by device and start.
    pub ops: Vec<MeasuredOp>,
    /// From the start of the first op to the end of the last, ns.
    pub step_ns: u64,
    /// The rounds that came to their end.
    pub rounds: Vec<Round>,
    /// Whether the last round moved no op's end by more than the tolerance.
    pub settled: bool,
    /// Whether the caller's flag ended it.
    pub interrupted: bool,
    /// Farthest that an op's end in its device's rehearsal lies from its end in `ops`, ns.
    pub largest_shift_ns: u64,
    /// The optimizer's part after a step, a device.
    pub optimizer_ns: Vec<u64>,
    /// Most bytes held at once, a device, static ones included.
    pub peak_bytes: Vec<u64>,
    /// The same as the backend's allocator counts it; `None` where it does not tell.
    pub allocator_peak_bytes: Option<Vec<u64>>,
    /// Bytes copied to the host in a step, all devices together.
    pub offloaded_bytes: u64,
}

/// An op's times, one a measured step, ns.
#[derive(Debug, Clone, Default)]
struct OpTimes {
    /// From when it waited for nothing until its end.
    occupied_ns: Vec<u64>,
    /// From its start to its end.
    duration_ns: Vec<u64>,
    /// Its end on the clock, in the last turn only.
    end_ns: Vec<u64>,
}

/// What a device's turns brought.
#[derive(Debug, Clone, Default)]
struct Turn {
    ops: BTreeMap<Op, OpTimes>,
    optimizer_ns: Vec<u64>,
    peak_bytes: u64,
    allocator_peak_bytes: Option<u64>,
    offloaded_bytes: u64,
}

impl Turn {
    /// Adds what turns before brought.
    fn after(&mut self, earlier: Turn) {
        for (op, times) in earlier.ops {
            let own = self.ops.entry(op).or_default();
            own.occupied_ns.extend(times.occupied_ns);
            own.duration_ns.extend(times.duration_ns);
        }
        self.optimizer_ns.extend(earlier.optimizer_ns);
        self.peak_bytes = self.peak_bytes.max(earlier.peak_bytes);
        self.allocator_peak_bytes = self.allocator_peak_bytes.max(earlier.allocator_peak_bytes);
    }
}

fn median(list: &[u64]) -> u64 {
    summarise(list, false).median_ns
}

/// Rehearses a plan on the backend's first device. Once `cancel` is set it ends as soon as the ops under way have
/// ended, with what is known if every device has had its turn.
///
/// # Errors
/// [`RunError`], as [`super::run`].
pub fn rehearse(
    plan: &RunPlan,
    options: &RehearseOptions,
    progress: &mut dyn FnMut(RehearseProgress),
    cancel: &AtomicBool,
) -> Result<Rehearsal, RunError> {
    validate(plan)?;
    if options.rounds == 0 {
        return Err(RunError::Plan { field: "rounds", message: "expected at least 1, found 0".to_owned() });
    }
    let mut limits: Problem = plan.problem.clone();
    if !plan.enforce_capacity {
        limits.bytes.capacity.fill(NO_LIMIT);
    }
    let order = Order::of(plan.problem, plan.schedule);
    let mut timeline = Timeline::predicted(&limits, &order)?;
    progress(RehearseProgress::Recording);
    let boundary = Boundary::record(plan, cancel)?;
    let mut turns: Vec<Turn> = vec![Turn::default(); plan.problem.devices];
    let (mut rounds, mut settled, mut interrupted) = (Vec::new(), false, false);
    while !settled && !interrupted && rounds.len() < options.rounds {
        let before = timeline.ends().to_vec();
        for (device, held) in turns.iter_mut().enumerate() {
            let step_ns = timeline.step_ns();
            progress(RehearseProgress::Device { round: rounds.len() + 1, device, step_ns });
            match take_turn(plan, &order, device, &boundary, &timeline, cancel) {
                Ok(turn) => {
                    let earlier = std::mem::replace(held, turn);
                    // The first round's arrivals were predicted.
                    if rounds.len() > 1 {
                        held.after(earlier);
                    }
                    timeline.learn(held.ops.iter().map(|(&op, times)| (op, median(&times.occupied_ns))))?;
                }
                Err(RunError::Cancelled) if !rounds.is_empty() => {
                    interrupted = true;
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        if !interrupted {
            let moved =
                before.iter().zip(timeline.ends()).filter_map(|(old, new)| Some(old.as_ref()?.abs_diff((*new)?)));
            let (step_ns, largest_change_ns) = (timeline.step_ns(), moved.max().unwrap_or(0));
            rounds.push(Round { step_ns, largest_change_ns });
            settled = largest_change_ns as f64 <= options.tolerance * step_ns as f64;
            progress(RehearseProgress::Round { round: rounds.len(), step_ns, largest_change_ns });
        }
    }
    let mut rehearsal = collect(plan.problem, &timeline, &turns);
    (rehearsal.rounds, rehearsal.settled, rehearsal.interrupted) = (rounds, settled, interrupted);
    Ok(rehearsal)
}

/// One device's turn: its layers are built, its steps run and measured, and everything is dropped.
fn take_turn(
    plan: &RunPlan,
    order: &Order,
    device: usize,
    boundary: &Boundary,
    timeline: &Timeline<'_>,
    cancel: &AtomicBool,
) -> Result<Turn, RunError> {
    // A device may rightly stand still for as long as others take.
    let stall_timeout = plan.stall_timeout.saturating_add(Duration::from_nanos(timeline.step_ns()));
    let plan = RunPlan { stall_timeout, ..plan.clone() };
    let arrivals = timeline.arrivals(device);
    let mut pipeline = Pipeline::start_alone(&plan, order, device, cancel)?;
    pipeline.supply(boundary.supplies(&plan, device)?);
    for _ in 0..plan.warmup_steps {
        // Warming up needs nobody's time.
        pipeline.execute(Some(vec![0; arrivals.len()]), cancel)?;
        pipeline.optimize(cancel)?;
    }
    pipeline.reset_peaks()?;
    let mut turn = Turn::default();
    for _ in 0..plan.steps {
        let step = pipeline.execute(Some(arrivals.clone()), cancel)?;
        turn.optimizer_ns.push(pipeline.optimize(cancel)?);
        turn.offloaded_bytes = step.offloaded_bytes;
        for x in &step.times {
            let times = turn.ops.entry(x.op).or_default();
            times.occupied_ns.push(x.end_ns - x.ready_ns);
            times.duration_ns.push(x.end_ns - x.start_ns);
            times.end_ns.push(x.end_ns.saturating_sub(step.origin_ns));
        }
    }
    turn.peak_bytes = pipeline.peak_bytes()[device];
    turn.allocator_peak_bytes = pipeline.allocator_peak_bytes(device)?;
    Ok(turn)
}

/// The timeline with what the turns measured.
fn collect(problem: &Problem, timeline: &Timeline<'_>, turns: &[Turn]) -> Rehearsal {
    let measured = || turns.iter().flat_map(|turn| &turn.ops);
    let start = |op: Op, times: &OpTimes| timeline.end(op).saturating_sub(median(&times.duration_ns));
    let first = measured().map(|(&op, times)| start(op, times)).min().unwrap_or(0);
    let mut ops: Vec<MeasuredOp> = measured()
        .map(|(&op, times)| MeasuredOp {
            device: problem.placement[op.stage],
            op: op.kind,
            stage: op.stage,
            microbatch: op.microbatch,
            start_ns: start(op, times) - first,
            end_ns: timeline.end(op) - first,
            median_ns: median(&times.duration_ns),
        })
        .collect();
    ops.sort_by_key(|x| (x.device, x.start_ns, x.op, x.microbatch));
    Rehearsal {
        step_ns: timeline.step_ns() - first,
        largest_shift_ns: measured()
            .map(|(&op, times)| median(&times.end_ns).abs_diff(timeline.end(op)))
            .max()
            .unwrap_or(0),
        ops,
        rounds: Vec::new(),
        settled: false,
        interrupted: false,
        optimizer_ns: turns.iter().map(|turn| median(&turn.optimizer_ns)).collect(),
        peak_bytes: turns.iter().map(|turn| turn.peak_bytes).collect(),
        allocator_peak_bytes: turns.iter().map(|turn| turn.allocator_peak_bytes).collect(),
        offloaded_bytes: turns.iter().map(|turn| turn.offloaded_bytes).sum(),
    }
}
