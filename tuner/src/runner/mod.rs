//! Runs a schedule: real training steps of the model, op by op as scheduled, measured.
//!
//! One thread a device computes its ops in the schedule's order on real tensors; one thread a channel
//! copies saved tensors to the host and back in the schedule's order. Outputs and gradients go to the
//! next stage as soon as their op ends; a device copies what it gets from another into memory of its own.
//!
//! ```text
//! Schedule ─ check ─ Order ─ Program (lists, dependencies, tickets) ─ Pipeline (threads) ─ Measured
//! ```
//!
//! # Memory
//! Each device has a budget of its capacity, from which an op takes and to which it returns what the
//! problem says: F its activation, O and R the offloadable part, B all but the weight context, W the rest.
//! Taking happens in the order of the schedule (each F and R has a ticket, its place among the device's
//! allocations) and waits until there is room. Beside it a ledger counts what the tensors really take
//! (storage that several share once; weights, gradients and optimizer states; the workspace that the plan
//! sets aside). Its peak is what is reported, and real bytes above the capacity end the run with an error,
//! whatever the problem says. Hidden states and gradients under way between two stages count for neither, as
//! in the problem.
//!
//! # Why a legal schedule never deadlocks
//! Suppose that all threads wait. Take, of the ops not started, the one that the schedule starts first (of
//! several at one instant, one that none of the others precedes). What stands before it on its queue, what
//! it depends on and the allocations with earlier tickets all start no later in the schedule, so they have
//! started, and as no thread is inside an op they have ended. So it waits for room. But the run has
//! done every F and R before it and no later one, and every O, B and W that has ended in the schedule by
//! its start: the device holds no more than there, where it fits. Contradiction.
//!
//! An order that does deadlock is found the moment its last thread stops, and a thread that
//! never comes back by the watchdog ([`RunPlan::stall_timeout`]); both errors say what each thread waits for.

mod board;
mod data;
mod error;
mod host;
mod ledger;
mod optimizer;
mod parked;
mod pipeline;
mod program;
mod rehearse;
mod share;
mod stage;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_configs::file::Check;
use optpipe_configs::job::{Optimizer, Precision};
use optpipe_configs::model::Model;
use optpipe_kernels::backend::Backend;
use optpipe_solver::check::check;
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;

pub use error::{OpName, RunError, Worker};
pub use pipeline::{Pipeline, StepRecord};
pub use rehearse::{Rehearsal, RehearseOptions, RehearseProgress, Round, rehearse};
pub use stage::NamedGradient;

use crate::measured::{self, Measured};

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct RunPlan<'a> {
    /// The model that is trained.
    pub model: &'a Model,
    /// Transformer blocks of each stage; the embedding is on the first stage, the head on the last.
    pub layer_split: &'a [usize],
    /// The problem that the schedule solves: placement, microbatches, bytes, channels. Its times are not
    /// used.
    pub problem: &'a Problem,
    /// The order of the ops.
    pub schedule: &'a Schedule,
    /// Where it runs.
    pub backend: Arc<dyn Backend>,
    /// Sequences a microbatch.
    pub microbatch_size: usize,
    /// Tokens a sequence.
    pub sequence_length: usize,
    /// Number format of weights and activations.
    pub precision: Precision,
    /// Ends each step.
    pub optimizer: Optimizer,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Decides weights and data.
    pub seed: u64,
    /// Steps before measuring.
    pub warmup_steps: usize,
    /// Measured steps, at least 1.
    pub steps: usize,
    /// Whether a device that exceeds its capacity ends the run. Without it, schedules that need more
    /// than there is are measured, too.
    pub enforce_capacity: bool,
    /// Bytes that each device sets aside for what an op needs while it runs, counted as held all the
    /// time; `None` for none.
    pub workspace: Option<&'a [u64]>,
    /// The run ends with an error if nothing gets done for this long: no op starts or ends, the layers are not
    /// built, the weights not updated.
    pub stall_timeout: Duration,
}

impl<'a> RunPlan<'a> {
    /// A plan with the defaults: one sequence of 256 tokens a microbatch, f32, AdamW, one step of warm-up
    /// and three measured ones, the capacity enforced.
    pub fn new(
        model: &'a Model,
        layer_split: &'a [usize],
        problem: &'a Problem,
        schedule: &'a Schedule,
        backend: Arc<dyn Backend>,
    ) -> RunPlan<'a> {
        RunPlan {
            model,
            layer_split,
            problem,
            schedule,
            backend,
            microbatch_size: 1,
            sequence_length: 256,
            precision: Precision::default(),
            optimizer: Optimizer::default(),
            learning_rate: 1e-3,
            seed: 0,
            warmup_steps: 1,
            steps: 3,
            enforce_capacity: true,
            workspace: None,
            stall_timeout: Duration::from_secs(300),
        }
    }
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunProgress {
    /// Steps done, warm-up included.
    pub steps_done: usize,
    /// Steps in all, warm-up included.
    pub steps: usize,
    /// Whether the step just done is one of the measured.
    pub measured: bool,
    /// Its time, ns, without the optimizer's.
    pub step_ns: u64,
    /// Its mean loss.
    pub loss: f64,
}

/// Trains for the plan's steps and measures them. `progress` is called after each step. Once `cancel` is
/// set, the run ends as soon as the ops under way have ended.
///
/// # Errors
/// [`RunError`]; no thread of the run is left behind, unless one is inside an op that never returns.
pub fn run(plan: &RunPlan, progress: &mut dyn FnMut(RunProgress), cancel: &AtomicBool) -> Result<Measured, RunError> {
    validate(plan)?;
    let order = Order::of(plan.problem, plan.schedule);
    let mut pipeline = Pipeline::start(plan, &order, cancel)?;
    let steps = plan.warmup_steps + plan.steps;
    let (mut records, mut optimizer_ns, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..steps {
        let measured = index >= plan.warmup_steps;
        if index == plan.warmup_steps {
            pipeline.reset_peaks()?;
        }
        let record = pipeline.step(cancel)?;
        let update_ns = pipeline.optimize(cancel)?;
        losses.push(record.loss);
        progress(RunProgress { steps_done: index + 1, steps, measured, step_ns: record.step_ns, loss: record.loss });
        if measured {
            optimizer_ns.push(update_ns);
            records.push(record);
        }
    }
    let peaks = pipeline.peak_bytes();
    let by_allocator = (0..plan.problem.devices).map(|device| pipeline.allocator_peak_bytes(device));
    let by_allocator = by_allocator.collect::<Result<Vec<Option<u64>>, RunError>>()?;
    drop(pipeline);
    let name = plan.backend.kind().to_string();
    let measured = measured::collect(name, plan.problem, &records, &optimizer_ns, losses, peaks);
    Ok(Measured { allocator_peak_bytes: by_allocator.into_iter().collect(), ..measured })
}

/// As many bytes as no problem can use: sums over its ops stay below 2^59.
const NO_LIMIT: i64 = 1 << 60;

/// Refuses a schedule that breaks a rule of the problem.
fn validate(plan: &RunPlan) -> Result<(), RunError> {
    let wrong = |field, message| Err(RunError::Plan { field, message });
    if plan.steps == 0 {
        return wrong("steps", "expected at least 1, found 0".to_owned());
    }
    if let Err(invalid) = plan.problem.check() {
        return wrong("problem", format!("{}: {}", invalid.field, invalid.message));
    }
    let report = if plan.enforce_capacity {
        check(plan.problem, plan.schedule)
    } else {
        let mut problem = plan.problem.clone();
        problem.bytes.capacity.fill(NO_LIMIT);
        check(&problem, plan.schedule)
    };
    if report.is_legal() {
        return Ok(());
    }
    let count = report.violations.len();
    Err(RunError::Schedule { count, first: report.violations.into_iter().take(program::QUOTED).collect() })
}
