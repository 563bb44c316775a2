//! Moves of the local search: small edits of a [`State`].

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use super::state::State;
use crate::adaptive::evict::{self, Marks, Rule};
use crate::adaptive::policy::Policy;
use crate::adaptive::replay;
use crate::plan::Evaluator;
use crate::schedule::OpKind;

/// Edits plans at random.
pub(super) struct Mover {
    pub(super) rng: Pcg64Mcg,
    marks: Marks,
    /// For the replay of copies.
    evaluator: Evaluator,
    /// Ops of a longest path of the plan, while it is the accepted one.
    pub(super) critical: Vec<u32>,
    fresh: bool,
    offloads: bool,
    /// Sorting keys of [`Mover::reorder`].
    pub(super) keys: Vec<(i64, u32)>,
}

type Move = fn(&mut Mover, &mut State<'_>);

/// The moves, how often each is tried, in percent, and whether it is of use without offloads, too. The
/// shares follow how often a move made plans better on problems of several shapes.
const MOVES: [(u32, bool, Move); 11] = [
    (36, true, Mover::shift_one),
    (16, true, Mover::shift_run),
    (12, true, Mover::reorder),
    (3, true, Mover::exchange),
    (1, true, Mover::reverse),
    (8, false, Mover::shift_copy),
    (8, false, Mover::move_copy),
    (8, false, Mover::toggle),
    (1, false, Mover::toggle_two),
    (6, false, Mover::evict_device),
    (1, false, Mover::evict_group),
];

/// The most microbatches that move together.
const LONGEST_RUN: usize = 8;

impl Mover {
    pub(super) fn new(state: &State<'_>, rng: Pcg64Mcg) -> Self {
        let offloads = state.graph.problem.bytes.offloadable.iter().any(|&x| x > 0);
        Mover {
            rng,
            marks: Marks::new(state.graph),
            evaluator: Evaluator::new(state.graph),
            critical: Vec::new(),
            fresh: false,
            offloads,
            keys: Vec::new(),
        }
    }

    pub(super) fn rng(&mut self) -> &mut Pcg64Mcg {
        &mut self.rng
    }

    /// The accepted plan has changed.
    pub(super) fn accepted(&mut self) {
        self.fresh = false;
    }

    /// Edits the state. It may end up as it was.
    pub(super) fn edit(&mut self, state: &mut State<'_>) {
        if !self.fresh {
            state.critical_path(&mut self.critical);
            self.fresh = true;
        }
        let moves = || MOVES.iter().filter(|x| x.1 || self.offloads);
        let mut draw = self.rng.random_range(0..moves().map(|x| x.0).sum());
        let chosen = moves().find(|x| {
            let is_it = draw < x.0;
            draw = draw.saturating_sub(x.0);
            is_it
        });
        if let Some(&(_, _, make)) = chosen {
            make(self, state);
        }
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n.max(1))
    }

    /// A distance, mostly short, with a sign.
    fn distance(&mut self, most: usize) -> isize {
        let share: f64 = self.rng.random();
        let distance = 1 + (share * share * share * most as f64) as isize;
        if self.rng.random() { distance } else { -distance }
    }

    /// An op of a device, or any, half of the time one on the critical path.
    pub(super) fn pick(&mut self, state: &State<'_>) -> Option<u32> {
        if !self.critical.is_empty() && self.rng.random() {
            return Some(self.critical[self.rng.random_range(0..self.critical.len())]);
        }
        let d = self.below(state.plan.sequences.len());
        let sequence = &state.plan.sequences[d];
        (!sequence.is_empty()).then(|| sequence[self.rng.random_range(0..sequence.len())])
    }

    /// Moves an op along its device.
    fn shift_one(&mut self, state: &mut State<'_>) {
        let Some(op) = self.pick(state) else { return };
        if state.graph.kind(op) == OpKind::O {
            return self.shift_copy_of(state, op);
        }
        let most = if state.graph.kind(op) == OpKind::W { 40 } else { 12 };
        let by = self.distance(most);
        shift(state, op, by);
    }

    /// Moves the same kind of op of several microbatches in a row, at one stage or at all stages of the
    /// same place on their devices.
    fn shift_run(&mut self, state: &mut State<'_>) {
        let graph = state.graph;
        let kind =
            [OpKind::F, OpKind::B, OpKind::W, OpKind::W, OpKind::R][self.below(if self.offloads { 5 } else { 4 })];
        let s = self.below(graph.stages);
        let first = self.below(graph.microbatches);
        let last = (first + 1 + self.below(LONGEST_RUN)).min(graph.microbatches);
        let by = self.distance(8);
        let stride = graph.problem.devices;
        let wide = self.below(4) == 0;
        let stages = if wide { (s % stride..graph.stages).step_by(1).collect() } else { vec![s] };
        let chunk = s / stride;
        for s in stages.into_iter().filter(|x| !wide || x / stride == chunk) {
            let mut ops: Vec<u32> = (first..last).map(|j| graph.op(kind, s, j)).collect();
            ops.retain(|&op| kind != OpKind::R || state.plan.offloaded[graph.pair(op)]);
            ops.sort_unstable_by_key(|&op| state.seat[op as usize]);
            if by > 0 {
                ops.reverse();
            }
            for op in ops {
                shift(state, op, by);
            }
        }
    }

    /// Exchanges two microbatches in the forward or in the backward order, at stages in a row.
    fn exchange(&mut self, state: &mut State<'_>) {
        let graph = state.graph;
        if graph.microbatches < 2 {
            return;
        }
        let a = self.below(graph.microbatches);
        let b = (a + 1 + self.below(3)) % graph.microbatches;
        let stages = self.stages(graph.stages);
        let forward: bool = self.rng.random();
        exchange_two(state, a, b, stages, forward);
    }

    /// Stages in a row, mostly all.
    pub(super) fn stages(&mut self, count: usize) -> std::ops::Range<usize> {
        match self.below(4) {
            0 => 0..self.below(count) + 1,
            1 => self.below(count)..count,
            _ => 0..count,
        }
    }

    /// Moves a copy on its channel.
    fn shift_copy(&mut self, state: &mut State<'_>) {
        let c = self.below(state.graph.channel_names.len());
        let critical = self.critical.iter().copied().filter(|&op| !state.graph.kind(op).is_compute());
        let count = critical.clone().count();
        let op = if count > 0 && self.rng.random() {
            critical.clone().nth(self.rng.random_range(0..count))
        } else {
            let copies = state.copies(c);
            (!copies.is_empty()).then(|| copies[self.rng.random_range(0..copies.len())])
        };
        if let Some(op) = op {
            self.shift_copy_of(state, op);
        }
    }

    fn shift_copy_of(&mut self, state: &mut State<'_>, op: u32) {
        let graph = state.graph;
        let d = graph.device(op);
        let is_offload = graph.kind(op) == OpKind::O;
        let c = if is_offload { graph.offload_channel[d] } else { graph.reload_channel[d] };
        let by = self.distance(8);
        let at = state.times.place[op as usize] as usize;
        if is_offload {
            state.device(d);
        }
        let channel = state.channel(c);
        let to = at.saturating_add_signed(by).min(channel.len() - 1);
        let op = channel.remove(at);
        channel.insert(to, op);
    }

    /// Offloads a pair, or stops offloading it; now and then a run of microbatches.
    fn toggle(&mut self, state: &mut State<'_>) {
        let graph = state.graph;
        let s = self.below(graph.stages);
        let j = self.below(graph.microbatches);
        let run = if self.below(4) == 0 { 1 + self.below(4) } else { 1 };
        let on = !state.plan.offloaded[graph.pair(graph.op(OpKind::F, s, j))];
        for j in j..(j + run).min(graph.microbatches) {
            self.set(state, graph.pair(graph.op(OpKind::F, s, j)), on);
        }
    }

    /// Offloads one pair of a device instead of another.
    fn toggle_two(&mut self, state: &mut State<'_>) {
        let graph = state.graph;
        let s = self.below(graph.stages);
        let d = graph.problem.placement[s];
        let on: Vec<usize> = (0..graph.stages)
            .filter(|&x| graph.problem.placement[x] == d)
            .flat_map(|x| (0..graph.microbatches).map(move |j| x * graph.microbatches + j))
            .filter(|&pair| state.plan.offloaded[pair])
            .collect();
        if on.is_empty() {
            return;
        }
        let off = s * graph.microbatches + self.below(graph.microbatches);
        if !state.plan.offloaded[off] {
            let pair = on[self.below(on.len())];
            self.set(state, pair, false);
            self.set(state, off, true);
        }
    }

    pub(super) fn set(&mut self, state: &mut State<'_>, pair: usize, on: bool) {
        let graph = state.graph;
        let [f, b, o, r] = [OpKind::F, OpKind::B, OpKind::O, OpKind::R].map(|k| graph.op(k, 0, 0) + pair as u32);
        let d = graph.device(f);
        if state.plan.offloaded[pair] == on || graph.bytes(o) == 0 {
            return;
        }
        let (c_o, c_r) = (graph.offload_channel[d], graph.reload_channel[d]);
        if !on {
            state.device(d).retain(|&x| x != r);
            state.channel(c_o).retain(|&x| x != o);
            state.channel(c_r).retain(|&x| x != r);
            state.set_offloaded(pair, false);
            return;
        }
        // Off as soon as F has ended, back so that it ends when B starts, or some time before.
        let early: f64 = [0.0, self.rng.random::<f64>() * 2.0][self.below(2)];
        let time = graph.nodes[r as usize].duration;
        let back = state.start(b) - time - (early * time as f64) as i64;
        let gone = state.end(f);
        let place = |state: &State<'_>, c: usize, from: i64| {
            state.copies(c).iter().position(|&x| x != o && state.start(x) >= from).unwrap_or(state.copies(c).len())
        };
        let at = place(state, c_o, gone);
        state.channel(c_o).insert(at, o);
        let at = place(state, c_r, back).max(if c_o == c_r { at + 1 } else { 0 });
        state.channel(c_r).insert(at, r);
        insert_reload(state, r, back);
        state.set_offloaded(pair, true);
    }

    fn rule(&mut self) -> Rule {
        let spare = [0.0, 0.5 * self.rng.random::<f64>()][self.below(2)];
        let eager = [f64::INFINITY, 6.0 * self.rng.random::<f64>()][self.below(2)];
        Rule { spare, eager, prefetch: 3.0 * self.rng.random::<f64>() }
    }

    /// Chooses a device's offloads and reloads anew, for its compute order as it is.
    fn evict_device(&mut self, state: &mut State<'_>) {
        let d = self.below(state.plan.sequences.len());
        let rule = self.rule();
        self.evict(state, d, rule);
    }

    /// The same for all devices of a channel, and then the order of all copies.
    fn evict_group(&mut self, state: &mut State<'_>) {
        let graph = state.graph;
        let c = self.below(graph.channel_names.len());
        let rule = self.rule();
        for d in 0..graph.problem.devices {
            if graph.offload_channel[d] == c || graph.reload_channel[d] == c {
                self.evict(state, d, rule);
            }
        }
        for c in 0..graph.channel_names.len() {
            state.channel(c);
        }
        let copies = Policy::random(&mut self.rng, graph.problem.devices).copies;
        if replay::order_copies(graph, &mut self.evaluator, &mut state.plan, copies, state.times.ends()).is_none() {
            state.revert();
        }
    }

    fn evict(&mut self, state: &mut State<'_>, d: usize, rule: Rule) {
        let graph = state.graph;
        let Some(evicted) = evict::evict(graph, d, &state.plan.queues[d], state.times.ends(), rule, &mut self.marks)
        else {
            return;
        };
        for s in (0..graph.stages).filter(|&s| graph.problem.placement[s] == d) {
            for j in 0..graph.microbatches {
                let pair = s * graph.microbatches + j;
                state.set_offloaded(pair, self.marks.is_offloaded(pair));
            }
        }
        // Copies join the others of their channel by the time at which they can start or must be there.
        let (c_o, c_r) = (graph.offload_channel[d], graph.reload_channel[d]);
        let offloads = evicted.offloads.iter().map(|&o| (state.end(graph.sibling(o, OpKind::F)), o));
        let reloads = evicted.sequence.iter().copied().filter(|&op| graph.kind(op) == OpKind::R);
        let reloads = reloads.map(|r| (state.start(graph.sibling(r, OpKind::B)) - graph.nodes[r as usize].duration, r));
        let lists = [(c_o, offloads.collect::<Vec<_>>()), (c_r, reloads.collect())];
        for c in if c_o == c_r { vec![c_o] } else { vec![c_o, c_r] } {
            let old = state.copies(c).iter().copied().filter(|&x| graph.device(x) != d);
            let mut merged: Vec<(i64, u32)> = old.map(|x| (state.start(x), x)).collect();
            for (_, list) in lists.iter().filter(|x| x.0 == c) {
                // Copies of one direction stay in their order.
                let mut latest = i64::MIN;
                merged.extend(list.iter().map(|&(time, op)| {
                    latest = latest.max(time);
                    (latest, op)
                }));
            }
            merged.sort_by_key(|x| x.0);
            let channel = state.channel(c);
            channel.clear();
            channel.extend(merged.into_iter().map(|x| x.1));
        }
        *state.device(d) = evicted.sequence;
    }
}

/// Moves an op by some places along its device's sequence, as far as ops that must stay before or after
/// it let it.
fn shift(state: &mut State<'_>, op: u32, by: isize) {
    let graph = state.graph;
    let d = graph.device(op);
    let (pair, microbatch) = (graph.pair(op), graph.microbatch(op));
    let chained = matches!(graph.kind(op), OpKind::F | OpKind::B);
    let blocks = |x: u32| {
        graph.pair(x) == pair
            || chained && matches!(graph.kind(x), OpKind::F | OpKind::B) && graph.microbatch(x) == microbatch
    };
    let hint = state.seat[op as usize] as usize;
    let sequence = &state.plan.sequences[d];
    let at = if sequence.get(hint) == Some(&op) { Some(hint) } else { sequence.iter().position(|&x| x == op) };
    let Some(at) = at else { return };
    let mut to = at;
    for _ in 0..by.unsigned_abs() {
        let next = to.wrapping_add_signed(by.signum());
        match sequence.get(next) {
            Some(&x) if !blocks(x) => to = next,
            _ => break,
        }
    }
    if to == at {
        return;
    }
    let sequence = state.device(d);
    if to < at {
        sequence[to..=at].rotate_right(1);
    } else {
        sequence[at..=to].rotate_left(1);
    }
}

/// Exchanges two microbatches in the forward or in the backward order of some stages.
pub(super) fn exchange_two(state: &mut State<'_>, a: usize, b: usize, stages: std::ops::Range<usize>, forward: bool) {
    let graph = state.graph;
    for s in stages {
        let d = graph.problem.placement[s];
        let pairs = [a, b].map(|j| graph.pair(graph.op(OpKind::F, s, j)));
        let offloaded = pairs.map(|x| state.plan.offloaded[x]);
        let kinds: &[OpKind] = if forward { &[OpKind::F] } else { &[OpKind::B, OpKind::W] };
        for &kind in kinds {
            let [x, y] = [a, b].map(|j| graph.op(kind, s, j));
            let (i, k) = (state.seat[x as usize] as usize, state.seat[y as usize] as usize);
            state.device(d).swap(i, k);
        }
        // With the backwards go the reloads; offloads go along where just one microbatch is offloaded.
        let mut copies = Vec::new();
        if forward && offloaded == [true, true] {
            copies.push(OpKind::O);
        }
        if !forward && offloaded != [false, false] {
            copies.push(OpKind::R);
            if offloaded != [true, true] {
                copies.push(OpKind::O);
            }
        }
        for kind in copies {
            let ops = [a, b].map(|j| graph.op(kind, s, j));
            let c = if kind == OpKind::O { graph.offload_channel[d] } else { graph.reload_channel[d] };
            for (i, &op) in ops.iter().enumerate().filter(|x| offloaded[x.0]) {
                let place = state.times.place[op as usize] as usize;
                state.channel(c)[place] = ops[1 - i];
                let seat = state.seat[op as usize] as usize;
                let sequence = state.device(d);
                if kind == OpKind::R {
                    sequence[seat] = ops[1 - i];
                }
            }
        }
        if !forward {
            state.set_offloaded(pairs[0], offloaded[1]);
            state.set_offloaded(pairs[1], offloaded[0]);
        }
    }
}

/// Puts a reload where its device's sequence is at a time: before the B or W that is running, which frees
/// nothing for it, between F and B of its pair.
pub(super) fn insert_reload(state: &mut State<'_>, r: u32, time: i64) {
    let graph = state.graph;
    let d = graph.device(r);
    let [f, b] = [OpKind::F, OpKind::B].map(|kind| graph.sibling(r, kind));
    let seats = &state.plan.sequences[d];
    let own = seats.iter().position(|&x| x == b).unwrap_or(0);
    let after_f = seats.iter().position(|&x| x == f).map_or(0, |x| x + 1);
    let running = seats[after_f..own].iter().position(|&x| graph.kind(x).is_compute() && state.end(x) > time);
    let seat = running.map_or(own, |x| x + after_f);
    state.device(d).insert(seat, r);
}
