//! Earliest starts: the longest path over queues whose order is fixed, in one pass.
//!
//! Each queue runs ahead until its next op waits for one that has no end yet, is then parked with
//! that op, and goes on when it ends. Every op is looked at once, and once more for each time that
//! its queue was parked before it.

use crate::graph::Node;

/// The end of an op that has none yet; far above every time, so that one comparison finds it.
pub(crate) const UNSET: i64 = i64::MAX / 4;
const NOBODY: u32 = u32::MAX;

/// Ends of ops, and the state of the pass, kept between calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct LongestPath {
    /// The end of each op; `UNSET` for one that did not run.
    pub(crate) end: Vec<i64>,
    /// When each queue ends.
    pub(crate) clock: Vec<i64>,
    /// Before which time each queue does not start, ns; of a queue that is not there, 0.
    pub(crate) release: Vec<i64>,
    /// How far each queue is, and how far it is to run.
    pub(crate) position: Vec<u32>,
    pub(crate) stop: Vec<u32>,
    /// The first queue parked with an op.
    parked: Vec<u32>,
    /// The next queue parked with the same op.
    next: Vec<u32>,
    /// The op that a queue is parked with.
    parked_with: Vec<u32>,
    stack: Vec<u32>,
}

/// Why there are no times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Some op waits for itself; one that could not start.
    Cycle(u32),
    /// The makespan exceeds the limit.
    Limit,
}

impl LongestPath {
    /// The latest end on any queue. Optional ops that stand in no queue must be waited for by none.
    /// Stops as soon as it is known to exceed `limit`.
    pub(crate) fn run(&mut self, nodes: &[Node], queues: &[Vec<u32>], limit: i64) -> Result<i64, Stopped> {
        self.end.clear();
        self.end.resize(nodes.len(), UNSET);
        self.end[nodes.len() - 1] = 0;
        self.position.clear();
        self.position.resize(queues.len(), 0);
        self.clock.clone_from(&self.release);
        self.clock.resize(queues.len(), 0);
        self.stop.clear();
        self.stop.extend(queues.iter().map(|queue| queue.len() as u32));
        self.advance(nodes, queues, limit)?;
        Ok(self.clock.iter().copied().max().unwrap_or(0))
    }

    /// Before which time a queue does not start, ns.
    pub(crate) fn release(&self, queue: usize) -> i64 {
        self.release.get(queue).copied().unwrap_or(0)
    }

    /// Runs every queue from its position, at its clock, to its stop. What ends before has its end already;
    /// what runs must have [`UNSET`].
    pub(crate) fn advance(&mut self, nodes: &[Node], queues: &[Vec<u32>], limit: i64) -> Result<(), Stopped> {
        let count = queues.len();
        self.parked.resize(nodes.len(), NOBODY);
        self.next.resize(count, NOBODY);
        self.parked_with.clear();
        self.parked_with.resize(count, NOBODY);
        self.stack.clear();
        self.stack.extend((0..count as u32).rev().filter(|&q| self.position[q as usize] < self.stop[q as usize]));
        while let Some(q) = self.stack.pop() {
            let queue = &queues[q as usize][..self.stop[q as usize] as usize];
            let mut clock = self.clock[q as usize];
            let mut at = self.position[q as usize] as usize;
            while let Some(&op) = queue.get(at) {
                let node = &nodes[op as usize];
                let start = clock
                    .max(self.end[node.data as usize] + node.lag)
                    .max(self.end[node.copy as usize])
                    .max(self.end[node.freed as usize]);
                if start >= UNSET {
                    let waits = [node.data, node.copy, node.freed].into_iter().find(|&x| self.end[x as usize] == UNSET);
                    let waits = waits.unwrap_or(node.data);
                    self.next[q as usize] = self.parked[waits as usize];
                    self.parked[waits as usize] = q;
                    self.parked_with[q as usize] = waits;
                    break;
                }
                clock = start + node.duration;
                if clock + node.tail > limit {
                    self.unpark();
                    return Err(Stopped::Limit);
                }
                self.end[op as usize] = clock;
                let mut waiting = std::mem::replace(&mut self.parked[op as usize], NOBODY);
                while waiting != NOBODY {
                    self.parked_with[waiting as usize] = NOBODY;
                    self.stack.push(waiting);
                    waiting = self.next[waiting as usize];
                }
                at += 1;
            }
            self.clock[q as usize] = clock;
            self.position[q as usize] = at as u32;
        }
        let stuck = (0..count).find(|&q| self.position[q] < self.stop[q]);
        if let Some(q) = stuck {
            self.unpark();
            return Err(Stopped::Cycle(queues[q][self.position[q] as usize]));
        }
        Ok(())
    }

    fn unpark(&mut self) {
        for &op in &self.parked_with {
            if op != NOBODY {
                self.parked[op as usize] = NOBODY;
            }
        }
    }
}
