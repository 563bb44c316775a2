//! The ops of a problem, numbered, so that flat arrays hold what is known about them.
//!
//! Op `(kind, s, j)` has the number `kind · S·M + s · M + j`. Each op has a [`Node`]: its time and up
//! to three ops that must have ended before it starts, besides the op before it on its queue. Which
//! three depends on the problem alone (the first), or on what memory and offloading demand (the
//! others, see [`crate::memory`]).

use crate::problem::Problem;
use crate::schedule::{Op, OpKind};

/// The kinds in the order of their numbers.
const KINDS: [OpKind; 5] = [OpKind::F, OpKind::B, OpKind::W, OpKind::O, OpKind::R];

/// What the longest path needs to know of an op.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    /// Its time, ns.
    pub(crate) duration: i64,
    /// Delay after the end of `data`, ns.
    pub(crate) lag: i64,
    /// No schedule ends earlier than this after the end of the op, ns.
    pub(crate) tail: i64,
    /// The op whose result it needs, or [`Graph::none`].
    pub(crate) data: u32,
    /// What memory or offloading demands besides: F and R wait for an offload, B for its reload.
    pub(crate) copy: u32,
    /// R waits for a B or W that frees memory.
    pub(crate) freed: u32,
    /// `kind · S + s`.
    pub(crate) slot: u32,
}

/// A problem's ops, numbered, with what never changes about them.
#[derive(Debug, Clone)]
pub(crate) struct Graph<'p> {
    pub(crate) problem: &'p Problem,
    /// S.
    pub(crate) stages: usize,
    /// M.
    pub(crate) microbatches: usize,
    /// S·M.
    pub(crate) pairs: usize,
    /// One an op, and one for [`Graph::none`]; `copy` and `freed` are none.
    pub(crate) nodes: Vec<Node>,
    /// Bytes that an op of a slot allocates (F, R) or frees (B, W, O).
    pub(crate) size: Vec<i64>,
    /// Stage of a slot.
    slot_stage: Vec<u32>,
    /// Device of a slot.
    slot_device: Vec<u32>,
    /// Capacity less static, a device.
    pub(crate) room: Vec<i64>,
    /// The channel names in ascending order; a channel's number is its place here.
    pub(crate) channel_names: Vec<usize>,
    /// Channel of each device's offloads, as a number.
    pub(crate) offload_channel: Vec<usize>,
    /// Channel of each device's reloads, as a number.
    pub(crate) reload_channel: Vec<usize>,
}

impl<'p> Graph<'p> {
    pub(crate) fn new(problem: &'p Problem) -> Self {
        let (stages, microbatches) = (problem.stages(), problem.microbatches);
        let pairs = stages * microbatches;
        let mut names: Vec<usize> = problem.offload_channel.iter().chain(&problem.reload_channel).copied().collect();
        names.sort_unstable();
        names.dedup();
        let number = |name: &usize| names.partition_point(|x| x < name);
        let b = &problem.bytes;
        let mut size = Vec::with_capacity(5 * stages);
        size.extend(&b.activation);
        size.extend((0..stages).map(|s| b.activation[s] - b.weight_context[s]));
        size.extend(&b.weight_context);
        size.extend(&b.offloadable);
        size.extend(&b.offloadable);
        let mut graph = Graph {
            problem,
            stages,
            microbatches,
            pairs,
            nodes: Vec::new(),
            size,
            slot_stage: (0..5 * stages).map(|x| (x % stages) as u32).collect(),
            slot_device: (0..5 * stages).map(|x| problem.placement[x % stages] as u32).collect(),
            room: (0..problem.devices).map(|d| b.capacity[d] - b.r#static[d]).collect(),
            offload_channel: problem.offload_channel.iter().map(number).collect(),
            reload_channel: problem.reload_channel.iter().map(number).collect(),
            channel_names: names,
        };
        graph.nodes = graph.static_nodes();
        graph
    }

    fn static_nodes(&self) -> Vec<Node> {
        let p = self.problem;
        let last = self.stages - 1;
        let (f, b, w) = (&p.time_ns.forward, &p.time_ns.backward_input, &p.time_ns.backward_weight);
        // Ways to the end of the step: from the end of B(s), and from the end of F(s).
        let mut after_b = vec![0; self.stages];
        for s in 0..self.stages {
            let on = if s == 0 { 0 } else { p.hop_backward(s - 1) + b[s - 1] + after_b[s - 1] };
            after_b[s] = if p.split_backward { on.max(w[s]) } else { w[s] + on };
        }
        let mut after_f = vec![0; self.stages];
        after_f[last] = b[last] + after_b[last];
        for s in (0..last).rev() {
            after_f[s] = p.hop_forward(s) + f[s + 1] + after_f[s + 1];
        }
        let mut nodes = Vec::with_capacity(5 * self.pairs + 1);
        for (k, kind) in KINDS.into_iter().enumerate() {
            for s in 0..self.stages {
                let (data, lag, tail) = match kind {
                    OpKind::F if s == 0 => (None, 0, after_f[s]),
                    OpKind::F => (Some((OpKind::F, s - 1)), p.hop_forward(s - 1), after_f[s]),
                    OpKind::B if s == last => (Some((OpKind::F, s)), 0, after_b[s]),
                    OpKind::B if p.split_backward => (Some((OpKind::B, s + 1)), p.hop_backward(s), after_b[s]),
                    OpKind::B => (Some((OpKind::W, s + 1)), p.hop_backward(s), after_b[s]),
                    OpKind::W => {
                        let on = if s == 0 || p.split_backward { 0 } else { after_b[s] - w[s] };
                        (Some((OpKind::B, s)), 0, on)
                    }
                    OpKind::O => (Some((OpKind::F, s)), 0, p.time_ns.reload[s] + b[s] + after_b[s]),
                    OpKind::R => (Some((OpKind::O, s)), 0, b[s] + after_b[s]),
                };
                for j in 0..self.microbatches {
                    nodes.push(Node {
                        duration: p.duration(kind, s),
                        lag,
                        tail,
                        data: data.map_or(self.none(), |(kind, s)| self.op(kind, s, j)),
                        copy: self.none(),
                        freed: self.none(),
                        slot: (k * self.stages + s) as u32,
                    });
                }
            }
        }
        let none = self.none();
        nodes.push(Node { duration: 0, lag: 0, tail: 0, data: none, copy: none, freed: none, slot: 0 });
        nodes
    }

    /// The number that stands for no op.
    pub(crate) fn none(&self) -> u32 {
        (5 * self.pairs) as u32
    }

    /// The number of an op.
    pub(crate) fn op(&self, kind: OpKind, stage: usize, microbatch: usize) -> u32 {
        let kind = match kind {
            OpKind::F => 0,
            OpKind::B => 1,
            OpKind::W => 2,
            OpKind::O => 3,
            OpKind::R => 4,
        };
        (kind * self.pairs + stage * self.microbatches + microbatch) as u32
    }

    /// The op of a number.
    pub(crate) fn decode(&self, op: u32) -> Op {
        let (kind, pair) = (op as usize / self.pairs, self.pair(op));
        Op { kind: KINDS[kind], stage: pair / self.microbatches, microbatch: pair % self.microbatches }
    }

    /// `s · M + j` of an op.
    pub(crate) fn pair(&self, op: u32) -> usize {
        let n = self.pairs as u32;
        // Without a division.
        (if op < 2 * n {
            op - if op < n { 0 } else { n }
        } else if op < 3 * n {
            op - 2 * n
        } else {
            op - if op < 4 * n { 3 * n } else { 4 * n }
        }) as usize
    }

    /// The kind of an op.
    pub(crate) fn kind(&self, op: u32) -> OpKind {
        let n = self.pairs as u32;
        if op < 2 * n {
            if op < n { OpKind::F } else { OpKind::B }
        } else if op < 3 * n {
            OpKind::W
        } else if op < 4 * n {
            OpKind::O
        } else {
            OpKind::R
        }
    }

    /// The stage of an op.
    pub(crate) fn stage(&self, op: u32) -> usize {
        self.slot_stage[self.nodes[op as usize].slot as usize] as usize
    }

    /// The device of an op.
    pub(crate) fn device(&self, op: u32) -> usize {
        self.slot_device[self.nodes[op as usize].slot as usize] as usize
    }

    /// The microbatch of an op.
    pub(crate) fn microbatch(&self, op: u32) -> usize {
        self.stage_and_microbatch(op).1
    }

    /// The stage and microbatch of an op.
    pub(crate) fn stage_and_microbatch(&self, op: u32) -> (usize, usize) {
        // Number and slot count the same, the one in ops, the other in rows of M.
        let slot = self.nodes[op as usize].slot;
        (self.slot_stage[slot as usize] as usize, (op - slot * self.microbatches as u32) as usize)
    }

    /// The op of another kind of the same stage and microbatch.
    pub(crate) fn sibling(&self, op: u32, kind: OpKind) -> u32 {
        let pair = self.pair(op);
        self.op(kind, 0, 0) + pair as u32
    }

    /// Bytes that the op allocates or frees.
    pub(crate) fn bytes(&self, op: u32) -> i64 {
        self.size[self.nodes[op as usize].slot as usize]
    }
}
