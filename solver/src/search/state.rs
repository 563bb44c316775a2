//! A plan under local search: edits that can be taken back, and what they change re-derived.

use crate::graph::Graph;
use crate::longest_path::Stopped;
use crate::plan::{Evaluator, Plan, Unschedulable};
use crate::schedule::OpKind;

/// Weight of the mean end of the devices against the makespan: a direction where makespans are equal.
const MEAN_WEIGHT: f64 = 0.03;

pub(super) struct State<'g> {
    pub(super) graph: &'g Graph<'g>,
    pub(super) plan: Plan,
    pub(super) evaluator: Evaluator,
    /// Ends of the ops of the accepted plan, ns.
    pub(super) end: Vec<i64>,
    /// Where each op stands in its queue; for F, B, W, R also where in its device's sequence.
    pub(super) place: Vec<u32>,
    pub(super) seat: Vec<u32>,
    pub(super) makespan_ns: i64,
    pub(super) objective: f64,
    /// What the edit has changed, as it was.
    devices: Vec<(usize, Vec<u32>)>,
    channels: Vec<(usize, Vec<u32>)>,
    toggled: Vec<usize>,
    spare: Vec<Vec<u32>>,
    /// No mean end of the devices is less, ns.
    least_mean: f64,
}

impl<'g> State<'g> {
    /// The state of a plan that can run.
    pub(super) fn new(graph: &'g Graph<'g>, plan: Plan) -> Option<Self> {
        let p = graph.problem;
        let count = graph.nodes.len();
        let compute: i64 = graph.nodes[..3 * graph.pairs].iter().map(|x| x.duration).sum();
        let mut state = State {
            graph,
            plan,
            evaluator: Evaluator::new(graph),
            end: Vec::new(),
            place: vec![0; count],
            seat: vec![0; count],
            makespan_ns: 0,
            objective: 0.0,
            devices: Vec::new(),
            channels: Vec::new(),
            toggled: Vec::new(),
            spare: Vec::new(),
            least_mean: compute as f64 / p.devices as f64,
        };
        state.makespan_ns = state.evaluator.run(graph, &state.plan, true).ok()?;
        state.objective = state.measure(state.makespan_ns);
        state.end.clone_from(&state.evaluator.path.end);
        for d in 0..p.devices {
            state.index_device(d);
        }
        for c in 0..graph.channel_names.len() {
            state.index_channel(c);
        }
        Some(state)
    }

    fn measure(&self, makespan_ns: i64) -> f64 {
        let devices = self.graph.problem.devices;
        let mean = self.evaluator.path.clock[..devices].iter().sum::<i64>() as f64 / devices as f64;
        (1.0 - MEAN_WEIGHT) * makespan_ns as f64 + MEAN_WEIGHT * mean
    }

    /// The sequence of a device, to be changed.
    pub(super) fn device(&mut self, d: usize) -> &mut Vec<u32> {
        if self.devices.iter().all(|x| x.0 != d) {
            let mut old = self.spare.pop().unwrap_or_default();
            old.clone_from(&self.plan.sequences[d]);
            self.devices.push((d, old));
        }
        &mut self.plan.sequences[d]
    }

    /// The copies of a channel, to be changed. Where the order of a device's offloads changes, so must
    /// the device be marked as changed.
    pub(super) fn channel(&mut self, c: usize) -> &mut Vec<u32> {
        let queue = self.graph.problem.devices + c;
        if self.channels.iter().all(|x| x.0 != c) {
            let mut old = self.spare.pop().unwrap_or_default();
            old.clone_from(&self.plan.queues[queue]);
            self.channels.push((c, old));
        }
        &mut self.plan.queues[queue]
    }

    /// The copies of a channel.
    pub(super) fn copies(&self, c: usize) -> &[u32] {
        &self.plan.queues[self.graph.problem.devices + c]
    }

    /// Marks a pair as offloaded, or not.
    pub(super) fn set_offloaded(&mut self, pair: usize, offloaded: bool) {
        if self.plan.offloaded[pair] != offloaded {
            self.plan.offloaded[pair] = offloaded;
            self.toggled.push(pair);
        }
    }

    /// Start of an op in the accepted plan, ns.
    pub(super) fn start(&self, op: u32) -> i64 {
        self.end[op as usize] - self.graph.nodes[op as usize].duration
    }

    /// Times the edited plan: keeps it if it is no worse than `threshold`, else takes the edit back.
    /// Returns whether it was kept.
    pub(super) fn settle(&mut self, threshold: f64) -> bool {
        if self.devices.is_empty() && self.channels.is_empty() {
            return false;
        }
        match self.evaluate(threshold) {
            Ok(makespan_ns) => {
                let objective = self.measure(makespan_ns);
                if objective <= threshold {
                    self.makespan_ns = makespan_ns;
                    self.objective = objective;
                    std::mem::swap(&mut self.end, &mut self.evaluator.path.end);
                    for i in 0..self.devices.len() {
                        self.index_device(self.devices[i].0);
                    }
                    for i in 0..self.channels.len() {
                        self.index_channel(self.channels[i].0);
                    }
                    self.forget();
                    return true;
                }
            }
            Err(Unschedulable::Memory(..) | Unschedulable::Stopped(Stopped::Cycle(_) | Stopped::Limit)) => {}
        }
        self.revert();
        false
    }

    fn evaluate(&mut self, threshold: f64) -> Result<i64, Unschedulable> {
        for i in 0..self.devices.len() {
            let d = self.devices[i].0;
            self.rebuild_queue(d);
        }
        for i in 0..self.devices.len() {
            self.evaluator.derive(self.graph, &self.plan, self.devices[i].0, true)?;
        }
        let limit = (threshold - MEAN_WEIGHT * self.least_mean) / (1.0 - MEAN_WEIGHT);
        self.evaluator.path.run(&self.evaluator.nodes, &self.plan.queues, limit as i64).map_err(Unschedulable::Stopped)
    }

    /// The compute queue of a device from its sequence; a fused W goes right behind its B.
    fn rebuild_queue(&mut self, d: usize) {
        let graph = self.graph;
        if !graph.problem.split_backward {
            let mut glued = self.spare.pop().unwrap_or_default();
            glued.clear();
            for &op in &self.plan.sequences[d] {
                match graph.kind(op) {
                    OpKind::W => {}
                    OpKind::B => glued.extend([op, graph.sibling(op, OpKind::W)]),
                    _ => glued.push(op),
                }
            }
            std::mem::swap(&mut glued, &mut self.plan.sequences[d]);
            self.spare.push(glued);
        }
        let queue = &mut self.plan.queues[d];
        queue.clear();
        queue.extend(self.plan.sequences[d].iter().copied().filter(|&op| graph.kind(op) != OpKind::R));
    }

    fn index_device(&mut self, d: usize) {
        for (i, &op) in self.plan.sequences[d].iter().enumerate() {
            self.seat[op as usize] = i as u32;
        }
        for (i, &op) in self.plan.queues[d].iter().enumerate() {
            self.place[op as usize] = i as u32;
        }
    }

    fn index_channel(&mut self, c: usize) {
        for (i, &op) in self.plan.queues[self.graph.problem.devices + c].iter().enumerate() {
            self.place[op as usize] = i as u32;
        }
    }

    /// Takes the edit back.
    pub(super) fn revert(&mut self) {
        let devices = self.graph.problem.devices;
        for (d, old) in &mut self.devices {
            std::mem::swap(&mut self.plan.sequences[*d], old);
        }
        for (c, old) in &mut self.channels {
            std::mem::swap(&mut self.plan.queues[devices + *c], old);
        }
        for &pair in &self.toggled {
            self.plan.offloaded[pair] = !self.plan.offloaded[pair];
        }
        for i in 0..self.devices.len() {
            let d = self.devices[i].0;
            self.rebuild_queue(d);
        }
        for i in 0..self.devices.len() {
            let derived = self.evaluator.derive(self.graph, &self.plan, self.devices[i].0, true);
            debug_assert!(derived.is_ok(), "the accepted plan fits in memory");
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.spare.extend(self.devices.drain(..).map(|x| x.1));
        self.spare.extend(self.channels.drain(..).map(|x| x.1));
        self.toggled.clear();
    }

    /// The ops of a longest path of the accepted plan, last first.
    pub(super) fn critical_path(&self, path: &mut Vec<u32>) {
        path.clear();
        let last = self.plan.queues.iter().filter_map(|x| x.last()).max_by_key(|&&op| self.end[op as usize]);
        let Some(&last) = last else { return };
        let devices = self.graph.problem.devices;
        let mut op = last;
        loop {
            path.push(op);
            let start = self.start(op);
            if start <= 0 {
                return;
            }
            let node = &self.evaluator.nodes[op as usize];
            let d = self.graph.device(op);
            let queue = match self.graph.kind(op) {
                OpKind::O => devices + self.graph.offload_channel[d],
                OpKind::R => devices + self.graph.reload_channel[d],
                _ => d,
            };
            let place = self.place[op as usize] as usize;
            let before = if place > 0 { self.plan.queues[queue][place - 1] } else { self.graph.none() };
            let ends = [(before, 0), (node.copy, 0), (node.freed, 0), (node.data, node.lag)];
            // Ops of length 0 could lead around in a circle; the path need not be whole.
            let next = ends.into_iter().find(|&(x, lag)| x != self.graph.none() && self.end[x as usize] + lag == start);
            match next {
                Some((x, _)) if path.len() < self.graph.nodes.len() => op = x,
                _ => return,
            }
        }
    }
}
