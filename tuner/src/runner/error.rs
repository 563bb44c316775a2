//! What can go wrong in a run.

use std::fmt;
use std::time::Duration;

use optpipe_kernels::backend::BackendError;
use optpipe_solver::schedule::Op;

/// A thread of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// Computes for a device.
    Device(usize),
    /// Copies on a channel, by the channel's number in the problem.
    Channel(usize),
}

impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Worker::Device(device) => write!(f, "device {device}"),
            Worker::Channel(channel) => write!(f, "channel {channel}"),
        }
    }
}

/// An op as messages name it: `F(stage 1, microbatch 3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpName(pub Op);

impl fmt::Display for OpName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(stage {}, microbatch {})", self.0.kind.letter(), self.0.stage, self.0.microbatch)
    }
}

/// Why a run ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The parts of the plan contradict each other.
    #[error("{field}: {message}")]
    Plan {
        /// The field of the plan.
        field: &'static str,
        /// What was expected, what was found.
        message: String,
    },
    /// The schedule breaks rules of the problem.
    #[error("the schedule does not fit the problem, {count} rules broken, first: {}", .first.join("; "))]
    Schedule {
        /// How many rules are broken.
        count: usize,
        /// The first few of them.
        first: Vec<String>,
    },
    /// There is no such backend here.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The caller's flag was set.
    #[error("cancelled")]
    Cancelled,
    /// Weights, gradients, optimizer states and workspace alone exceed a device's memory.
    #[error(
        "device {device}: weights, gradients and optimizer states take {tensors} bytes and the workspace {workspace}, the capacity is {capacity}"
    )]
    Static {
        /// The device.
        device: usize,
        /// Bytes of weights, gradients and optimizer states.
        tensors: u64,
        /// Bytes of workspace that the plan sets aside.
        workspace: u64,
        /// The limit.
        capacity: u64,
    },
    /// The tensors of a device exceed its memory.
    #[error(
        "device {device}: out of memory after {}: {held} bytes held, the capacity is {capacity}; its tensors take {actual} bytes, the problem says {planned}", OpName(*.op)
    )]
    Memory {
        /// The device.
        device: usize,
        /// The op that made the tensors.
        op: Op,
        /// Bytes held with them, static ones included.
        held: u64,
        /// The limit.
        capacity: u64,
        /// Bytes of the op's tensors.
        actual: u64,
        /// What the problem says they take.
        planned: u64,
    },
    /// A device has no more memory, whatever its budget says.
    #[error(
        "device {device}: {}: the device has no more memory: {message}", .op.map_or_else(|| "outside of an op".to_owned(), |op| OpName(op).to_string())
    )]
    OutOfMemory {
        /// The device.
        device: usize,
        /// The op that asked for some; `None` while building the layers or in the optimizer step.
        op: Option<Op>,
        /// What the driver reports.
        message: String,
    },
    /// The budget refused an allocation.
    #[error("{}: {message}", OpName(*.op))]
    Budget {
        /// The op that allocates.
        op: Op,
        /// What the budget says.
        message: String,
    },
    /// Every thread waits for another: the order has a cycle.
    #[error("deadlock, nothing can proceed:\n{waits}")]
    Deadlock {
        /// One line a thread: what it waits for.
        waits: String,
    },
    /// Nothing started or ended for too long.
    #[error("nothing got done for {after:?}:\n{waits}")]
    Stalled {
        /// How long.
        after: Duration,
        /// One line a thread: what it does or waits for.
        waits: String,
    },
    /// An op failed.
    #[error("{worker}: {}: {message}", .op.map_or_else(|| "outside of an op".to_owned(), |op| OpName(op).to_string()))]
    Op {
        /// Where.
        worker: Worker,
        /// The op; `None` while building the layers or in the optimizer step.
        op: Option<Op>,
        /// What the library reports.
        message: String,
    },
    /// A thread panicked: a defect of this program.
    #[error("{worker}: {}: panicked: {message}", .op.map_or_else(|| "outside of an op".to_owned(), |op| OpName(op).to_string()))]
    Panic {
        /// Where.
        worker: Worker,
        /// The op it was in.
        op: Option<Op>,
        /// The panic's message.
        message: String,
    },
    /// The loss is infinite or not a number: training diverged.
    #[error("step {step}: the loss is {loss}: training diverged, use a smaller learning rate")]
    Diverged {
        /// The step, warm-up included.
        step: usize,
        /// Its loss.
        loss: f64,
    },
    /// The system gave no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}
