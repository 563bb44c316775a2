//! What to offload, given a compute order: what is used again farthest in the future goes first
//! (Belady's rule, which is optimal for caches; here copies also take time).

use std::collections::BinaryHeap;

use crate::graph::Graph;
use crate::schedule::OpKind;

/// A device's sequence with reloads, and its offloads in the order of their F.
pub(crate) struct Evicted {
    pub(crate) sequence: Vec<u32>,
    pub(crate) offloads: Vec<u32>,
}

/// How to evict: see [`super::policy::Policy`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// Share of the room to keep free.
    pub(crate) spare: f64,
    /// What lives longer than so many times its copies goes at once.
    pub(crate) eager: f64,
    /// Reloads go ahead of their B by up to so many times their length.
    pub(crate) prefetch: f64,
}

/// What is known of each stage-microbatch pair, kept between calls.
#[derive(Debug, Clone)]
pub(crate) struct Marks {
    /// Where its B stands in its device's compute order.
    used_at: Vec<u32>,
    offloaded: Vec<bool>,
}

impl Marks {
    pub(crate) fn new(graph: &Graph<'_>) -> Self {
        Marks { used_at: vec![0; graph.pairs], offloaded: vec![false; graph.pairs] }
    }

    /// Whether the last call for the pair's device offloaded it.
    pub(crate) fn is_offloaded(&self, pair: usize) -> bool {
        self.offloaded[pair]
    }
}

/// Chooses offloads so that the device's compute order fits its memory, if it can.
pub(crate) fn evict(
    graph: &Graph<'_>,
    device: usize,
    compute: &[u32],
    end: &[i64],
    rule: Rule,
    marks: &mut Marks,
) -> Option<Evicted> {
    let room = graph.room[device];
    let preferred = room - (rule.spare * room as f64) as i64;
    for (i, &op) in compute.iter().enumerate() {
        if graph.kind(op) == OpKind::B {
            marks.used_at[graph.pair(op)] = i as u32;
            marks.offloaded[graph.pair(op)] = false;
        }
    }
    let mut memory =
        Memory { graph, room, preferred, held: 0, resident: BinaryHeap::new(), offloaded: &mut marks.offloaded };
    let mut sequence = Vec::with_capacity(compute.len() + compute.len() / 3);
    let mut level = Vec::with_capacity(sequence.capacity());
    for (i, &op) in compute.iter().enumerate() {
        let pair = graph.pair(op);
        match graph.kind(op) {
            OpKind::F => {
                memory.allocate(graph.bytes(op), i as u32)?;
                let [o, r, b] = [OpKind::O, OpKind::R, OpKind::B].map(|kind| graph.sibling(op, kind));
                if graph.bytes(o) > 0 {
                    let time = |x: u32| graph.nodes[x as usize].duration;
                    let life = end[b as usize] - time(b) - end[op as usize];
                    if life as f64 > rule.eager * (time(o) + time(r)) as f64 {
                        memory.offload(pair as u32);
                    } else {
                        memory.resident.push((marks.used_at[pair], pair as u32));
                    }
                }
            }
            OpKind::B => {
                if memory.offloaded[pair] {
                    let reload = graph.sibling(op, OpKind::R);
                    memory.allocate(graph.bytes(reload), i as u32)?;
                    sequence.push(reload);
                    level.push(memory.held);
                }
                memory.held -= graph.bytes(op);
            }
            _ => memory.held -= graph.bytes(op),
        }
        sequence.push(op);
        level.push(memory.held);
    }
    advance(graph, room, &mut sequence, &mut level, end, rule.prefetch);
    let offloads = compute
        .iter()
        .filter(|&&op| graph.kind(op) == OpKind::F && marks.offloaded[graph.pair(op)])
        .map(|&op| graph.sibling(op, OpKind::O))
        .collect();
    Some(Evicted { sequence, offloads })
}

struct Memory<'a> {
    graph: &'a Graph<'a>,
    room: i64,
    preferred: i64,
    held: i64,
    /// What can be offloaded: where it is used again, and the pair.
    resident: BinaryHeap<(u32, u32)>,
    offloaded: &'a mut [bool],
}

impl Memory<'_> {
    /// Makes room for an allocation at a place of the compute order, and takes it.
    fn allocate(&mut self, bytes: i64, at: u32) -> Option<()> {
        while self.held + bytes > self.preferred {
            // Used here or already: everything below it in the heap is, too.
            let Some((_, pair)) = self.resident.pop().filter(|x| x.0 > at) else { break };
            self.offload(pair);
        }
        self.held += bytes;
        (self.held <= self.room).then_some(())
    }

    fn offload(&mut self, pair: u32) {
        self.held -= self.graph.bytes(self.graph.op(OpKind::O, 0, 0) + pair);
        self.offloaded[pair as usize] = true;
    }
}

/// Moves reloads ahead of their B, as far as memory and `prefetch` allow.
fn advance(graph: &Graph<'_>, room: i64, sequence: &mut [u32], level: &mut [i64], end: &[i64], prefetch: f64) {
    for r in 0..sequence.len() {
        let reload = sequence[r];
        if graph.kind(reload) != OpKind::R {
            continue;
        }
        let node = &graph.nodes[reload as usize];
        let bytes = graph.bytes(reload);
        let b = graph.sibling(reload, OpKind::B);
        let start = end[b as usize] - graph.nodes[b as usize].duration;
        let ahead = start - (prefetch * node.duration as f64) as i64;
        let own = graph.sibling(reload, OpKind::F);
        let mut at = r;
        while at > 0 {
            let before = sequence[at - 1];
            let below = if at >= 2 { level[at - 2] } else { 0 };
            let late = graph.kind(before) == OpKind::R || end[before as usize] > ahead;
            if before == own || !late || level[at - 1] + bytes > room || below + bytes > room {
                break;
            }
            sequence.swap(at - 1, at);
            level[at] = level[at - 1] + bytes;
            level[at - 1] = below + bytes;
            at -= 1;
        }
    }
}
