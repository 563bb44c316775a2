//! An order: which op goes before which on every queue, without times.

use crate::problem::Problem;
use crate::schedule::{Op, OpKind, Schedule, ScheduledOp};

/// The sequences that, with a problem, determine a schedule: every op starts as early as they, the
/// precedences and the memory allow (see `simulate`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    /// For each device: its F, B and W in the order in which they run, and among them its R, each
    /// standing where its memory is allocated.
    pub devices: Vec<Vec<Op>>,
    /// For each channel that the problem names, in ascending order of the names: its O and R in the
    /// order in which they are copied.
    pub channels: Vec<Vec<Op>>,
}

impl Order {
    /// The order of a schedule's ops: simulated again, no op starts later than it does there (provided
    /// that the schedule is legal and no op frees what the same instant allocated).
    ///
    /// On each device F, B and W go by start; a reload stands after every B and W that has ended when
    /// it starts and after every F that has started: before the B or W that is running, which frees
    /// nothing for it.
    pub fn of(problem: &Problem, schedule: &Schedule) -> Order {
        let end = |x: &ScheduledOp| x.start_ns.saturating_add(problem.duration(x.op, x.stage));
        // Where F may have length 0: its instants and microbatches.
        let is_point = |x: &&ScheduledOp| x.op == OpKind::F && problem.time_ns.forward.get(x.stage) == Some(&0);
        let points = schedule.ops.iter().flatten().filter(is_point).map(|x| (x.start_ns, x.microbatch));
        let mut points: Vec<(i64, usize)> = points.collect();
        points.sort_unstable();
        // Ops of length 0 at one instant go in the order of the data: down the stages, then up. What belongs
        // to no F of that instant goes before all F: it frees memory for them and needs nothing of them.
        let rank = |x: &ScheduledOp| {
            // A fused W goes where its B goes.
            let fused = x.op == OpKind::W && !problem.split_backward;
            let block_ns = if fused { problem.duration(OpKind::B, x.stage) } else { 0 };
            let before = points.binary_search(&(x.start_ns.saturating_sub(block_ns), x.microbatch)).is_err();
            match x.op {
                OpKind::F | OpKind::O => (1, x.stage, x.microbatch),
                OpKind::R => (2, usize::MAX - x.stage, x.microbatch),
                OpKind::B => (if before { -1 } else { 2 }, usize::MAX - x.stage, x.microbatch),
                OpKind::W => {
                    let after_b = i32::from(problem.split_backward);
                    ((if before { -1 } else { 2 }) + after_b, usize::MAX - x.stage, x.microbatch)
                }
            }
        };
        let op = |x: &ScheduledOp| Op { kind: x.op, stage: x.stage, microbatch: x.microbatch };
        let known = |x: &&ScheduledOp| x.stage < problem.stages() && x.microbatch < problem.microbatches;

        let mut names: Vec<usize> = problem.offload_channel.iter().chain(&problem.reload_channel).copied().collect();
        names.sort_unstable();
        names.dedup();
        let mut channels: Vec<Vec<ScheduledOp>> = vec![Vec::new(); names.len()];
        for x in schedule.ops.iter().flatten().filter(known).filter(|x| !x.op.is_compute()) {
            let d = problem.placement[x.stage];
            let name = if x.op == OpKind::O { problem.offload_channel[d] } else { problem.reload_channel[d] };
            channels[names.partition_point(|&n| n < name)].push(*x);
        }
        for channel in &mut channels {
            channel.sort_by_key(|x| (x.start_ns, end(x), rank(x)));
        }

        let mut devices = Vec::with_capacity(schedule.ops.len());
        for list in &schedule.ops {
            let mut compute: Vec<ScheduledOp> =
                list.iter().filter(known).filter(|x| x.op.is_compute()).copied().collect();
            // A fused B is one block with its W.
            let block = |x: &ScheduledOp| {
                let w = if problem.split_backward { 0 } else { problem.duration(OpKind::W, x.stage) };
                match x.op {
                    OpKind::B => (x.start_ns, end(x).saturating_add(w), rank(x), x.op),
                    OpKind::W if !problem.split_backward => {
                        (x.start_ns.saturating_sub(problem.duration(OpKind::B, x.stage)), end(x), rank(x), x.op)
                    }
                    _ => (x.start_ns, end(x), rank(x), x.op),
                }
            };
            compute.sort_by_key(block);
            let mut reloads: Vec<ScheduledOp> =
                list.iter().filter(known).filter(|x| x.op == OpKind::R).copied().collect();
            reloads.sort_by_key(|x| (x.start_ns, end(x), rank(x)));
            let mut sequence = Vec::with_capacity(list.len());
            let mut waiting = reloads.iter().peekable();
            for x in &compute {
                while let Some(r) = waiting.next_if(|r| {
                    let own = x.op == OpKind::B && (x.stage, x.microbatch) == (r.stage, r.microbatch);
                    let before = if x.op == OpKind::F { x.start_ns <= r.start_ns } else { end(x) <= r.start_ns };
                    own || !before
                }) {
                    sequence.push(op(r));
                }
                sequence.push(op(x));
            }
            sequence.extend(waiting.map(op));
            devices.push(sequence);
        }
        let channels = channels.iter().map(|x| x.iter().map(op).collect()).collect();
        Order { devices, channels }
    }
}
