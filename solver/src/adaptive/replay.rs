//! The order of copies on channels, given the devices' sequences: event simulation in which a channel
//! takes the best of the copies that are ready. It cannot get stuck, as no copy holds a channel before
//! everything that it waits for is there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::policy::CopyRule;
use crate::graph::Graph;
use crate::plan::{Evaluator, Plan};
use crate::schedule::OpKind;

/// Times not known yet.
const UNKNOWN: i64 = i64::MAX;

struct Replay<'a> {
    graph: &'a Graph<'a>,
    evaluator: &'a Evaluator,
    plan: &'a Plan,
    rule: CopyRule,
    /// When the compute order alone would end each F, B, W.
    nominal: &'a [i64],
    end: Vec<i64>,
    /// Compute: how far each device is, and until when it is busy.
    at: Vec<usize>,
    busy: Vec<i64>,
    /// Copies of each channel, as lists that are served in order, and how far each is.
    lists: Vec<Vec<(Vec<u32>, usize)>>,
    channel_busy: Vec<i64>,
    events: BinaryHeap<Reverse<(i64, u32)>>,
}

/// The plan with the copies of every channel in the order in which they would be served. `plan` has
/// each channel's copies in any order that keeps those of one device, and of one direction, in theirs.
pub(crate) fn order_copies(
    graph: &Graph<'_>,
    evaluator: &mut Evaluator,
    plan: &mut Plan,
    rule: CopyRule,
    nominal: &[i64],
) -> Option<()> {
    let devices = graph.problem.devices;
    for d in 0..devices {
        evaluator.derive(graph, plan, d, true).ok()?;
    }
    let mut lists: Vec<Vec<(Vec<u32>, usize)>> = Vec::with_capacity(plan.queues.len() - devices);
    for queue in &plan.queues[devices..] {
        let mut by_list = std::collections::BTreeMap::<(usize, OpKind), Vec<u32>>::new();
        for &op in queue {
            by_list.entry((graph.device(op), graph.kind(op))).or_default().push(op);
        }
        lists.push(by_list.into_values().map(|x| (x, 0)).collect());
    }
    if lists.iter().all(|x| x.len() <= 1) {
        return Some(());
    }
    let channels = lists.len();
    let mut replay = Replay {
        graph,
        evaluator,
        plan,
        rule,
        nominal,
        end: vec![UNKNOWN; graph.nodes.len()],
        at: vec![0; devices],
        busy: vec![0; devices],
        lists,
        channel_busy: vec![0; channels],
        events: BinaryHeap::new(),
    };
    replay.end[graph.none() as usize] = 0;
    let served = replay.run()?;
    for (queue, ops) in plan.queues[devices..].iter_mut().zip(served) {
        *queue = ops;
    }
    Some(())
}

impl Replay<'_> {
    fn run(&mut self) -> Option<Vec<Vec<u32>>> {
        let devices = self.at.len();
        let mut served: Vec<Vec<u32>> = self.lists.iter().map(|_| Vec::new()).collect();
        let mut left: usize = self.plan.queues.iter().map(Vec::len).sum();
        for d in 0..devices {
            self.events.push(Reverse((0, d as u32)));
        }
        let mut touched: Vec<usize> = Vec::new();
        while let Some(&Reverse((now, _))) = self.events.peek() {
            touched.clear();
            while let Some(&Reverse((time, d))) = self.events.peek() {
                if time > now {
                    break;
                }
                self.events.pop();
                touched.push(d as usize);
            }
            touched.sort_unstable();
            touched.dedup();
            for &d in &touched {
                left -= usize::from(self.compute(d, now));
                let (o, r) = (self.graph.offload_channel[d], self.graph.reload_channel[d]);
                for c in [o, r] {
                    if let Some(op) = self.copy(c, now) {
                        served[c].push(op);
                        left -= 1;
                    }
                }
            }
        }
        (left == 0).then_some(served)
    }

    /// When the op can start as far as other ops are concerned; `UNKNOWN` if that is not known yet.
    fn ready(&self, op: u32) -> i64 {
        let node = &self.evaluator.nodes[op as usize];
        let ends = [node.data, node.copy, node.freed].map(|x| self.end[x as usize]);
        if ends.contains(&UNKNOWN) {
            return UNKNOWN;
        }
        (ends[0] + node.lag).max(ends[1]).max(ends[2])
    }

    fn begin(&mut self, op: u32, now: i64) -> i64 {
        let graph = self.graph;
        let end = now + graph.nodes[op as usize].duration;
        self.end[op as usize] = end;
        self.events.push(Reverse((end, graph.device(op) as u32)));
        let s = graph.stage(op);
        let p = graph.problem;
        match graph.kind(op) {
            OpKind::F if s + 1 < graph.stages => {
                self.events.push(Reverse((end + p.hop_forward(s), p.placement[s + 1] as u32)));
            }
            OpKind::B | OpKind::W if s > 0 => {
                self.events.push(Reverse((end + p.hop_backward(s - 1), p.placement[s - 1] as u32)));
            }
            _ => {}
        }
        end
    }

    fn compute(&mut self, d: usize, now: i64) -> bool {
        let Some(&op) = self.plan.queues[d].get(self.at[d]) else { return false };
        if self.busy[d] > now || self.ready(op) > now {
            return false;
        }
        self.at[d] += 1;
        self.busy[d] = self.begin(op, now);
        true
    }

    /// Serves the best copy of a channel that is ready; wakes its devices for the next one.
    fn copy(&mut self, c: usize, now: i64) -> Option<u32> {
        if self.channel_busy[c] > now {
            return None;
        }
        let best = self.lists[c]
            .iter()
            .enumerate()
            .filter_map(|(i, (list, at))| {
                let &op = list.get(*at)?;
                let ready = self.ready(op);
                (ready <= now).then(|| (self.rank(op, ready), op, i))
            })
            .min()?;
        let (_, op, i) = best;
        self.lists[c][i].1 += 1;
        self.channel_busy[c] = self.begin(op, now);
        // The channel may be another device's too, which learns of its freedom by this event.
        Some(op)
    }

    fn rank(&self, op: u32, ready: i64) -> (i64, i64) {
        let is_reload = self.graph.kind(op) == OpKind::R;
        match self.rule {
            CopyRule::FirstReady => (0, ready),
            CopyRule::ReloadFirst => (i64::from(!is_reload), ready),
            CopyRule::OffloadFirst => (i64::from(is_reload), ready),
            CopyRule::Due if is_reload => {
                let b = self.graph.sibling(op, OpKind::B) as usize;
                let time = self.graph.nodes[b].duration + self.graph.nodes[op as usize].duration;
                (0, self.nominal[b] - time)
            }
            CopyRule::Due => (0, self.nominal[self.graph.sibling(op, OpKind::F) as usize]),
        }
    }
}
