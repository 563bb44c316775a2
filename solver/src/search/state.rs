//! A plan under local search: edits that can be taken back, and what they change re-derived.

use super::retime::{Before, Retimer, queue_of};
use crate::graph::Graph;
use crate::longest_path::{Stopped, UNSET};
use crate::objective::{self, Objective};
use crate::plan::{Evaluator, Plan, Unschedulable};
use crate::schedule::OpKind;

/// Weight of the mean end of the devices against the makespan: a direction where makespans are equal.
const MEAN_WEIGHT: f64 = 0.03;

pub(super) struct State<'g> {
    pub(super) graph: &'g Graph<'g>,
    pub(super) plan: Plan,
    pub(super) times: Retimer,
    /// Where each F, B, W, R stands in its device's sequence.
    pub(super) seat: Vec<u32>,
    /// Makespan, or, where that is the objective, the period that the releases lead to, ns.
    pub(super) value_ns: i64,
    /// The value, with a small share of the mean over the devices.
    pub(super) objective: f64,
    /// What the edit has changed, as it was: sequences, and queues.
    devices: Vec<(usize, Vec<u32>)>,
    queues: Vec<Before>,
    toggled: Vec<usize>,
    spare: Vec<Vec<u32>>,
    /// No mean of the devices is less, ns.
    least_mean: f64,
    /// The latest release, ns.
    latest: i64,
}

impl<'g> State<'g> {
    /// The state of a plan that can run. For the period, devices do not start before the times that are best
    /// for this plan.
    pub(super) fn new(graph: &'g Graph<'g>, plan: Plan, objective: Objective) -> Option<Self> {
        let p = graph.problem;
        let compute: i64 = graph.nodes[..3 * graph.pairs].iter().map(|x| x.duration).sum();
        let release = match objective {
            Objective::Makespan => Vec::new(),
            Objective::Period => releases(graph, &plan)?,
        };
        let latest = release.iter().copied().max().unwrap_or(0);
        let times = Retimer::new(graph, &plan, release)?;
        let mut state = State {
            graph,
            plan,
            times,
            seat: vec![0; graph.nodes.len()],
            value_ns: 0,
            objective: 0.0,
            devices: Vec::new(),
            queues: Vec::new(),
            toggled: Vec::new(),
            spare: Vec::new(),
            least_mean: compute as f64 / p.devices as f64,
            latest,
        };
        (state.value_ns, state.objective) = state.measure();
        for d in 0..p.devices {
            state.index_device(d);
        }
        Some(state)
    }

    /// About the mean time of an op of compute, ns.
    pub(super) fn mean_time(&self) -> i64 {
        (self.least_mean * self.graph.problem.devices as f64 / (3 * self.graph.pairs) as f64) as i64
    }

    /// Value, ns, and objective.
    fn measure(&self) -> (i64, f64) {
        self.measure_of(self.times.ends(), &self.plan)
    }

    /// Value, ns, and objective of a plan with these ends.
    pub(super) fn measure_of(&self, ends: &[i64], plan: &Plan) -> (i64, f64) {
        let devices = self.graph.problem.devices;
        let (mut value, mut sum) = (0, 0);
        for (d, queue) in plan.queues[..devices].iter().enumerate() {
            let span = queue.last().map_or(0, |&op| ends[op as usize] - self.times.release(d));
            value = value.max(span);
            sum += span;
        }
        let mean = sum as f64 / devices as f64;
        (value, (1.0 - MEAN_WEIGHT) * value as f64 + MEAN_WEIGHT * mean)
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
        if self.queues.iter().all(|x| x.queue != queue) {
            let mut old = self.spare.pop().unwrap_or_default();
            old.clone_from(&self.plan.queues[queue]);
            self.queues.push(Before { queue, ops: old });
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

    /// Start of an op in the accepted plan, ns; of a copy that is new, about where it will be.
    pub(super) fn start(&self, op: u32) -> i64 {
        if self.times.end(op) < UNSET {
            return self.times.start(op);
        }
        match self.graph.kind(op) {
            OpKind::O => self.times.end(self.graph.sibling(op, OpKind::F)),
            _ => self.times.start(self.graph.sibling(op, OpKind::B)) - self.graph.nodes[op as usize].duration,
        }
    }

    /// End of an op in the accepted plan, ns.
    pub(super) fn end(&self, op: u32) -> i64 {
        self.times.end(op)
    }

    /// The longest value that is worth timing to the end: the objective may not exceed `threshold`, and the
    /// value may grow by no more than the objective, whatever the mean end gains.
    pub(super) fn limit(&self, threshold: f64) -> i64 {
        let most = (threshold - MEAN_WEIGHT * self.least_mean) / (1.0 - MEAN_WEIGHT);
        most.min(self.value_ns as f64 + (threshold - self.objective).max(0.0)) as i64
    }

    /// Times the edited plan: keeps it if its objective is no more than `threshold` and its value within
    /// the limit, else takes the edit back. Returns whether it was kept.
    pub(super) fn settle(&mut self, threshold: f64) -> bool {
        if self.devices.is_empty() && self.queues.is_empty() {
            return false;
        }
        for i in 0..self.devices.len() {
            let d = self.devices[i].0;
            let old = self.rebuild_queue(d);
            self.queues.push(Before { queue: d, ops: old });
        }
        let limit = self.limit(threshold);
        let devices = self.devices.iter().map(|x| x.0);
        match self.times.run(self.graph, &self.plan, devices, &self.queues, &self.toggled, limit + self.latest) {
            // Nothing waits for other ops than before: at most, a reload has its place elsewhere.
            Ok(false) if self.devices.iter().all(|(d, old)| self.plan.sequences[*d] == *old) => {}
            Ok(_) => {
                let (value_ns, objective) = self.measure();
                if value_ns <= limit && objective <= threshold {
                    (self.value_ns, self.objective) = (value_ns, objective);
                    self.times.accept(self.graph, &self.plan, &self.queues);
                    for i in 0..self.devices.len() {
                        self.index_device(self.devices[i].0);
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

    /// The edited plan, with its queues.
    #[cfg(test)]
    pub(super) fn edited(&mut self) -> Plan {
        let devices: Vec<usize> = self.devices.iter().map(|x| x.0).collect();
        let old: Vec<Vec<u32>> = devices.iter().map(|&d| self.rebuild_queue(d)).collect();
        let plan = self.plan.clone();
        for (&d, old) in devices.iter().zip(old) {
            self.plan.queues[d] = old;
        }
        plan
    }

    /// The compute queue of a device from its sequence; a fused W goes right behind its B. Returns the old
    /// queue.
    fn rebuild_queue(&mut self, d: usize) -> Vec<u32> {
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
        let mut queue = self.spare.pop().unwrap_or_default();
        queue.clear();
        queue.extend(self.plan.sequences[d].iter().copied().filter(|&op| graph.kind(op) != OpKind::R));
        std::mem::replace(&mut self.plan.queues[d], queue)
    }

    fn index_device(&mut self, d: usize) {
        for (i, &op) in self.plan.sequences[d].iter().enumerate() {
            self.seat[op as usize] = i as u32;
        }
    }

    /// Takes the edit back.
    pub(super) fn revert(&mut self) {
        self.times.revert();
        for (d, old) in &mut self.devices {
            std::mem::swap(&mut self.plan.sequences[*d], old);
        }
        for x in &mut self.queues {
            std::mem::swap(&mut self.plan.queues[x.queue], &mut x.ops);
        }
        for &pair in &self.toggled {
            self.plan.offloaded[pair] = !self.plan.offloaded[pair];
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.spare.extend(self.devices.drain(..).map(|x| x.1));
        self.spare.extend(self.queues.drain(..).map(|x| x.ops));
        self.toggled.clear();
    }

    /// The ops of a longest path of the accepted plan, last first.
    pub(super) fn critical_path(&self, path: &mut Vec<u32>) {
        path.clear();
        let devices = &self.plan.queues[..self.graph.problem.devices];
        let last = devices.iter().enumerate().filter_map(|(d, x)| Some((d, *x.last()?)));
        let last = last.max_by_key(|&(d, op)| self.end(op) - self.times.release(d));
        let Some((_, mut op)) = last else { return };
        loop {
            path.push(op);
            let start = self.start(op);
            if start <= 0 {
                return;
            }
            let node = &self.times.evaluator.nodes[op as usize];
            let queue = queue_of(self.graph, op);
            let place = self.times.place[op as usize] as usize;
            let before = if place > 0 { self.plan.queues[queue][place - 1] } else { self.graph.none() };
            let ends = [(before, 0), (node.copy, 0), (node.freed, 0), (node.data, node.lag)];
            // Ops of length 0 could lead around in a circle; the path need not be whole.
            let next = ends.into_iter().find(|&(x, lag)| x != self.graph.none() && self.end(x) + lag == start);
            match next {
                Some((x, _)) if path.len() < self.graph.nodes.len() => op = x,
                _ => return,
            }
        }
    }
}

/// The start of each device with which a plan has its least period, ns.
fn releases(graph: &Graph<'_>, plan: &Plan) -> Option<Vec<i64>> {
    let mut evaluator = Evaluator::new(graph);
    objective::evaluate(Objective::Period, graph, &mut evaluator, plan)?;
    let start = |&op: &u32| evaluator.path.end[op as usize] - graph.nodes[op as usize].duration;
    Some(plan.queues[..graph.problem.devices].iter().map(|queue| queue.first().map_or(0, start)).collect())
}
