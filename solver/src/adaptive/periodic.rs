//! Periodic patterns: a group of microbatches is scheduled once, every device's time taken modulo the period,
//! and the group repeated (modulo scheduling, Rau, Iterative Modulo Scheduling, 1994; for pipelines the
//! building blocks of Qi et al., arXiv 2405.15362). What waits at the start and at the end of the step, where
//! the pattern is not full, moves up when the order is timed.

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use super::dispatch::ComputeOrder;
use super::shape::Shape;
use crate::graph::Graph;
use crate::schedule::OpKind;

/// Parameters of a pattern; waits are in shares of what the busiest device computes a microbatch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pattern {
    /// Microbatches that go through each stage together.
    pub(crate) group: usize,
    /// The period, as a multiple of the busiest device's time; at least 1.
    pub(crate) stretch: f64,
    /// How long F waits after its activation has come.
    pub(crate) forward_wait: f64,
    /// How long the first B waits after the last F.
    pub(crate) turn_wait: f64,
    /// How long B waits after its gradient has come.
    pub(crate) backward_wait: f64,
    /// How long W waits after its B.
    pub(crate) weight_wait: f64,
}

impl Pattern {
    /// A random pattern.
    pub(crate) fn random(rng: &mut Pcg64Mcg, devices: usize) -> Pattern {
        let groups = [1, 1, 2, devices, devices.div_ceil(2), 2 * devices];
        // Most waits are best at 0; where memory is plenty, long ones fill the bubble.
        let mut wait = |most: f64| [0.0, 0.0, most * rng.random::<f64>()][rng.random_range(0..3)];
        let [forward_wait, turn_wait, backward_wait, weight_wait] = [wait(0.5), wait(1.0), wait(0.5), wait(3.0)];
        Pattern {
            group: groups[rng.random_range(0..groups.len())],
            stretch: 1.0 + if rng.random() { 0.0 } else { 0.3 * rng.random::<f64>() },
            forward_wait,
            turn_wait,
            backward_wait,
            weight_wait,
        }
    }

    /// The same with one parameter changed.
    pub(crate) fn mutate(mut self, rng: &mut Pcg64Mcg, devices: usize) -> Pattern {
        let other = Pattern::random(rng, devices);
        match rng.random_range(0..6) {
            0 => self.group = other.group,
            1 => self.stretch = other.stretch,
            2 => self.forward_wait = other.forward_wait,
            3 => self.turn_wait = other.turn_wait,
            4 => self.backward_wait = other.backward_wait,
            _ => self.weight_wait = other.weight_wait,
        }
        self
    }
}

/// A device's time modulo the period: what of it is taken, in order.
struct Table {
    period: i64,
    taken: Vec<(i64, i64)>,
}

impl Table {
    /// Takes the first free time of this length from `ready` on and returns its start. Where none is left, the
    /// op starts when it is ready: the order is what counts.
    fn take(&mut self, ready: i64, length: i64) -> i64 {
        let mut start = ready;
        for _ in 0..=2 * self.taken.len() {
            match self.conflict(start.rem_euclid(self.period), length) {
                None => {
                    self.insert(start.rem_euclid(self.period), length);
                    return start;
                }
                Some(wait) => start += wait,
            }
        }
        ready
    }

    /// How long to wait until what is in the way of `[at, at + length)` is over.
    fn conflict(&self, at: i64, length: i64) -> Option<i64> {
        if length == 0 {
            return None;
        }
        if length > self.period {
            return Some(length);
        }
        let over = |from: i64, to: i64| {
            let first = self.taken.partition_point(|x| x.1 <= from);
            self.taken.get(first).filter(|x| x.0 < to).map(|x| x.1 - from)
        };
        let beyond = at + length - self.period;
        over(at, at + length).or_else(|| {
            // What reaches into the next period.
            (beyond > 0).then(|| over(0, beyond).map(|wait| self.period - at + wait)).flatten()
        })
    }

    fn insert(&mut self, at: i64, length: i64) {
        let end = at + length;
        let mut add = |from: i64, to: i64| {
            if from < to {
                let place = self.taken.partition_point(|x| x.0 < from);
                self.taken.insert(place, (from, to));
            }
        };
        add(at, end.min(self.period));
        add(0, end - self.period);
    }
}

/// The compute order of a pattern.
pub(crate) fn order(graph: &Graph<'_>, shape: &Shape, pattern: &Pattern) -> ComputeOrder {
    let p = graph.problem;
    let t = &p.time_ns;
    let load = |own: &Vec<usize>| own.iter().map(|&s| t.forward[s] + t.backward_input[s] + t.backward_weight[s]).sum();
    let microbatch: i64 = shape.stages_of.iter().map(load).max().unwrap_or(0).max(1);
    let group = pattern.group.clamp(1, graph.microbatches);
    let period = ((microbatch * group as i64) as f64 * pattern.stretch.max(1.0)).ceil() as i64;
    let mut tables: Vec<Table> = (0..p.devices).map(|_| Table { period, taken: Vec::new() }).collect();
    let wait = |share: f64| (share * microbatch as f64) as i64;

    // Start of F, B and W of the group's microbatches, by stage and microbatch.
    let mut start = vec![0; 3 * graph.stages * group];
    let place = |kind: usize, s: usize, j: usize| (kind * graph.stages + s) * group + j;
    let last = graph.stages - 1;
    for s in 0..=last {
        for j in 0..group {
            let ready = match s {
                0 => 0,
                _ => start[place(0, s - 1, j)] + t.forward[s - 1] + p.hop_forward(s - 1) + wait(pattern.forward_wait),
            };
            start[place(0, s, j)] = tables[p.placement[s]].take(ready, t.forward[s]);
        }
    }
    // A fused W goes with its B.
    let fused = |s: usize| if p.split_backward { 0 } else { t.backward_weight[s] };
    for s in (0..=last).rev() {
        for j in 0..group {
            let ready = if s == last {
                start[place(0, s, j)] + t.forward[s] + wait(pattern.turn_wait)
            } else {
                let gradient = start[place(1, s + 1, j)] + t.backward_input[s + 1] + fused(s + 1) + p.hop_backward(s);
                gradient.max(start[place(0, s, j)] + t.forward[s]) + wait(pattern.backward_wait)
            };
            start[place(1, s, j)] = tables[p.placement[s]].take(ready, t.backward_input[s] + fused(s));
        }
    }
    for s in (0..=last).rev() {
        for j in 0..group {
            let done = start[place(1, s, j)] + t.backward_input[s];
            start[place(2, s, j)] = if p.split_backward {
                tables[p.placement[s]].take(done + wait(pattern.weight_wait), t.backward_weight[s])
            } else {
                done
            };
        }
    }

    let mut end = vec![0; 3 * graph.pairs];
    let mut sequences = Vec::with_capacity(p.devices);
    for own in &shape.stages_of {
        let mut ops = Vec::with_capacity(3 * own.len() * graph.microbatches);
        for &s in own {
            // At one time in the order in which a microbatch comes by.
            let kinds = [(OpKind::F, s), (OpKind::B, 2 * graph.stages - s), (OpKind::W, 3 * graph.stages)];
            for (kind, (name, pass)) in kinds.into_iter().enumerate() {
                for j in 0..graph.microbatches {
                    let op = graph.op(name, s, j);
                    let at = start[place(kind, s, j % group)] + (j / group) as i64 * period;
                    end[op as usize] = at + graph.nodes[op as usize].duration;
                    if p.split_backward || name != OpKind::W {
                        ops.push((at, pass, j, op));
                    }
                }
            }
        }
        ops.sort_unstable();
        let with_fused = |op: u32| {
            let fused = !p.split_backward && graph.kind(op) == OpKind::B;
            std::iter::once(op).chain(fused.then(|| graph.sibling(op, OpKind::W)))
        };
        sequences.push(ops.into_iter().flat_map(|x| with_fused(x.3)).collect());
    }
    ComputeOrder { sequences, end }
}
