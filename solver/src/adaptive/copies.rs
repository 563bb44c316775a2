//! The copies of a dispatch that simulates them: each microbatch of the stages that are offloaded goes as
//! soon as its F has ended, and is wanted back some time before its B can start.

use std::collections::VecDeque;

use super::policy::{CopyRule, Policy};
use super::shape::Shape;
use crate::graph::Graph;
use crate::schedule::OpKind;

/// A channel: what is offloaded next, what is wanted back by when, and what has been served.
#[derive(Debug, Clone, Default)]
struct Channel {
    busy: bool,
    offloads: VecDeque<u32>,
    wanted: Vec<(i64, u32)>,
    served: Vec<u32>,
}

/// What a pair of an offloaded stage has behind it.
#[derive(Debug, Clone, Copy, Default)]
struct Pair {
    gone: bool,
    back: bool,
    gradient: bool,
}

/// The copies of a dispatch.
#[derive(Debug, Clone)]
pub(super) struct Copies {
    /// Bytes that each stage offloads, and from which microbatch on it does not.
    stages: Vec<(i64, usize)>,
    channels: Vec<Channel>,
    pairs: Vec<Pair>,
    microbatches: usize,
    /// Stages whose reload is wanted when F or B of a stage starts, and how long it then is to their B.
    after_f: Vec<Vec<(usize, i64)>>,
    after_b: Vec<Vec<(usize, i64)>>,
}

impl Copies {
    /// None are simulated.
    pub(super) fn none(graph: &Graph<'_>) -> Self {
        Copies {
            stages: vec![(0, 0); graph.stages],
            channels: Vec::new(),
            pairs: Vec::new(),
            microbatches: graph.microbatches,
            after_f: Vec::new(),
            after_b: Vec::new(),
        }
    }

    /// The stages that the policy offloads. `None` where one microbatch does not fit like this.
    pub(super) fn new(graph: &Graph<'_>, shape: &Shape, policy: &Policy) -> Option<Self> {
        let p = graph.problem;
        let (b, t) = (&p.bytes, &p.time_ns);
        let mut copies = Copies {
            channels: vec![Channel::default(); graph.channel_names.len()],
            pairs: vec![Pair::default(); graph.pairs],
            after_f: vec![Vec::new(); graph.stages],
            after_b: vec![Vec::new(); graph.stages],
            ..Copies::none(graph)
        };
        // The shortest time between F and B of a stage.
        let mut idle = vec![0; graph.stages];
        for s in (0..graph.stages - 1).rev() {
            let fused = if p.split_backward { 0 } else { t.backward_weight[s + 1] };
            let next = t.forward[s + 1] + t.backward_input[s + 1] + fused;
            idle[s] = idle[s + 1] + next + p.hop_forward(s) + p.hop_backward(s);
        }
        let eager = if policy.eager.is_finite() { policy.eager } else { 1.0 };
        for (d, own) in shape.stages_of.iter().enumerate() {
            let room = graph.room[d];
            let whole: i64 = own.iter().map(|&s| b.activation[s]).sum();
            let kept = if whole <= room { policy.kept.min(graph.microbatches) } else { 0 };
            let worth = |s: usize| idle[s] as f64 >= eager * (t.offload[s] + t.reload[s]) as f64;
            let needs = |off: &[usize]| {
                let off = off.iter().map(|&s| b.offloadable[s]);
                whole - off.clone().sum::<i64>() + off.max().unwrap_or(0)
            };
            let chosen: Vec<usize> = own.iter().copied().take(policy.chunks).filter(|&s| worth(s)).collect();
            let off = if needs(&chosen) <= room { chosen } else { own.clone() };
            if needs(&off) > room {
                return None;
            }
            for s in off {
                copies.stages[s] = (b.offloadable[s], graph.microbatches - kept);
            }
        }
        for s in 0..graph.stages {
            if copies.stages[s].0 > 0 {
                copies.watch(graph, s, (policy.prefetch * t.reload[s] as f64) as i64);
            }
        }
        Some(copies)
    }

    /// Finds the op after whose start the reload of a stage is wanted: the last one that leaves so much time.
    fn watch(&mut self, graph: &Graph<'_>, s: usize, lead: i64) {
        let p = graph.problem;
        let t = &p.time_ns;
        let mut time = 0;
        for x in s + 1..graph.stages {
            let fused = if p.split_backward { 0 } else { t.backward_weight[x] };
            time += p.hop_backward(x - 1) + t.backward_input[x] + fused;
            if time >= lead {
                self.after_b[x].push((s, time));
                return;
            }
        }
        for x in (s..graph.stages).rev() {
            time += t.forward[x];
            if time >= lead || x == s {
                self.after_f[x].push((s, time));
                return;
            }
            time += p.hop_forward(x - 1);
        }
    }

    /// Bytes that a microbatch offloads at a stage: 0 where it stays.
    pub(super) fn bytes(&self, stage: usize, microbatch: usize) -> i64 {
        let (bytes, end) = self.stages[stage];
        if microbatch < end { bytes } else { 0 }
    }

    /// Notes that the gradient of a B has come; whether the B may start.
    pub(super) fn may_start(&mut self, stage: usize, microbatch: usize) -> bool {
        if self.bytes(stage, microbatch) == 0 {
            return true;
        }
        let pair = &mut self.pairs[stage * self.microbatches + microbatch];
        pair.gradient = true;
        pair.back
    }

    /// Whether the pair's gradient has come.
    pub(super) fn has_gradient(&self, pair: usize) -> bool {
        self.pairs[pair].gradient
    }

    /// An F or B starts: reloads that are wanted from then on are noted.
    pub(super) fn compute_started(&mut self, graph: &Graph<'_>, op: u32, now: i64) {
        let watchers = match graph.kind(op) {
            OpKind::F => &self.after_f,
            OpKind::B => &self.after_b,
            _ => return,
        };
        let (Some(watchers), j) = (watchers.get(graph.stage(op)), graph.microbatch(op)) else { return };
        for &(s, time) in watchers {
            if self.bytes(s, j) > 0 {
                let channel = &mut self.channels[graph.reload_channel[graph.problem.placement[s]]];
                let due = (now + time, graph.op(OpKind::R, s, j));
                let at = channel.wanted.partition_point(|x| *x < due);
                channel.wanted.insert(at, due);
            }
        }
    }

    /// An F has ended: its offload is next in line.
    pub(super) fn forward_ended(&mut self, graph: &Graph<'_>, op: u32) {
        if self.bytes(graph.stage(op), graph.microbatch(op)) > 0 {
            self.channels[graph.offload_channel[graph.device(op)]].offloads.push_back(graph.sibling(op, OpKind::O));
        }
    }

    /// A copy has ended.
    pub(super) fn ended(&mut self, graph: &Graph<'_>, op: u32) {
        let d = graph.device(op);
        let is_offload = graph.kind(op) == OpKind::O;
        let c = if is_offload { graph.offload_channel[d] } else { graph.reload_channel[d] };
        self.channels[c].busy = false;
        let pair = &mut self.pairs[graph.pair(op)];
        if is_offload {
            pair.gone = true;
        } else {
            pair.back = true;
        }
    }

    /// The copy that a channel should start now, if any. `fits` tells of a reload whether memory has room.
    pub(super) fn next(&self, graph: &Graph<'_>, c: usize, rule: CopyRule, fits: impl Fn(u32) -> bool) -> Option<u32> {
        let channel = self.channels.get(c).filter(|x| !x.busy)?;
        let offload = channel.offloads.front().copied();
        let reload = || {
            let mut back = channel.wanted.iter().map(|x| x.1);
            back.find(|&op| self.pairs[graph.pair(op)].gone && fits(op))
        };
        match rule {
            CopyRule::ReloadFirst | CopyRule::Due => reload().or(offload),
            CopyRule::OffloadFirst | CopyRule::FirstReady => offload.or_else(reload),
        }
    }

    /// A channel starts a copy.
    pub(super) fn start(&mut self, c: usize, op: u32) {
        let channel = &mut self.channels[c];
        channel.busy = true;
        if channel.offloads.front() == Some(&op) {
            channel.offloads.pop_front();
        } else {
            channel.wanted.retain(|x| x.1 != op);
        }
        channel.served.push(op);
    }

    /// The copies of each channel in the order in which they were served.
    pub(super) fn served(self) -> Vec<Vec<u32>> {
        self.channels.into_iter().map(|x| x.served).collect()
    }
}
