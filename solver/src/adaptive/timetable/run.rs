//! The events of a policy's run, and what a device does next.

use std::cmp::Reverse;

use super::super::policy::Policy;
use super::super::shape::Shape;
use super::{ARRIVED, ENDED, InFlight, NEVER, Stage, Timetable, WAKE};
use crate::graph::Graph;
use crate::schedule::OpKind;

/// One policy's run.
pub(super) struct Run<'a> {
    pub(super) graph: &'a Graph<'a>,
    pub(super) shape: &'a Shape,
    pub(super) policy: &'a Policy,
    pub(super) state: &'a mut Timetable,
}

impl Run<'_> {
    pub(super) fn run(&mut self) {
        let mut touched = std::mem::take(&mut self.state.touched);
        touched.clear();
        touched.extend(0..self.state.devices.len());
        let mut now = 0;
        loop {
            for &d in &touched {
                self.reload_pending(d, now);
                if !self.state.devices[d].busy {
                    self.choose(d, now);
                    self.reload_pending(d, now);
                }
            }
            touched.clear();
            let Some(&Reverse((time, ..))) = self.state.events.peek() else { break };
            now = time;
            while let Some(&Reverse((time, what, x))) = self.state.events.peek() {
                if time > now {
                    break;
                }
                self.state.events.pop();
                let d = if what == WAKE { x as usize } else { self.graph.device(x) };
                match what {
                    ENDED => self.ended(x),
                    ARRIVED => self.arrived(x),
                    _ => {}
                }
                touched.push(d);
            }
            touched.sort_unstable();
            touched.dedup();
        }
        self.state.touched = touched;
    }

    pub(super) fn time(&self, op: u32) -> i64 {
        self.graph.nodes[op as usize].duration
    }

    pub(super) fn event(&mut self, time: i64, what: u32, x: u32) {
        self.state.events.push(Reverse((time, what, x)));
    }

    fn arrived(&mut self, op: u32) {
        let x = self.graph.decode(op);
        let stage = &mut self.state.stages[x.stage];
        if x.kind == OpKind::F {
            stage.arrived += 1;
            return;
        }
        let pair = &mut self.state.pairs[self.graph.pair(op)];
        if pair.ready || (pair.offload_end != NEVER && pair.reload_end == NEVER) {
            return;
        }
        pair.ready = true;
        let at = stage.ready.partition_point(|&j| j < x.microbatch);
        stage.ready.insert(at, x.microbatch);
    }

    fn ended(&mut self, op: u32) {
        let x = self.graph.decode(op);
        let p = self.graph.problem;
        let device = &mut self.state.devices[p.placement[x.stage]];
        let b = &p.bytes;
        let s = x.stage;
        match x.kind {
            OpKind::F => device.busy = false,
            OpKind::B => {
                self.state.stages[s].returned += 1;
                device.locked -= b.activation[s] - b.weight_context[s];
                if p.split_backward {
                    device.busy = false;
                    device.weights.push_back(self.graph.sibling(op, OpKind::W));
                }
            }
            _ => {
                device.locked -= b.weight_context[s];
                device.busy = false;
            }
        }
    }

    /// The gradient of a pair is going to come. Whether its reload is to be booked.
    fn announce(&mut self, b: u32, time: i64) -> bool {
        let pair = self.graph.pair(b);
        self.state.pairs[pair].gradient = time;
        let device = &mut self.state.devices[self.graph.device(b)];
        if self.state.pairs[pair].offload_end == NEVER {
            device.coming_b.push(Reverse(time));
            self.event(time, ARRIVED, b);
            return false;
        }
        device.pending.push(pair as u32);
        true
    }

    /// Starts the best op that the device can run now, if any.
    fn choose(&mut self, d: usize, now: i64) {
        let (graph, policy) = (self.graph, self.policy);
        let times = &graph.problem.time_ns;
        let shape = self.shape;
        let own = &shape.stages_of[d];
        let groups = |j: usize| j / policy.group.max(1);
        let device = &mut self.state.devices[d];
        for coming in [&mut device.coming_b, &mut device.coming_f] {
            while coming.peek().is_some_and(|x| x.0 <= now) {
                coming.pop();
            }
        }
        let next_b = device.coming_b.peek().map_or(NEVER, |x| x.0);
        let next_f = device.coming_f.peek().map_or(NEVER, |x| x.0);
        let waits =
            |patience: f64, next: i64, time: i64| patience > 0.0 && next - now < (patience * time as f64) as i64;
        let w = device.weights.front().copied();
        if let Some(w) = w.filter(|_| device.weights.len() > device.most_weights) {
            return self.start(w, now);
        }
        let mut open = std::mem::take(&mut self.state.open);
        open.clear();
        let stages = &self.state.stages;
        let ready = own.iter().filter_map(|&s| Some((stages[s].ready.first().copied()?, s)));
        let b = ready.map(|(j, s)| (groups(j), own.len() - shape.chunk[s], j, s)).min();
        let prefers_f =
            |stage: &Stage| ((stage.started - stage.returned) as f64) < policy.forward_first * stage.most as f64;
        open.extend(own.iter().filter_map(|&s| {
            let stage = &stages[s];
            let j = stage.started;
            let open = j < stage.arrived && j - stage.returned < stage.most && (b.is_none() || prefers_f(stage));
            let waits = b.is_none() && waits(policy.forward_patience, next_b, times.forward[s]);
            let chunk = shape.chunk[s];
            let first = if policy.deep_first { own.len() - chunk } else { groups(j) };
            (open && !waits).then_some((first, chunk, j, s))
        }));
        open.sort_unstable();
        let admitted = open.iter().copied().find(|&(_, _, j, s)| self.is_safe(d, s, j) && self.admit(d, s, now));
        self.state.open = open;
        if let Some((_, _, j, s)) = admitted {
            return self.start(graph.op(OpKind::F, s, j), now);
        }
        if let Some((_, _, j, s)) = b {
            return self.start(graph.op(OpKind::B, s, j), now);
        }
        let filler = w.filter(|&w| !waits(policy.weight_patience, next_b.min(next_f), self.time(w)));
        if let Some(w) = filler {
            self.start(w, now);
        }
    }

    fn start(&mut self, op: u32, now: i64) {
        let graph = self.graph;
        let p = graph.problem;
        let x = graph.decode(op);
        let (s, j, pair) = (x.stage, x.microbatch, graph.pair(op));
        let d = p.placement[s];
        let end = now + self.time(op);
        let (activation, offloadable, context) =
            (p.bytes.activation[s], p.bytes.offloadable[s], p.bytes.weight_context[s]);
        let device = &mut self.state.devices[d];
        device.busy = true;
        device.compute.push((now, end, op));
        match x.kind {
            OpKind::F => {
                device.held.add(now, activation);
                device.locked += activation - offloadable;
                if offloadable > 0 {
                    device.resident.push(pair as u32);
                }
                let keeps = activation - offloadable;
                if self.state.keeps[d] > 0 {
                    match device.in_flight.iter_mut().rev().find(|x| x.microbatch == j) {
                        Some(entry) => entry.keeps += keeps,
                        None => {
                            let will_keep = self.state.keeps[d];
                            device.in_flight.push_back(InFlight { microbatch: j, keeps, will_keep });
                        }
                    }
                }
                self.state.pairs[pair].forward_end = end;
                self.state.stages[s].started += 1;
                if s + 1 < graph.stages {
                    let next = graph.op(OpKind::F, s + 1, j);
                    let time = end + p.hop_forward(s);
                    self.state.devices[p.placement[s + 1]].coming_f.push(Reverse(time));
                    self.event(time, ARRIVED, next);
                } else {
                    // It is there yet: nothing to reload.
                    let _ = self.announce(graph.op(OpKind::B, s, j), end);
                }
            }
            OpKind::B => {
                let ready = &mut self.state.stages[s].ready;
                if let Some(at) = ready.iter().position(|&x| x == j) {
                    ready.remove(at);
                }
                device.held.add(end, context - activation);
                if self.state.pairs[pair].offload_end == NEVER {
                    device.locked += offloadable;
                    device.no_longer_resident(pair as u32);
                }
                if let Some(at) = device.in_flight.iter().position(|x| x.microbatch == j) {
                    device.in_flight[at].keeps -= activation - offloadable;
                    device.in_flight[at].will_keep -= activation - offloadable;
                    if self.shape.chunk[s] == 0 {
                        device.in_flight.remove(at);
                    }
                }
                let mut sent = end;
                if !p.split_backward {
                    let w = graph.sibling(op, OpKind::W);
                    sent += graph.nodes[w as usize].duration;
                    device.compute.push((end, sent, w));
                    device.held.add(sent, -context);
                    self.event(sent, ENDED, w);
                }
                if s > 0 {
                    let time = sent + p.hop_backward(s - 1);
                    if self.announce(graph.op(OpKind::B, s - 1, j), time) {
                        self.event(now, WAKE, p.placement[s - 1] as u32);
                    }
                }
            }
            _ => {
                device.held.add(end, -context);
                device.weights.pop_front();
            }
        }
        self.event(end, ENDED, op);
    }
}
