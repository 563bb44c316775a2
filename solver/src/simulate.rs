//! The simulator: an order in, times and memory out.

use crate::graph::Graph;
use crate::longest_path::Stopped;
use crate::order::Order;
use crate::plan::{Evaluator, Plan, Unschedulable};
use crate::problem::Problem;
use crate::schedule::{Op, Schedule};

/// What an order leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulated {
    /// Every op as early as the order allows.
    pub schedule: Schedule,
    /// The most that each device holds at any instant, `static` included, bytes.
    pub peak_bytes: Vec<i64>,
}

/// Why an order has no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimulateError {
    /// Ops are missing, twice, or where they do not belong.
    #[error("not an order of this problem: {0}")]
    Malformed(String),
    /// Memory does not suffice, whatever the times.
    #[error("device {device} lacks {missing_bytes} bytes for {op}, even after all that this order frees before it")]
    Memory {
        /// The device.
        device: usize,
        /// The op that allocates.
        op: Op,
        /// What lacks.
        missing_bytes: i64,
    },
    /// Some ops wait for each other.
    #[error("this order cannot run: {op} waits for ops that wait for it")]
    Cycle {
        /// One of them, or one that waits for them.
        op: Op,
    },
}

/// The earliest starts for an order: by precedence, by the order of every queue, and by memory, where
/// an allocation waits for what stands before it to be freed.
///
/// # Errors
/// [`SimulateError`], when the order is not one of the problem's ops, exceeds a capacity, or waits for
/// itself.
pub fn simulate(problem: &Problem, order: &Order) -> Result<Simulated, SimulateError> {
    run(problem, order, true)
}

/// [`simulate`] without the memory limit: what the schedule would take and hold if memory sufficed.
///
/// # Errors
/// As [`simulate`], without [`SimulateError::Memory`].
pub fn simulate_unlimited(problem: &Problem, order: &Order) -> Result<Simulated, SimulateError> {
    run(problem, order, false)
}

fn run(problem: &Problem, order: &Order, limited: bool) -> Result<Simulated, SimulateError> {
    let graph = Graph::new(problem);
    let plan = Plan::from_order(&graph, order)?;
    let mut evaluator = Evaluator::new(&graph);
    evaluator.run(&graph, &plan, limited).map_err(|e| describe(&graph, e))?;
    let (schedule, peak_bytes) = evaluator.schedule_and_peaks(&graph, &plan);
    Ok(Simulated { schedule, peak_bytes })
}

fn describe(graph: &Graph<'_>, error: Unschedulable) -> SimulateError {
    match error {
        Unschedulable::Memory(op, missing_bytes) => {
            SimulateError::Memory { device: graph.device(op), op: graph.decode(op), missing_bytes }
        }
        Unschedulable::Stopped(Stopped::Cycle(op)) => SimulateError::Cycle { op: graph.decode(op) },
        // Without a limit on the makespan none is exceeded; no op is at fault.
        Unschedulable::Stopped(Stopped::Limit) => SimulateError::Malformed("times overflow".into()),
    }
}
