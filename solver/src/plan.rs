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
        let mut sequences: Vec<Vec<u32>> = order.devices.iter().map(|x| Vec::with_capacity(x.len())).collect();
        let mut channels: Vec<Vec<u32>> = order.channels.iter().map(|x| Vec::with_capacity(x.len())).collect();
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
        for pair in 0..graph.pairs {
            let name = |kind| graph.decode(graph.sibling(pair as u32, kind));
            let [f, b, w, r] = [0, 1, 2, 4].map(|kind| place[kind * graph.pairs + pair]);
            for (kind, place) in [(OpKind::F, f), (OpKind::B, b), (OpKind::W, w)] {
                if place == 0 {
                    return malformed(format!("{} is missing", name(kind)));
                }
            }
            if (copied[3 * graph.pairs + pair], copied[4 * graph.pairs + pair]) != (r > 0, r > 0) {
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
        self.schedule_and_peaks(graph, plan).0
    }

    /// The schedule of the plan that ran last, and the most that each device holds at any instant, `static`
    /// included; frees come before allocations.
    pub(crate) fn schedule_and_peaks(&self, graph: &Graph<'_>, plan: &Plan) -> (Schedule, Vec<i64>) {
        let p = graph.problem;
        // The copies of each device; both queues and these lists go by start, and by end.
        let mut offloads: Vec<Vec<u32>> = vec![Vec::new(); p.devices];
        let mut reloads = offloads.clone();
        for &op in plan.queues[p.devices..].iter().flatten() {
            let lists = if graph.kind(op) == OpKind::O { &mut offloads } else { &mut reloads };
            lists[graph.device(op)].push(op);
        }
        let mut makespan_ns = 0;
        let mut peaks = Vec::with_capacity(p.devices);
        let mut ops = Vec::with_capacity(p.devices);
        for d in 0..p.devices {
            let (compute, off, back) = (&plan.queues[d], &offloads[d], &reloads[d]);
            makespan_ns = makespan_ns.max(compute.last().map_or(0, |&op| self.path.end[op as usize]));
            let mut list = Vec::with_capacity(compute.len() + off.len() + back.len());
            let start = |op: u32| self.path.end[op as usize] - self.nodes[op as usize].duration;
            let next = |ops: &[u32], at: usize| ops.get(at).map_or(i64::MAX, |&op| start(op));
            // What has been listed of each; what has been freed by compute and by offloads.
            let (mut c, mut o, mut r) = (0, 0, 0);
            let (mut by_compute, mut by_offloads) = (0, 0);
            let mut held = p.bytes.r#static[d];
            let mut peak = held;
            let (mut from_c, mut from_o, mut from_r) = (next(compute, 0), next(off, 0), next(back, 0));
            loop {
                let now = from_c.min(from_o).min(from_r);
                if now == i64::MAX {
                    break;
                }
                // At one instant: compute, offloads, reloads.
                let op = if from_c == now {
                    c += 1;
                    from_c = next(compute, c);
                    compute[c - 1]
                } else if from_o == now {
                    o += 1;
                    from_o = next(off, o);
                    off[o - 1]
                } else {
                    r += 1;
                    from_r = next(back, r);
                    back[r - 1]
                };
                let kind = graph.kind(op);
                if matches!(kind, OpKind::F | OpKind::R) {
                    while let Some(&op) = compute.get(by_compute).filter(|&&x| self.path.end[x as usize] <= now) {
                        held -= if graph.kind(op) == OpKind::F { 0 } else { graph.bytes(op) };
                        by_compute += 1;
                    }
                    while let Some(&op) = off.get(by_offloads).filter(|&&x| self.path.end[x as usize] <= now) {
                        held -= graph.bytes(op);
                        by_offloads += 1;
                    }
                    held += graph.bytes(op);
                    // Only the last allocation of an instant tells what is held then: all before it are less.
                    peak = peak.max(held);
                }
                let (stage, microbatch) = graph.stage_and_microbatch(op);
                list.push(ScheduledOp { op: kind, stage, microbatch, start_ns: now });
            }
            ops.push(list);
            peaks.push(peak);
        }
        (Schedule { makespan_ns, ops }, peaks)
    }
}
