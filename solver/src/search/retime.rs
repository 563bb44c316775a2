//! Times of an accepted plan, and of edited ones by what the edit changes.
//!
//! An edit changes the predecessors of some ops: their neighbours on a queue, or what memory makes them wait
//! for. Let `from` be the least accepted start of these ops, `until` the latest accepted end of an op whose
//! successors change. Three parts follow:
//! - Ops that start before `from` keep their times: their predecessors start before it, too. On every queue
//!   they stand first.
//! - Ops that start after `until` wait for each other as before, and nothing else waits for them.
//! - All others, and copies that are new, are timed by the pass of [`LongestPath`](crate::longest_path::LongestPath),
//!   which finds cycles: any cycle is among them.
//!
//! What has changed then spreads among the ops after `until`, as far as ends differ from the accepted ones, in
//! the order of their accepted starts: in buckets that are shorter than any op, so that no two ops of one
//! bucket wait for each other. Where some ops are so short, or of length 0, that this takes too many buckets,
//! the pass goes on to the end instead.

use crate::graph::Graph;
use crate::longest_path::{Stopped, UNSET};
use crate::plan::{Evaluator, Plan, Unschedulable};
use crate::schedule::OpKind;

/// A queue that an edit changes, as it was.
#[derive(Debug, Default)]
pub(super) struct Before {
    pub(super) queue: usize,
    pub(super) ops: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Retimer {
    pub(super) evaluator: Evaluator,
    /// Where each op of the accepted plan stands in its queue.
    pub(super) place: Vec<u32>,
    waiters: Waiters,
    /// Ends of the accepted plan that the edit has changed.
    ends: Vec<(u32, i64)>,
    /// Ops of this mark are timed by the pass, or have been opened.
    marked: Vec<u32>,
    mark: u32,
    open: Buckets,
    /// By how much longer each queue is than the accepted one.
    longer: Vec<i32>,
    /// The queue of each op.
    queue: Vec<u32>,
    /// What needs the result of each op, or [`Graph::none`].
    successors: Vec<[u32; 2]>,
    makespan_ns: i64,
}

/// Ops whose ends may change, by accepted start.
#[derive(Debug)]
struct Buckets {
    /// Each bucket spans two to the power of this, ns.
    shift: u32,
    /// The first bucket that may have ops.
    at: usize,
    first: Vec<u32>,
    next: Vec<u32>,
}

/// More buckets than so many an op are not worth going through.
const MOST_BUCKETS: usize = 4;

impl Retimer {
    /// Times of a plan that can run, no queue starting before its release, ns.
    pub(super) fn new(graph: &Graph<'_>, plan: &Plan, release: Vec<i64>) -> Option<Self> {
        let mut evaluator = Evaluator::new(graph);
        evaluator.path.release = release;
        let makespan_ns = evaluator.run(graph, plan, true).ok()?;
        // These waits are accepted: an edit that is dropped before it is timed must not take them back.
        evaluator.changed.clear();
        let count = graph.nodes.len();
        let mut retimer = Retimer {
            place: vec![0; count],
            waiters: Waiters::new(count),
            ends: Vec::new(),
            marked: vec![0; count],
            mark: 0,
            open: Buckets::new(graph),
            longer: vec![0; plan.queues.len()],
            queue: (0..count as u32).map(|op| queue_of(graph, op) as u32).collect(),
            successors: (0..count as u32).map(|op| successors(graph, op)).collect(),
            makespan_ns,
            evaluator,
        };
        for op in plan.queues.iter().flatten().copied().filter(|&op| matches!(graph.kind(op), OpKind::F | OpKind::R)) {
            let node = &retimer.evaluator.nodes[op as usize];
            retimer.waiters.link(op, node.copy, node.freed);
        }
        for q in 0..plan.queues.len() {
            retimer.index(plan, q);
        }
        Some(retimer)
    }

    /// End of an op, ns.
    pub(super) fn end(&self, op: u32) -> i64 {
        self.evaluator.path.end[op as usize]
    }

    /// Before which time a queue does not start, ns.
    pub(super) fn release(&self, queue: usize) -> i64 {
        self.evaluator.path.release(queue)
    }

    /// Ends of all ops, ns.
    pub(super) fn ends(&self) -> &[i64] {
        &self.evaluator.path.end
    }

    /// Start of an op, ns.
    pub(super) fn start(&self, op: u32) -> i64 {
        self.end(op) - self.evaluator.nodes[op as usize].duration
    }

    fn index(&mut self, plan: &Plan, q: usize) {
        for (i, &op) in plan.queues[q].iter().enumerate() {
            self.place[op as usize] = i as u32;
        }
    }

    /// Times the edited plan, of which `devices` have other sequences, `before` tells how the queues that
    /// changed were, and `toggled` are the pairs that are offloaded now or not any more. Gives up when the
    /// makespan is known to exceed `limit`. Returns whether the edit changes anything. Either [`Retimer::accept`] or [`Retimer::revert`] has to follow.
    pub(super) fn run(
        &mut self,
        graph: &Graph<'_>,
        plan: &Plan,
        devices: impl Iterator<Item = usize>,
        before: &[Before],
        toggled: &[usize],
        limit: i64,
    ) -> Result<bool, Unschedulable> {
        self.evaluator.changed.clear();
        self.ends.clear();
        for d in devices {
            self.evaluator.derive(graph, plan, d, true)?;
        }
        let (from, until) = self.window(graph, plan, before, toggled);
        if from == UNSET {
            return Ok(false);
        }
        let until = if self.open.prepare(until, self.makespan_ns) { until } else { UNSET - 1 };
        self.open_window(plan, before, from, until);
        for &pair in toggled.iter().filter(|&&x| !plan.offloaded[x]) {
            for kind in [OpKind::O, OpKind::R] {
                let op = graph.sibling(pair as u32, kind) as usize;
                if self.evaluator.path.end[op] != UNSET {
                    self.ends.push((op as u32, self.evaluator.path.end[op]));
                    self.evaluator.path.end[op] = UNSET;
                }
            }
        }
        let Evaluator { nodes, path, .. } = &mut self.evaluator;
        path.advance(nodes, &plan.queues, limit).map_err(Unschedulable::Stopped)?;
        self.spread(plan, before, limit).map_err(Unschedulable::Stopped)?;
        Ok(true)
    }

    /// The window of an edit, `from` and `until`.
    fn window(&self, graph: &Graph<'_>, plan: &Plan, before: &[Before], toggled: &[usize]) -> (i64, i64) {
        let (mut from, mut until) = (UNSET, i64::MIN);
        let end = |op: u32| if self.end(op) == UNSET { i64::MIN } else { self.end(op) };
        for x in before {
            let (old, new) = (&x.ops, &plan.queues[x.queue]);
            let first = old.iter().zip(new).position(|(x, y)| x != y).unwrap_or(old.len().min(new.len()));
            if first == old.len() && first == new.len() {
                continue;
            }
            let same = old[first..].iter().rev().zip(new[first..].iter().rev()).take_while(|(x, y)| x == y).count();
            if first > 0 {
                until = until.max(self.end(old[first - 1]));
            }
            match old.get(first) {
                Some(&op) => from = from.min(self.start(op)),
                None => from = from.min(if first > 0 { self.end(old[first - 1]) } else { self.release(x.queue) }),
            }
            if old.len() - same > first {
                until = until.max(self.end(old[old.len() - same - 1]));
            }
        }
        let nodes = &self.evaluator.nodes;
        for x in &self.evaluator.changed {
            let node = &nodes[x.op as usize];
            if self.end(x.op) != UNSET {
                from = from.min(self.start(x.op));
            }
            let others = [x.copy, x.freed, node.copy, node.freed];
            until = others.into_iter().map(end).fold(until, i64::max);
        }
        for &pair in toggled {
            let o = &nodes[graph.sibling(pair as u32, OpKind::O) as usize];
            let r = &nodes[graph.sibling(pair as u32, OpKind::R) as usize];
            until = [o.data, r.copy, r.freed].into_iter().map(end).fold(until, i64::max);
        }
        (from, until)
    }

    /// Takes the ends of the window's ops away, and sets the queues in front of them.
    fn open_window(&mut self, plan: &Plan, before: &[Before], from: i64, until: i64) {
        self.mark += 1;
        if let Some(none) = self.marked.last_mut() {
            *none = self.mark;
        }
        let path = &mut self.evaluator.path;
        let nodes = &self.evaluator.nodes;
        for (q, queue) in plan.queues.iter().enumerate() {
            let old = before.iter().find(|x| x.queue == q).map_or(queue, |x| &x.ops);
            self.longer[q] = queue.len() as i32 - old.len() as i32;
            let first = old.partition_point(|&op| path.end[op as usize] - nodes[op as usize].duration < from);
            path.position[q] = first as u32;
            path.clock[q] = if first > 0 { path.end[old[first - 1] as usize] } else { path.release(q) };
            let mut at = first;
            while let Some(&op) = queue.get(at) {
                let end = &mut path.end[op as usize];
                if *end != UNSET && *end - nodes[op as usize].duration > until {
                    break;
                }
                self.ends.push((op, *end));
                *end = UNSET;
                self.marked[op as usize] = self.mark;
                at += 1;
            }
            path.stop[q] = at as u32;
        }
    }

    /// Spreads what has changed among the ops after the window.
    fn spread(&mut self, plan: &Plan, before: &[Before], limit: i64) -> Result<(), Stopped> {
        for i in 0..self.ends.len() {
            let (op, old) = self.ends[i];
            let new = self.end(op);
            if new != old && new != UNSET {
                self.open_after(op);
            }
        }
        for i in 0..self.evaluator.changed.len() {
            self.open(self.evaluator.changed[i].op);
        }
        for (q, queue) in plan.queues.iter().enumerate() {
            let path = &self.evaluator.path;
            let stop = path.stop[q] as usize;
            if let Some(&next) = queue.get(stop)
                && (stop > 0 && self.marked[queue[stop - 1] as usize] == self.mark
                    || before.iter().any(|x| x.queue == q))
            {
                self.open(next);
            }
        }
        while let Some(op) = self.open.pop() {
            let Evaluator { nodes, path, .. } = &mut self.evaluator;
            let node = &nodes[op as usize];
            let q = self.queue[op as usize] as usize;
            let at = (self.place[op as usize] as i32 + self.longer[q]) as usize;
            let queue = &plan.queues[q];
            let clock = if at > 0 { path.end[queue[at - 1] as usize] } else { path.release(q) };
            let start = clock
                .max(path.end[node.data as usize] + node.lag)
                .max(path.end[node.copy as usize])
                .max(path.end[node.freed as usize]);
            let end = start + node.duration;
            let old = path.end[op as usize];
            if end == old {
                continue;
            }
            if end + node.tail > limit {
                self.open.clear();
                return Err(Stopped::Limit);
            }
            self.ends.push((op, old));
            path.end[op as usize] = end;
            if let Some(&next) = queue.get(at + 1) {
                self.open(next);
            }
            self.open_after(op);
        }
        Ok(())
    }

    /// Opens what waits for an op by data or memory.
    fn open_after(&mut self, op: u32) {
        let [x, y] = self.successors[op as usize];
        self.open(x);
        self.open(y);
        let mut waiter = self.waiters.first[op as usize];
        while waiter != NOBODY {
            self.open(waiter / 2);
            waiter = self.waiters.next[waiter as usize];
        }
    }

    /// Opens an op if it stands after the window, for the first time: its accepted start is still there.
    fn open(&mut self, op: u32) {
        let end = self.evaluator.path.end[op as usize];
        if self.marked[op as usize] != self.mark && end != UNSET {
            self.marked[op as usize] = self.mark;
            self.open.push(op, end - self.evaluator.nodes[op as usize].duration);
        }
    }

    /// The edited plan is the accepted one now.
    pub(super) fn accept(&mut self, graph: &Graph<'_>, plan: &Plan, before: &[Before]) {
        for x in self.evaluator.changed.drain(..).filter(|x| graph.kind(x.op) != OpKind::B) {
            self.waiters.unlink(x.op, x.copy, x.freed);
            let node = &self.evaluator.nodes[x.op as usize];
            self.waiters.link(x.op, node.copy, node.freed);
        }
        for x in before {
            self.index(plan, x.queue);
        }
        self.ends.clear();
        let devices = &plan.queues[..graph.problem.devices];
        self.makespan_ns = devices.iter().filter_map(|x| x.last()).map(|&op| self.end(op)).max().unwrap_or(0);
    }

    /// Takes the changes of the last run back.
    pub(super) fn revert(&mut self) {
        for x in self.evaluator.changed.drain(..).rev() {
            let node = &mut self.evaluator.nodes[x.op as usize];
            (node.copy, node.freed) = (x.copy, x.freed);
        }
        for (op, end) in self.ends.drain(..).rev() {
            self.evaluator.path.end[op as usize] = end;
        }
    }
}

impl Buckets {
    fn new(graph: &Graph<'_>) -> Self {
        let exists = |op: &u32| graph.kind(*op).is_compute() || graph.bytes(*op) > 0;
        let shortest = (0..graph.none()).filter(exists).map(|op| graph.nodes[op as usize].duration).min().unwrap_or(0);
        let shift = if shortest > 0 { shortest.ilog2() } else { u32::MAX };
        Buckets { shift, at: 0, first: Vec::new(), next: vec![NOBODY; graph.nodes.len()] }
    }

    /// Makes buckets from a time on; `false` if that takes too many.
    fn prepare(&mut self, from: i64, makespan_ns: i64) -> bool {
        if self.shift == u32::MAX || (makespan_ns >> self.shift) as usize >= MOST_BUCKETS * self.next.len() {
            return false;
        }
        self.first.resize((makespan_ns >> self.shift) as usize + 1, NOBODY);
        self.at = (from.max(0) >> self.shift) as usize;
        true
    }

    fn push(&mut self, op: u32, start: i64) {
        let bucket = (start >> self.shift) as usize;
        self.next[op as usize] = std::mem::replace(&mut self.first[bucket], op);
    }

    fn pop(&mut self) -> Option<u32> {
        loop {
            let op = *self.first.get(self.at)?;
            if op != NOBODY {
                self.first[self.at] = self.next[op as usize];
                return Some(op);
            }
            self.at += 1;
        }
    }

    fn clear(&mut self) {
        let at = self.at.min(self.first.len());
        self.first[at..].fill(NOBODY);
    }
}

/// What needs the result of an op, or none.
fn successors(graph: &Graph<'_>, op: u32) -> [u32; 2] {
    let none = graph.none();
    if op == none {
        return [none; 2];
    }
    let (s, j) = (graph.stage(op), graph.microbatch(op));
    let gradient = || if s > 0 { graph.op(OpKind::B, s - 1, j) } else { none };
    let split = graph.problem.split_backward;
    match graph.kind(op) {
        OpKind::F if s + 1 < graph.stages => [graph.op(OpKind::F, s + 1, j), graph.sibling(op, OpKind::O)],
        OpKind::F => [graph.op(OpKind::B, s, j), graph.sibling(op, OpKind::O)],
        OpKind::B => [graph.sibling(op, OpKind::W), if split { gradient() } else { none }],
        OpKind::W => [if split { none } else { gradient() }, none],
        OpKind::O => [graph.sibling(op, OpKind::R), none],
        OpKind::R => [graph.sibling(op, OpKind::B), none],
    }
}

/// The queue of an op.
pub(super) fn queue_of(graph: &Graph<'_>, op: u32) -> usize {
    let d = graph.device(op);
    match graph.kind(op) {
        OpKind::O => graph.problem.devices + graph.offload_channel[d],
        OpKind::R => graph.problem.devices + graph.reload_channel[d],
        _ => d,
    }
}

const NOBODY: u32 = u32::MAX;

/// What waits for each op because of memory: lists in both directions. An op waits in two places, `2 · op`
/// for an offload, `2 · op + 1` for a B or W.
#[derive(Debug)]
struct Waiters {
    first: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
}

impl Waiters {
    fn new(count: usize) -> Self {
        Waiters { first: vec![NOBODY; count], next: vec![NOBODY; 2 * count], previous: vec![NOBODY; 2 * count] }
    }

    fn none(&self) -> u32 {
        self.first.len() as u32 - 1
    }

    fn link(&mut self, op: u32, copy: u32, freed: u32) {
        for (place, waits_for) in [(2 * op, copy), (2 * op + 1, freed)] {
            if waits_for == self.none() {
                continue;
            }
            let first = std::mem::replace(&mut self.first[waits_for as usize], place);
            if first != NOBODY {
                self.previous[first as usize] = place;
            }
            self.next[place as usize] = first;
            self.previous[place as usize] = NOBODY;
        }
    }

    fn unlink(&mut self, op: u32, copy: u32, freed: u32) {
        for (place, waits_for) in [(2 * op, copy), (2 * op + 1, freed)] {
            if waits_for == self.none() {
                continue;
            }
            let (previous, next) = (self.previous[place as usize], self.next[place as usize]);
            if previous == NOBODY {
                self.first[waits_for as usize] = next;
            } else {
                self.next[previous as usize] = next;
            }
            if next != NOBODY {
                self.previous[next as usize] = previous;
            }
        }
    }
}

#[cfg(test)]
impl Retimer {
    /// Whether the lists of waiters are those of the accepted plan's waits.
    pub(super) fn verify(&self, graph: &Graph<'_>) -> Result<(), String> {
        let mut seen = vec![u32::MAX; self.waiters.next.len()];
        for op in 0..graph.none() {
            let mut waiter = self.waiters.first[op as usize];
            while waiter != NOBODY {
                if seen[waiter as usize] != u32::MAX {
                    return Err(format!("{waiter} is listed twice"));
                }
                seen[waiter as usize] = op;
                waiter = self.waiters.next[waiter as usize];
            }
        }
        for op in (0..graph.none()).filter(|&op| matches!(graph.kind(op), OpKind::F | OpKind::R)) {
            let node = &self.evaluator.nodes[op as usize];
            for (place, waits_for) in [(2 * op, node.copy), (2 * op + 1, node.freed)] {
                let listed = seen[place as usize];
                if listed != if waits_for == graph.none() { u32::MAX } else { waits_for } {
                    return Err(format!("{} waits for {waits_for}, is listed with {listed}", graph.decode(op)));
                }
            }
        }
        if self.open.first.iter().any(|&x| x != NOBODY) {
            return Err("an op was left open".to_owned());
        }
        Ok(())
    }
}
