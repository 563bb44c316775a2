//! The schedule that a window is cut out of: its times, its order, and what its ops wait for.

use crate::graph::{Graph, Node};
use crate::order::Order;
use crate::plan::{Evaluator, Plan};
use crate::schedule::{OpKind, ScheduledOp};

/// Attempts to bring an order and its times in line.
const ROUNDS: usize = 4;

/// A legal schedule, in op numbers. Each job (an op, a fused W being part of its B) keeps its op's number.
pub(super) struct Reference<'g> {
    pub(super) graph: &'g Graph<'g>,
    /// The order of the starts: reloads stand after what has ended when they start.
    pub(super) plan: Plan,
    /// Start of each job, ns; of copies that are not made, where they would go: the offload at the end of
    /// its F, the reload right before its B.
    pub(super) start: Vec<i64>,
    /// Time of each job, ns.
    pub(super) span: Vec<i64>,
    /// Waits for memory and copies, by `plan`.
    pub(super) nodes: Vec<Node>,
    /// Jobs of the plan, each after all that it waits for.
    pub(super) sorted: Vec<u32>,
    /// Place of each job in its queue.
    pub(super) place: Vec<u32>,
    pub(super) makespan_ns: i64,
    /// Sum of the ends of the devices, ns.
    pub(super) ends_ns: i64,
}

impl<'g> Reference<'g> {
    /// The reference of a plan; None if the plan cannot run, or if its times cannot be told from its order
    /// (ops of length 0 that free what the same instant allocates).
    pub(super) fn new(graph: &'g Graph<'g>, plan: &Plan, evaluator: &mut Evaluator) -> Option<Self> {
        let problem = graph.problem;
        evaluator.run(graph, plan, true).ok()?;
        let mut schedule = evaluator.schedule(graph, plan);
        let mut plan = plan.clone();
        for round in 1..=ROUNDS {
            plan = Plan::from_order(graph, &Order::of(problem, &schedule)).ok()?;
            evaluator.run(graph, &plan, true).ok()?;
            let again = evaluator.schedule(graph, &plan);
            // In the last round the times stay those that the order was read from: legal, if not earliest.
            if again == schedule || round == ROUNDS {
                break;
            }
            schedule = again;
        }
        let none = graph.none() as usize;
        let mut start = vec![0; none];
        for x in schedule.ops.iter().flatten() {
            let ScheduledOp { op, stage, microbatch, start_ns } = *x;
            start[graph.op(op, stage, microbatch) as usize] = start_ns;
        }
        let fused = !problem.split_backward;
        let mut span: Vec<i64> = graph.nodes[..none].iter().map(|x| x.duration).collect();
        for pair in 0..graph.pairs as u32 {
            let of = |kind| graph.sibling(pair, kind) as usize;
            if fused {
                span[of(OpKind::B)] += span[of(OpKind::W)];
            }
            if !plan.offloaded[pair as usize] {
                start[of(OpKind::O)] = start[of(OpKind::F)] + span[of(OpKind::F)];
                start[of(OpKind::R)] = start[of(OpKind::B)] - span[of(OpKind::R)];
            }
        }
        let is_job = |op: u32| !(fused && graph.kind(op) == OpKind::W);
        let mut place = vec![0; none];
        let mut sorted = Vec::new();
        for queue in &plan.queues {
            for (i, op) in queue.iter().copied().filter(|&op| is_job(op)).enumerate() {
                place[op as usize] = i as u32;
                sorted.push(op);
            }
        }
        let rank = |op: u32| match graph.kind(op) {
            OpKind::F | OpKind::O => (0, graph.stage(op)),
            OpKind::B | OpKind::R => (1, usize::MAX - graph.stage(op)),
            OpKind::W => (2, usize::MAX - graph.stage(op)),
        };
        sorted.sort_by_key(|&op| {
            let at = start[op as usize];
            (at, at + span[op as usize], rank(op), place[op as usize])
        });
        let end = |op: u32| start[op as usize] + span[op as usize];
        let makespan_ns = sorted.iter().map(|&op| end(op)).max()?;
        let ends_ns = plan.queues[..problem.devices]
            .iter()
            .map(|queue| queue.iter().copied().filter(|&op| is_job(op)).map(end).max().unwrap_or(0))
            .sum();
        let nodes = evaluator.nodes.clone();
        Some(Reference { graph, plan, start, span, nodes, sorted, place, makespan_ns, ends_ns })
    }

    /// End of a job, ns.
    pub(super) fn end(&self, job: u32) -> i64 {
        self.start[job as usize] + self.span[job as usize]
    }

    /// Whether an op is a job of its own.
    pub(super) fn is_job(&self, op: u32) -> bool {
        self.graph.problem.split_backward || self.graph.kind(op) != OpKind::W
    }

    /// Compute jobs of a device, in order.
    pub(super) fn compute(&self, device: usize) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.plan.queues[device].iter().copied().filter(|&op| self.is_job(op))
    }

    /// Copies of a channel, in order.
    pub(super) fn copies(&self, channel: usize) -> &[u32] {
        &self.plan.queues[self.graph.problem.devices + channel]
    }

    /// The queue that a job is in: a device, or the number of devices plus a channel.
    pub(super) fn queue(&self, job: u32) -> usize {
        let graph = self.graph;
        let device = graph.device(job);
        match graph.kind(job) {
            OpKind::O => graph.problem.devices + graph.offload_channel[device],
            OpKind::R => graph.problem.devices + graph.reload_channel[device],
            _ => device,
        }
    }

    /// From the start of a B to the moment at which B's share of the memory is free, ns.
    pub(super) fn frees_after(&self, b: u32) -> i64 {
        self.graph.nodes[b as usize].duration
    }
}
