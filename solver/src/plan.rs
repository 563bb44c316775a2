//! A plan: an [`Order`] in op numbers, as simulator and search work on it.

use crate::graph::{Graph, Node};
use crate::longest_path::{LongestPath, Stopped};
use crate::memory::{self, Waits};
use crate::order::Order;
use crate::schedule::{OpKind, Schedule, ScheduledOp};
use crate::simulate::SimulateError;

/// An order in op numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// For each device: F, B, W and, where it allocates, R.
    pub(crate) sequences: Vec<Vec<u32>>,
    /// For each device its F, B and W (`sequences` without R), then for each channel its O and R.
    pub(crate) queues: Vec<Vec<u32>>,
    /// Whether `(s, j)` is offloaded.
    pub(crate) offloaded: Vec<bool>,
}

impl Plan {
    /// A plan from sequences and channels whose ops fit the problem.
    pub(crate) fn new(graph: &Graph<'_>, sequences: Vec<Vec<u32>>, channels: Vec<Vec<u32>>) -> Self {
        let mut offloaded = vec![false; graph.pairs];
        for &op in channels.iter().flatten() {
            offloaded[graph.pair(op)] = true;
        }
        let compute = |x: &Vec<u32>| x.iter().copied().filter(|&op| graph.kind(op) != OpKind::R).collect();
        let queues = sequences.iter().map(compute).chain(channels).collect();
        Plan { sequences, queues, offloaded }
    }

    /// The order's plan, if it has every op once where it belongs.
    pub(crate) fn from_order(graph: &Graph<'_>, order: &Order) -> Result<Self, SimulateError> {
        let p = graph.problem;
        let malformed = |message: String| Err(SimulateError::Malformed(message));
        if order.devices.len() != p.devices {
            return malformed(format!("expected {} device sequences, found {}", p.devices, order.devices.len()));
        }
        if order.channels.len() != graph.channel_names.len() {
            return malformed(format!(
                "expected {} channel sequences, found {}",
                graph.channel_names.len(),
                order.channels.len()
            ));
        }
        // Place of each op in its sequence, plus 1; R stands in two.
        let mut place = vec![0_u32; 5 * graph.pairs];
        let mut copied = vec![false; 5 * graph.pairs];
        let mut sequences = vec![Vec::new(); p.devices];
        let mut channels = vec![Vec::new(); order.channels.len()];
        for (d, ops) in order.devices.iter().enumerate() {
            for (i, op) in ops.iter().enumerate() {
                if op.stage >= graph.stages || op.microbatch >= graph.microbatches || op.kind == OpKind::O {
                    return malformed(format!("device {d}: {op} does not belong there"));
                }
                let x = graph.op(op.kind, op.stage, op.microbatch);
                if p.placement[op.stage] != d {
                    return malformed(format!("device {d}: {op} belongs on device {}", p.placement[op.stage]));
                }
                if std::mem::replace(&mut place[x as usize], i as u32 + 1) != 0 {
                    return malformed(format!("device {d}: {op} stands there twice"));
                }
                sequences[d].push(x);
            }
        }
        for (c, ops) in order.channels.iter().enumerate() {
            for op in ops {
                let fits = op.stage < graph.stages && op.microbatch < graph.microbatches && {
                    let d = p.placement[op.stage];
                    match op.kind {
                        OpKind::O => graph.offload_channel[d] == c,
                        OpKind::R => graph.reload_channel[d] == c,
                        _ => false,
                    }
                };
                if !fits {
                    return malformed(format!("channel {}: {op} does not belong there", graph.channel_names[c]));
                }
                let x = graph.op(op.kind, op.stage, op.microbatch);
                if std::mem::replace(&mut copied[x as usize], true) {
                    return malformed(format!("channel {}: {op} stands there twice", graph.channel_names[c]));
                }
                channels[c].push(x);
            }
        }
        for pair in 0..graph.pairs as u32 {
            let at = |kind| place[graph.sibling(pair, kind) as usize];
            let name = |kind| graph.decode(graph.sibling(pair, kind));
            let (f, b, w, r) = (at(OpKind::F), at(OpKind::B), at(OpKind::W), at(OpKind::R));
            for (kind, place) in [(OpKind::F, f), (OpKind::B, b), (OpKind::W, w)] {
                if place == 0 {
                    return malformed(format!("{} is missing", name(kind)));
                }
            }
            let copies =
                (copied[graph.sibling(pair, OpKind::O) as usize], copied[graph.sibling(pair, OpKind::R) as usize]);
            if copies != (r > 0, r > 0) {
                return malformed(format!(
                    "{} and {}: both on their channels and the reload in its device's sequence, or none",
                    name(OpKind::O),
                    name(OpKind::R)
                ));
            }
            if f > b || b > w || r > b {
                return malformed(format!(
                    "{}: F, B and W, or the reload and B, are in the wrong order",
                    name(OpKind::B)
                ));
            }
        }
        let plan = Plan::new(graph, sequences, channels);
        if !p.split_backward {
            for queue in &plan.queues[..p.devices] {
                for (i, &op) in queue.iter().enumerate() {
                    if graph.kind(op) == OpKind::B && queue.get(i + 1) != Some(&graph.sibling(op, OpKind::W)) {
                        return malformed(format!("{}: its W must follow at once (fused backward)", graph.decode(op)));
                    }
                }
            }
        }
        Ok(plan)
    }

    /// A device's offloads in the order of their channel.
    pub(crate) fn offloads_of<'a>(&'a self, graph: &'a Graph<'_>, device: usize) -> impl Iterator<Item = u32> + 'a {
        self.queues[graph.problem.devices + graph.offload_channel[device]]
            .iter()
            .copied()
            .filter(move |&op| graph.kind(op) == OpKind::O && graph.device(op) == device)
    }
}

/// Times of a plan, and the buffers that finding them takes.
#[derive(Debug, Clone)]
pub(crate) struct Evaluator {
    pub(crate) nodes: Vec<Node>,
    pub(crate) path: LongestPath,
    /// Waits that [`Evaluator::derive`] has changed, as they were, since this was last cleared.
    pub(crate) changed: Vec<Waits>,
    scratch: memory::Scratch,
    offloads: Vec<u32>,
}

/// Why a plan has no times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unschedulable {
    /// The op's device lacks bytes for it, whatever the times.
    Memory(u32, i64),
    /// The op cannot start.
    Stopped(Stopped),
}

impl Evaluator {
    pub(crate) fn new(graph: &Graph<'_>) -> Self {
        Evaluator {
            nodes: graph.nodes.clone(),
            path: LongestPath::default(),
            changed: Vec::new(),
            scratch: memory::Scratch::default(),
            offloads: Vec::new(),
        }
    }

    /// Sets what the ops of a device wait for because of memory and offloading.
    pub(crate) fn derive(
        &mut self,
        graph: &Graph<'_>,
        plan: &Plan,
        device: usize,
        limited: bool,
    ) -> Result<(), Unschedulable> {
        self.offloads.clear();
        self.offloads.extend(plan.offloads_of(graph, device));
        for &op in &plan.sequences[device] {
            if graph.kind(op) == OpKind::B {
                let reload = graph.sibling(op, OpKind::R);
                let copy = if plan.offloaded[graph.pair(op)] { reload } else { graph.none() };
                memory::set_waits(&mut self.nodes, &mut self.changed, op, copy, graph.none());
            }
        }
        let room = limited.then_some(graph.room[device]);
        let sequence = &plan.sequences[device];
        memory::derive(graph, room, sequence, &self.offloads, &mut self.nodes, &mut self.changed, &mut self.scratch)
            .map_err(|(op, missing)| Unschedulable::Memory(op, missing))
    }

    /// The makespan of a plan from scratch; ends are in `path.end`.
    pub(crate) fn run(&mut self, graph: &Graph<'_>, plan: &Plan, limited: bool) -> Result<i64, Unschedulable> {
        self.changed.clear();
        for device in 0..graph.problem.devices {
            self.derive(graph, plan, device, limited)?;
        }
        self.path.run(&self.nodes, &plan.queues, i64::MAX).map_err(Unschedulable::Stopped)
    }

    /// The schedule of the plan that ran last.
    pub(crate) fn schedule(&self, graph: &Graph<'_>, plan: &Plan) -> Schedule {
        let p = graph.problem;
        let mut ops: Vec<Vec<ScheduledOp>> = plan.sequences.iter().map(|x| Vec::with_capacity(x.len())).collect();
        let mut makespan_ns = 0;
        for &op in plan.queues.iter().flatten() {
            let end_ns = self.path.end[op as usize];
            makespan_ns = makespan_ns.max(end_ns);
            let start_ns = end_ns - self.nodes[op as usize].duration;
            let op = graph.decode(op);
            let entry = ScheduledOp { op: op.kind, stage: op.stage, microbatch: op.microbatch, start_ns };
            ops[p.placement[op.stage]].push(entry);
        }
        for list in &mut ops {
            list.sort_by_key(|x| (x.start_ns, x.start_ns + p.duration(x.op, x.stage), x.op, x.stage, x.microbatch));
        }
        Schedule { makespan_ns, ops }
    }
}
