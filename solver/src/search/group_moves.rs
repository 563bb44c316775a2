//! Moves of several ops at once: copies together with what they wait for, microbatches in reverse order, and
//! whole spans of the devices of a channel.

use rand::RngExt;

use super::moves::{Mover, exchange_two, insert_reload};
use super::state::State;
use crate::schedule::OpKind;

/// The most microbatches that are put in reverse order.
const LONGEST_REVERSE: usize = 5;

impl Mover {
    /// A copy, if there is any, half of the time one on the critical path.
    fn pick_copy(&mut self, state: &State<'_>) -> Option<u32> {
        let critical = self.critical.iter().copied().filter(|&op| !state.graph.kind(op).is_compute());
        let count = critical.clone().count();
        if count > 0 && self.rng.random() {
            return critical.clone().nth(self.rng.random_range(0..count));
        }
        let c = self.below(state.graph.channel_names.len());
        let copies = state.copies(c);
        (!copies.is_empty()).then(|| copies[self.rng.random_range(0..copies.len())])
    }

    /// Moves a copy in time: on its channel, and a reload among its device's allocations, too.
    pub(super) fn move_copy(&mut self, state: &mut State<'_>) {
        let Some(op) = self.pick_copy(state) else { return };
        let graph = state.graph;
        let d = graph.device(op);
        let share: f64 = self.rng.random();
        let by = (share * share * 8.0 * graph.nodes[op as usize].duration as f64) as i64;
        let time = state.start(op) + if self.rng.random() { by } else { -by };
        let is_offload = graph.kind(op) == OpKind::O;
        let c = if is_offload { graph.offload_channel[d] } else { graph.reload_channel[d] };
        let copies = state.copies(c);
        let to = copies.iter().filter(|&&x| x != op && state.start(x) < time).count();
        let channel = state.channel(c);
        channel.retain(|&x| x != op);
        channel.insert(to, op);
        let sequence = state.device(d);
        if !is_offload {
            sequence.retain(|&x| x != op);
            insert_reload(state, op, time);
        }
    }

    /// Puts some microbatches in a row in reverse order, forward or backward.
    pub(super) fn reverse(&mut self, state: &mut State<'_>) {
        let graph = state.graph;
        let most = LONGEST_REVERSE.min(graph.microbatches);
        if most < 3 {
            return;
        }
        let count = 3 + self.below(most - 2);
        let first = self.below(graph.microbatches - count + 1);
        let stages = self.stages(graph.stages);
        let forward = self.below(4) == 0;
        for i in 0..count / 2 {
            exchange_two(state, first + i, first + count - 1 - i, stages.clone(), forward);
        }
    }

    /// Reorders a span of the devices of a channel, or of one device, or of all: ops of each kind and stage
    /// go by some time earlier or later together, and each by some more.
    pub(super) fn reorder(&mut self, state: &mut State<'_>) {
        let graph = state.graph;
        let devices = graph.problem.devices;
        let (c, one) = (self.below(graph.channel_names.len()), self.below(devices));
        let which = self.below(4);
        let mean = state.mean_time() as f64;
        let Some(op) = self.pick(state) else { return };
        let from = state.start(op) - (mean * 4.0 * self.rng.random::<f64>()) as i64;
        let until = from + (mean * (4.0 + 20.0 * self.rng.random::<f64>())) as i64;
        let spread = mean * [0.5, 1.0, 2.0, 4.0][self.below(4)];
        let jitter = if self.rng.random() { 0.0 } else { mean * self.rng.random::<f64>() };
        let few = self.rng.random::<f64>();
        let offsets: Vec<i64> = (0..3 * graph.stages)
            .map(|_| {
                let offset = (self.rng.random::<f64>() - 0.5) * 2.0 * spread;
                if self.rng.random::<f64>() < few { offset as i64 } else { 0 }
            })
            .collect();
        for d in 0..devices {
            let is_in = match which {
                0 | 1 => graph.offload_channel[d] == c || graph.reload_channel[d] == c || d == one,
                2 => d == one,
                _ => true,
            };
            if is_in {
                self.reorder_device(state, d, (from, until), &offsets, jitter);
            }
        }
    }

    fn reorder_device(&mut self, state: &mut State<'_>, d: usize, span: (i64, i64), offsets: &[i64], jitter: f64) {
        let graph = state.graph;
        let sequence = &state.plan.sequences[d];
        let is_in = |&op: &u32| graph.kind(op).is_compute() && (span.0..span.1).contains(&state.start(op));
        let Some(first) = sequence.iter().position(is_in) else { return };
        let Some(last) = sequence.iter().rposition(is_in) else { return };
        let mut keys = std::mem::take(&mut self.keys);
        keys.clear();
        let mut now = span.0;
        for &op in &sequence[first..=last] {
            let kind = graph.kind(op);
            let mut key = now;
            if kind.is_compute() {
                now = now.max(state.start(op));
                let k = [OpKind::F, OpKind::B, OpKind::W].iter().position(|&x| x == kind).unwrap_or(0);
                key = now + offsets[k * graph.stages + graph.stage(op)];
                if jitter > 0.0 {
                    key += ((self.rng.random::<f64>() - 0.5) * 2.0 * jitter) as i64;
                }
            }
            // Behind what stands before it of the same microbatch, as far as it has to.
            let (pair, j) = (graph.pair(op), graph.microbatch(op));
            let before = keys.iter().filter(|x| {
                graph.pair(x.1) == pair
                    || kind != OpKind::W && graph.kind(x.1) != OpKind::W && graph.microbatch(x.1) == j
            });
            let least = before.map(|x| x.0).max();
            keys.push((least.map_or(key, |x| key.max(x)), op));
        }
        keys.sort_by_key(|x| x.0);
        let to = &mut state.device(d)[first..=last];
        for (place, (_, op)) in to.iter_mut().zip(&keys) {
            *place = *op;
        }
        self.keys = keys;
    }
}
