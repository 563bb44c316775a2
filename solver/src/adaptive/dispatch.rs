//! List scheduling by event simulation, in one of two ways: of F, B and W alone, within a memory that
//! counts a given share of what could be offloaded as resident (what to offload is chosen afterwards, see
//! [`super::evict`]); or with the copies of the stages that are to be offloaded, within the real memory and
//! at the pace of the channels ([`super::copies`]).
//!
//! An F or a reload starts only if memory stays *safe*: for each microbatch in flight on the device, oldest
//! first, what it still needs there fits beside what all younger ones cannot give up. So the oldest can
//! always go on; with compute alone the simulation never gets stuck.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::copies::Copies;
use super::policy::{CopyRule, Policy};
use super::shape::Shape;
use crate::graph::Graph;
use crate::schedule::OpKind;

/// The compute order, and when each op would end: if all copies were free and instant, where they are not
/// simulated.
#[derive(Debug, Clone)]
pub(crate) struct ComputeOrder {
    /// F, B, W of each device, and R where copies are simulated.
    pub(crate) sequences: Vec<Vec<u32>>,
    /// End of each F, B, W, ns.
    pub(crate) end: Vec<i64>,
}

/// Events: a device's op has ended, or one arrives from another device.
const ENDED: u32 = u32::MAX;

struct Device {
    busy: bool,
    held: i64,
    /// Ended W at the front are not there any more.
    weights: VecDeque<u32>,
    /// Microbatches in flight, oldest first.
    in_flight: VecDeque<InFlight>,
    /// B that wait for their reload alone.
    urgent: usize,
    /// The largest reload.
    largest: i64,
    /// Arrivals that are known of.
    coming_b: BinaryHeap<Reverse<i64>>,
    coming_f: BinaryHeap<Reverse<i64>>,
    /// What one microbatch holds with all of its stages.
    whole: i64,
    most_weights: usize,
}

/// A microbatch in flight on a device.
struct InFlight {
    microbatch: usize,
    /// Bytes that it cannot give up.
    holds: i64,
    /// Bytes that all of its stages before the end of B hold when offloaded.
    base: i64,
    /// Bytes reloaded, B not started.
    loaded: i64,
    /// Reloads that are to come.
    reloads: usize,
}

impl InFlight {
    /// The most that it may yet hold at once: its reloads come one by one.
    fn needs(&self, largest: i64) -> i64 {
        self.base + self.loaded + if self.reloads > 0 { largest } else { 0 }
    }
}

struct Stage {
    /// F started, arrived; B ended.
    started: usize,
    arrived: usize,
    returned: usize,
    /// B that can start, oldest first.
    ready: Vec<usize>,
    /// Bytes that a microbatch holds between F and B, copies left aside.
    holds: i64,
    most: usize,
}

/// A dispatch that is running.
struct Dispatch<'a> {
    graph: &'a Graph<'a>,
    shape: &'a Shape,
    policy: &'a Policy,
    devices: Vec<Device>,
    stages: Vec<Stage>,
    events: BinaryHeap<Reverse<(i64, u32, u32)>>,
    order: ComputeOrder,
    copies: Copies,
}

/// The compute order of a policy, copies left aside.
pub(crate) fn dispatch(graph: &Graph<'_>, shape: &Shape, policy: &Policy) -> ComputeOrder {
    let b = &graph.problem.bytes;
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
    let mut run = Dispatch::new(graph, shape, policy, &holds, Copies::none(graph));
    run.run();
    run.order
}

/// The order of a policy at the pace of its copies, and the copies of each channel. `None` where memory has
/// no room for one microbatch that is offloaded like this, or the policy gets stuck.
pub(crate) fn dispatch_with_copies(
    graph: &Graph<'_>,
    shape: &Shape,
    policy: &Policy,
) -> Option<(ComputeOrder, Vec<Vec<u32>>)> {
    let copies = Copies::new(graph, shape, policy)?;
    let mut run = Dispatch::new(graph, shape, policy, &graph.problem.bytes.activation, copies);
    run.run();
    // Now and then a reload and an F wait for each other all the same: no order then.
    let done = run.order.sequences.iter().flatten().filter(|&&x| graph.kind(x).is_compute()).count();
    (done == 3 * graph.pairs).then(|| (run.order, run.copies.served()))
}

impl<'a> Dispatch<'a> {
    fn new(graph: &'a Graph<'a>, shape: &'a Shape, policy: &'a Policy, holds: &[i64], copies: Copies) -> Self {
        let p = graph.problem;
        let stages: Vec<Stage> = (0..graph.stages)
            .map(|s| Stage {
                started: 0,
                arrived: if s == 0 { graph.microbatches } else { 0 },
                returned: 0,
                ready: Vec::new(),
                holds: holds[s],
                most: shape.most_in_flight(s, policy),
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
                urgent: 0,
                largest: shape.stages_of[d].iter().map(|&s| copies.bytes(s, 0)).max().unwrap_or(0),
                coming_b: BinaryHeap::new(),
                coming_f: BinaryHeap::new(),
                whole: shape.stages_of[d].iter().map(|&s| stages[s].holds).sum(),
                most_weights: most as usize,
            }
        };
        let devices = (0..p.devices).map(device).collect();
        let sequences =
            shape.stages_of.iter().map(|own| Vec::with_capacity(4 * own.len() * graph.microbatches)).collect();
        let order = ComputeOrder { sequences, end: vec![0; 3 * graph.pairs] };
        Dispatch { graph, shape, policy, devices, stages, events: BinaryHeap::new(), order, copies }
    }

    fn run(&mut self) {
        let mut touched: Vec<usize> = (0..self.devices.len()).collect();
        let mut now = 0;
        loop {
            let reloads_first = matches!(self.policy.copies, CopyRule::ReloadFirst | CopyRule::Due);
            for &d in &touched {
                if reloads_first {
                    self.copy(d, now);
                }
                if !self.devices[d].busy {
                    self.choose(d, now);
                }
                self.copy(d, now);
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
        } else if !self.copies.may_start(x.stage, x.microbatch) {
            self.devices[self.graph.device(op)].urgent += 1;
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
                self.copies.forward_ended(self.graph, op);
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
            OpKind::W => {
                device.busy = false;
                device.held -= p.bytes.weight_context[s];
            }
            OpKind::O => {
                device.held -= self.copies.bytes(s, x.microbatch);
                self.copies.ended(self.graph, op);
            }
            OpKind::R => {
                self.copies.ended(self.graph, op);
                // The B may have been waiting for it.
                if self.copies.has_gradient(self.graph.pair(op)) {
                    device.urgent -= 1;
                    self.arrived(self.graph.sibling(op, OpKind::B));
                }
            }
        }
    }

    /// Starts copies of a device's channels, where they can start now.
    fn copy(&mut self, d: usize, now: i64) {
        for c in [self.graph.offload_channel[d], self.graph.reload_channel[d]] {
            let fits = |op: u32| {
                let (e, s, j) = (self.graph.device(op), self.graph.stage(op), self.graph.microbatch(op));
                self.fits(e, j, self.copies.bytes(s, j), true)
            };
            let Some(op) = self.copies.next(self.graph, c, self.policy.copies, fits) else { continue };
            let end = now + self.graph.nodes[op as usize].duration;
            self.copies.start(c, op);
            self.events.push(Reverse((end, ENDED, op)));
            if self.graph.kind(op) == OpKind::R {
                self.reload(op);
            }
        }
    }

    /// Takes the memory of a reload; it stands before the B or W that is running, which frees none for it.
    fn reload(&mut self, op: u32) {
        let graph = self.graph;
        let (d, s, j) = (graph.device(op), graph.stage(op), graph.microbatch(op));
        let bytes = self.copies.bytes(s, j);
        let device = &mut self.devices[d];
        device.held += bytes;
        if let Some(entry) = device.in_flight.iter_mut().find(|x| x.microbatch == j) {
            entry.holds += bytes;
            entry.loaded += bytes;
            entry.reloads -= 1;
        }
        let sequence = &mut self.order.sequences[d];
        let running = device.busy && sequence.last().is_some_and(|&x| matches!(graph.kind(x), OpKind::B | OpKind::W));
        let at = if running { sequence.len() - 1 } else { sequence.len() };
        sequence.insert(at, op);
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
            .filter(|&(_, _, j, s)| {
                // Where a reload is all that a B waits for, it comes first; but nothing stops the oldest.
                let bytes = self.stages[s].holds;
                let oldest = device.in_flight.front().is_none_or(|x| x.microbatch == j);
                let yields = !oldest && device.urgent > 0 && self.policy.copies != CopyRule::FirstReady;
                self.fits(d, j, bytes, false) && (!yields || device.held + bytes + device.largest <= self.graph.room[d])
            })
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

    /// Whether an F or a reload of a microbatch may take its bytes: they fit, and memory stays safe.
    fn fits(&self, d: usize, j: usize, bytes: i64, reload: bool) -> bool {
        let device = &self.devices[d];
        let room = self.graph.room[d];
        if device.held + bytes > room {
            return false;
        }
        if device.held + bytes + device.whole <= room {
            return true;
        }
        let mut younger = 0;
        for x in device.in_flight.iter().rev() {
            let mut needs = x.needs(device.largest);
            if x.microbatch < j {
                needs += bytes;
            } else if x.microbatch == j && reload {
                needs += bytes - if x.reloads == 1 { device.largest } else { 0 };
            }
            if younger + needs > room {
                return false;
            }
            younger += x.holds;
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
        self.copies.compute_started(graph, op, now);
        let holds = self.stages[s].holds;
        let copied = self.copies.bytes(s, j);
        match x.kind {
            OpKind::F => {
                self.stages[s].started += 1;
                device.held += holds;
                match device.in_flight.iter_mut().rev().find(|x| x.microbatch == j) {
                    Some(entry) => entry.holds += holds - copied,
                    None => {
                        let own = &self.shape.stages_of[d];
                        let base = own.iter().map(|&s| self.stages[s].holds - self.copies.bytes(s, j)).sum();
                        let reloads = own.iter().filter(|&&s| self.copies.bytes(s, j) > 0).count();
                        let holds = holds - copied;
                        device.in_flight.push_back(InFlight { microbatch: j, holds, base, loaded: 0, reloads });
                    }
                }
                if s + 1 < graph.stages {
                    self.send(graph.op(OpKind::F, s + 1, j), end + p.hop_forward(s));
                }
            }
            OpKind::B => {
                self.stages[s].ready.retain(|&x| x != j);
                if let Some(at) = device.in_flight.iter().position(|x| x.microbatch == j) {
                    device.in_flight[at].holds -= holds;
                    device.in_flight[at].base -= holds - copied;
                    device.in_flight[at].loaded -= copied;
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
