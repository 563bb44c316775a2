//! The compute order: list scheduling of F, B and W by event simulation, within a memory that counts a
//! given share of what could be offloaded as resident.
//!
//! An F starts only if memory stays *safe*: for each microbatch in flight on the device, oldest first,
//! what it still needs there fits beside what all younger ones hold. So the oldest can always go on, and
//! the simulation never gets stuck.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::policy::Policy;
use crate::graph::Graph;
use crate::schedule::OpKind;

/// The compute order, and when each op would end if all copies were free and instant.
#[derive(Debug, Clone)]
pub(crate) struct ComputeOrder {
    /// F, B, W of each device.
    pub(crate) sequences: Vec<Vec<u32>>,
    /// End of each F, B, W, ns.
    pub(crate) end: Vec<i64>,
}

/// What never changes while policies do.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Stages of each device.
    pub(crate) stages_of: Vec<Vec<usize>>,
    /// Place of each stage among its device's.
    chunk: Vec<usize>,
    /// Microbatches in flight that keep the pipeline busy, a stage.
    needed: Vec<f64>,
    /// Place of a device along the pipeline, 0 to 1.
    depth: Vec<f64>,
}

impl Shape {
    pub(crate) fn new(graph: &Graph<'_>) -> Self {
        let p = graph.problem;
        let t = &p.time_ns;
        let mut stages_of = vec![Vec::new(); p.devices];
        let mut chunk = vec![0; graph.stages];
        for s in 0..graph.stages {
            let own = &mut stages_of[p.placement[s]];
            chunk[s] = own.len();
            own.push(s);
        }
        let whole = |s: &usize| t.forward[*s] + t.backward_input[*s] + t.backward_weight[*s];
        let period = stages_of.iter().map(|own| own.iter().map(whole).sum::<i64>()).max().unwrap_or(0).max(1);
        let mut life = vec![0; graph.stages];
        let mut beyond = 0;
        for s in (0..graph.stages).rev() {
            let fused = if p.split_backward { 0 } else { t.backward_weight[s] };
            life[s] = t.forward[s] + beyond + t.backward_input[s] + fused;
            beyond = life[s] + if s > 0 { p.hop_forward(s - 1) + p.hop_backward(s - 1) } else { 0 };
        }
        let last = (graph.stages.max(2) - 1) as f64;
        let depth = stages_of.iter().map(|own| own.first().map_or(0.0, |&s| (s as f64 / last).min(1.0))).collect();
        Shape { stages_of, chunk, needed: life.iter().map(|&x| x as f64 / period as f64).collect(), depth }
    }
}

/// Events: a device's op has ended, or one arrives from another device.
const ENDED: u32 = u32::MAX;

struct Device {
    busy: bool,
    held: i64,
    /// Ended W at the front are not there any more.
    weights: VecDeque<u32>,
    /// Microbatches in flight, oldest first: number, bytes held, bytes that it may yet hold in all.
    in_flight: VecDeque<(usize, i64, i64)>,
    /// Arrivals that are known of.
    coming_b: BinaryHeap<Reverse<i64>>,
    coming_f: BinaryHeap<Reverse<i64>>,
    /// What one microbatch holds with all of its stages.
    whole: i64,
    most_weights: usize,
}

struct Stage {
    /// F started, arrived; B ended.
    started: usize,
    arrived: usize,
    returned: usize,
    /// B that can start, oldest first.
    ready: Vec<usize>,
    /// Bytes that a microbatch holds between F and B.
    holds: i64,
    most: usize,
}

struct Dispatch<'a> {
    graph: &'a Graph<'a>,
    shape: &'a Shape,
    policy: &'a Policy,
    devices: Vec<Device>,
    stages: Vec<Stage>,
    events: BinaryHeap<Reverse<(i64, u32, u32)>>,
    order: ComputeOrder,
}

/// The compute order of a policy.
pub(crate) fn dispatch(graph: &Graph<'_>, shape: &Shape, policy: &Policy) -> ComputeOrder {
    let p = graph.problem;
    let b = &p.bytes;
    // Bytes that a microbatch holds at each stage between F and B. One must fit with all of its stages.
    let mut holds = b.activation.clone();
    for (d, own) in shape.stages_of.iter().enumerate() {
        let fixed = |chunks: usize| -> (i64, i64) {
            let off: i64 = own.iter().take(chunks).map(|&s| b.offloadable[s]).sum();
            (own.iter().map(|&s| b.activation[s]).sum::<i64>() - off, off)
        };
        let chunks = if fixed(policy.chunks).0 <= graph.room[d] { policy.chunks } else { own.len() };
        let (least, off) = fixed(chunks);
        if off > 0 {
            let resident = policy.resident.min((graph.room[d] - least) as f64 / off as f64).max(0.0);
            for &s in own.iter().take(chunks) {
                holds[s] -= b.offloadable[s] - (resident * b.offloadable[s] as f64) as i64;
            }
        }
    }
    let stages: Vec<Stage> = (0..graph.stages)
        .map(|s| {
            let most = (policy.in_flight * shape.needed[s]).ceil() as usize + policy.extra;
            Stage {
                started: 0,
                arrived: if s == 0 { graph.microbatches } else { 0 },
                returned: 0,
                ready: Vec::new(),
                holds: holds[s],
                most: most.max(1),
            }
        })
        .collect();
    let device = |d: usize| {
        let depth = shape.depth[d];
        let most = policy.weights_first * (1.0 - depth) + policy.weights_last * depth;
        Device {
            busy: false,
            held: 0,
            weights: VecDeque::new(),
            in_flight: VecDeque::new(),
            coming_b: BinaryHeap::new(),
            coming_f: BinaryHeap::new(),
            whole: shape.stages_of[d].iter().map(|&s| stages[s].holds).sum(),
            most_weights: most as usize,
        }
    };
    let devices = (0..p.devices).map(device).collect();
    let sequences = shape.stages_of.iter().map(|own| Vec::with_capacity(4 * own.len() * graph.microbatches)).collect();
    let order = ComputeOrder { sequences, end: vec![0; 3 * graph.pairs] };
    let mut run = Dispatch { graph, shape, policy, devices, stages, events: BinaryHeap::new(), order };
    run.run();
    run.order
}

impl Dispatch<'_> {
    fn run(&mut self) {
        let mut touched: Vec<usize> = (0..self.devices.len()).collect();
        let mut now = 0;
        loop {
            for &d in &touched {
                if !self.devices[d].busy {
                    self.choose(d, now);
                }
            }
            touched.clear();
            let Some(&Reverse((time, ..))) = self.events.peek() else { break };
            now = time;
            while let Some(&Reverse((time, what, op))) = self.events.peek() {
                if time > now {
                    break;
                }
                self.events.pop();
                let d = self.graph.device(op);
                if what == ENDED {
                    self.ended(op, now);
                } else {
                    self.arrived(op);
                }
                touched.push(d);
            }
            touched.sort_unstable();
            touched.dedup();
        }
    }

    fn arrived(&mut self, op: u32) {
        let x = self.graph.decode(op);
        let stage = &mut self.stages[x.stage];
        if x.kind == OpKind::F {
            stage.arrived += 1;
        } else {
            let at = stage.ready.partition_point(|&j| j < x.microbatch);
            stage.ready.insert(at, x.microbatch);
        }
    }

    fn ended(&mut self, op: u32, now: i64) {
        let x = self.graph.decode(op);
        let p = self.graph.problem;
        let s = x.stage;
        let device = &mut self.devices[p.placement[s]];
        let last = s + 1 == self.graph.stages;
        match x.kind {
            OpKind::F => {
                device.busy = false;
                if last {
                    self.arrived(self.graph.sibling(op, OpKind::B));
                }
            }
            OpKind::B => {
                let context = p.bytes.weight_context[s];
                device.held += context - self.stages[s].holds;
                self.stages[s].returned += 1;
                let w = self.graph.sibling(op, OpKind::W);
                if p.split_backward {
                    device.busy = false;
                    device.weights.push_back(w);
                } else {
                    self.start(w, now);
                }
            }
            _ => {
                device.busy = false;
                device.held -= p.bytes.weight_context[s];
            }
        }
    }

    /// Starts the best op that the device can run now, if any.
    fn choose(&mut self, d: usize, now: i64) {
        let p = self.graph.problem;
        let own = &self.shape.stages_of[d];
        let groups = |j: usize| j / self.policy.group.max(1);
        let device = &mut self.devices[d];
        for coming in [&mut device.coming_b, &mut device.coming_f] {
            while coming.peek().is_some_and(|x| x.0 <= now) {
                coming.pop();
            }
        }
        let device = &self.devices[d];
        let next_b = device.coming_b.peek().map_or(i64::MAX, |x| x.0);
        let next_f = device.coming_f.peek().map_or(i64::MAX, |x| x.0);
        let waits =
            |patience: f64, next: i64, time: i64| patience > 0.0 && next - now < (patience * time as f64) as i64;

        let b = own
            .iter()
            .filter_map(|&s| self.stages[s].ready.first().map(|&j| (groups(j), own.len() - self.shape.chunk[s], j, s)))
            .min();
        let f = own
            .iter()
            .filter_map(|&s| {
                let stage = &self.stages[s];
                let j = stage.started;
                let open = j < stage.arrived && j - stage.returned < stage.most;
                open.then_some((groups(j), self.shape.chunk[s], j, s))
            })
            .filter(|&(_, _, j, s)| self.fits(d, s, j))
            .min();
        let w = device.weights.front().copied();

        let too_many_weights = device.weights.len() > device.most_weights;
        let prefers_f = |s: usize| {
            let stage = &self.stages[s];
            ((stage.started - stage.returned) as f64) < self.policy.forward_first * stage.most as f64
        };
        let op = match (f, b, w) {
            (_, _, Some(w)) if too_many_weights => Some(w),
            (Some((_, _, j, s)), Some(_), _) if prefers_f(s) => Some(self.graph.op(OpKind::F, s, j)),
            (_, Some((_, _, j, s)), _) => Some(self.graph.op(OpKind::B, s, j)),
            (Some((_, _, j, s)), None, _) if !waits(self.policy.forward_patience, next_b, p.time_ns.forward[s]) => {
                Some(self.graph.op(OpKind::F, s, j))
            }
            (_, _, Some(w)) => {
                let time = self.graph.nodes[w as usize].duration;
                (!waits(self.policy.weight_patience, next_b.min(next_f), time)).then_some(w)
            }
            _ => None,
        };
        if let Some(op) = op {
            self.start(op, now);
        }
    }

    /// Whether F(s,j) may start: it fits, and memory stays safe.
    fn fits(&self, d: usize, s: usize, j: usize) -> bool {
        let device = &self.devices[d];
        let room = self.graph.room[d];
        let bytes = self.stages[s].holds;
        if device.held + bytes > room {
            return false;
        }
        if device.held + bytes + device.whole <= room {
            return true;
        }
        let mut younger = 0;
        for &(i, holds, needs) in device.in_flight.iter().rev() {
            if younger + needs + if i < j { bytes } else { 0 } > room {
                return false;
            }
            younger += holds;
        }
        true
    }

    fn start(&mut self, op: u32, now: i64) {
        let graph = self.graph;
        let p = graph.problem;
        let x = graph.decode(op);
        let (s, j) = (x.stage, x.microbatch);
        let d = p.placement[s];
        let end = now + graph.nodes[op as usize].duration;
        self.order.end[op as usize] = end;
        self.order.sequences[d].push(op);
        let device = &mut self.devices[d];
        device.busy = true;
        self.events.push(Reverse((end, ENDED, op)));
        let holds = self.stages[s].holds;
        match x.kind {
            OpKind::F => {
                self.stages[s].started += 1;
                device.held += holds;
                match device.in_flight.iter_mut().rev().find(|x| x.0 == j) {
                    Some(entry) => entry.1 += holds,
                    None => device.in_flight.push_back((j, holds, device.whole)),
                }
                if s + 1 < graph.stages {
                    self.send(graph.op(OpKind::F, s + 1, j), end + p.hop_forward(s));
                }
            }
            OpKind::B => {
                self.stages[s].ready.retain(|&x| x != j);
                if let Some(at) = device.in_flight.iter().position(|x| x.0 == j) {
                    device.in_flight[at].1 -= holds;
                    device.in_flight[at].2 -= holds;
                    if self.shape.chunk[s] == 0 {
                        device.in_flight.remove(at);
                    }
                }
                if p.split_backward && s > 0 {
                    self.send(graph.op(OpKind::B, s - 1, j), end + p.hop_backward(s - 1));
                }
            }
            _ => {
                device.weights.pop_front();
                if !p.split_backward && s > 0 {
                    self.send(graph.op(OpKind::B, s - 1, j), end + p.hop_backward(s - 1));
                }
            }
        }
    }

    /// An op's input arrives at a time.
    fn send(&mut self, op: u32, time: i64) {
        let device = &mut self.devices[self.graph.device(op)];
        let coming = if self.graph.kind(op) == OpKind::F { &mut device.coming_f } else { &mut device.coming_b };
        coming.push(Reverse(time));
        self.events.push(Reverse((time, 0, op)));
    }
}
