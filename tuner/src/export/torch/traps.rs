//! What `torch.distributed.pipelining` needs changed in a schedule before it trains on right gradients.
//!
//! - It stores losses in the order in which the last stage's forwards run and looks them up by microbatch:
//!   that order has to be 0, 1, 2, ... Microbatches are alike, so they are renamed.
//! - The first stage has no input gradient: its `I` does nothing, and its `W` does the whole backward. The
//!   first stage's B and W become one op, where the simulator finds it better: at the place of B, or at that
//!   of W if memory allows.
//! - `I` and `W` next to each other cost more than the full backward `B`: they are exported as one.

use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Op, OpKind, Schedule};
use optpipe_solver::simulate::simulate;

use super::TorchError;

/// What one cell of the file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Forward.
    Forward,
    /// Input gradient.
    Input,
    /// Weight gradient.
    Weight,
    /// Both gradients.
    Full,
}

impl Action {
    /// PyTorch's letter.
    pub fn letter(self) -> char {
        match self {
            Action::Forward => 'F',
            Action::Input => 'I',
            Action::Weight => 'W',
            Action::Full => 'B',
        }
    }
}

/// A schedule that PyTorch can run, with what was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapted {
    /// The schedule, legal for the same problem.
    pub schedule: Schedule,
    /// The new name of each microbatch.
    pub names: Vec<usize>,
    /// Microbatches whose B and W were apart at the first stage.
    pub joined: usize,
}

impl Adapted {
    /// Whether a microbatch has another name than before.
    pub fn renamed(&self) -> bool {
        self.names.iter().enumerate().any(|(before, &now)| before != now)
    }
}

/// Makes a legal schedule one that PyTorch trains right with.
///
/// # Errors
/// Where a device holds no stage, which PyTorch has no rank for.
pub fn adapt(problem: &Problem, schedule: &Schedule) -> Result<Adapted, TorchError> {
    if let Some(device) = (0..problem.devices).find(|d| !problem.placement.contains(d)) {
        return Err(TorchError::EmptyDevice { device });
    }
    let names = names(problem, schedule);
    let mut renamed = schedule.clone();
    for op in renamed.ops.iter_mut().flatten() {
        op.microbatch = names[op.microbatch];
    }
    let (schedule, joined) = join_first_stage(problem, renamed)?;
    Ok(Adapted { schedule, names, joined })
}

/// The names that put the last stage's forwards in order.
fn names(problem: &Problem, schedule: &Schedule) -> Vec<usize> {
    let last = problem.stages() - 1;
    let forwards = schedule.ops.iter().flatten().filter(|x| x.op == OpKind::F && x.stage == last);
    let mut order: Vec<(i64, usize)> = forwards.map(|x| (x.start_ns, x.microbatch)).collect();
    order.sort_unstable();
    let mut names = vec![0; problem.microbatches];
    for (now, &(_, before)) in order.iter().enumerate() {
        names[before] = now;
    }
    names
}

/// Puts each W of the first stage right behind its B, and tells of how many.
fn join_first_stage(problem: &Problem, schedule: Schedule) -> Result<(Schedule, usize), TorchError> {
    let order = Order::of(problem, &schedule);
    let sequence = &order.devices[problem.placement[0]];
    let apart: Vec<usize> = (0..problem.microbatches).filter(|&j| !adjacent(sequence, j)).collect();
    if apart.is_empty() {
        return Ok((schedule, 0));
    }
    let moved = |early: bool| {
        let mut order = order.clone();
        let sequence = &mut order.devices[problem.placement[0]];
        for &microbatch in &apart {
            let b = Op { kind: OpKind::B, stage: 0, microbatch };
            let w = Op { kind: OpKind::W, ..b };
            let (anchor, other) = if early { (b, w) } else { (w, b) };
            sequence.retain(|&op| op != other);
            if let Some(at) = sequence.iter().position(|&op| op == anchor) {
                sequence.insert(at + usize::from(early), other);
            }
        }
        simulate(problem, &order).map(|simulated| simulated.schedule)
    };
    // Early frees everything sooner and is always possible; late may exceed the memory limit.
    let early = moved(true).map_err(|e| TorchError::Reordering(e.to_string()))?;
    let best = match moved(false) {
        Ok(late) if late.makespan_ns < early.makespan_ns => late,
        _ => early,
    };
    Ok((best, apart.len()))
}

/// The problem as PyTorch runs it: the first stage's backward is whole, its time all in B and its memory held until
/// then. With the schedule's order under these times, for those who solve on from what is exported; nothing where the
/// order cannot keep within the limit then.
pub fn as_run(problem: &Problem, schedule: &Schedule) -> Option<(Problem, Schedule)> {
    let mut joined = problem.clone();
    if !problem.split_backward || problem.time_ns.backward_weight[0] == 0 {
        return None;
    }
    joined.time_ns.backward_input[0] += std::mem::take(&mut joined.time_ns.backward_weight[0]);
    let order = Order::of(problem, schedule);
    let simulated = simulate(&joined, &order).ok()?;
    Some((joined, simulated.schedule))
}

fn adjacent(sequence: &[Op], microbatch: usize) -> bool {
    let mut compute = sequence.iter().filter(|op| op.kind.is_compute());
    let b = Op { kind: OpKind::B, stage: 0, microbatch };
    compute.any(|&op| op == b) && compute.next() == Some(&Op { kind: OpKind::W, ..b })
}

/// The compute ops of each device as PyTorch's cells: B and W next to each other are one.
pub fn cells(problem: &Problem, schedule: &Schedule) -> Vec<Vec<(usize, Action, usize)>> {
    let order = Order::of(problem, schedule);
    let row = |sequence: &Vec<Op>| {
        let mut row: Vec<(usize, Action, usize)> = Vec::new();
        for op in sequence.iter().filter(|op| op.kind.is_compute()) {
            let (stage, microbatch) = (op.stage, op.microbatch);
            match (op.kind, row.last_mut()) {
                (OpKind::W, Some(last)) if *last == (stage, Action::Input, microbatch) => last.1 = Action::Full,
                (OpKind::F, _) => row.push((stage, Action::Forward, microbatch)),
                (OpKind::B, _) => row.push((stage, Action::Input, microbatch)),
                _ => row.push((stage, Action::Weight, microbatch)),
            }
        }
        row
    };
    order.devices.iter().map(row).collect()
}
