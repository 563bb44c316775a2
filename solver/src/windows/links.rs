//! What holds whatever the window decides: precedences, and the order of all that is not free.

use super::memory::{self, Memory};
use super::reference::Reference;
use super::window::Window;
use crate::graph::Graph;
use crate::schedule::OpKind;

/// `to` starts no earlier than `delay_ns` after the start of `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Link {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) delay_ns: i64,
}

/// Links of a window.
pub(super) struct Links {
    /// Those that hold.
    pub(super) firm: Vec<Link>,
    /// Those that hold if the offloads of these pairs happen.
    pub(super) conditional: Vec<(Link, [Option<usize>; 2])>,
    /// Jobs of one queue whose order is open.
    pub(super) open: Vec<(u32, u32)>,
    /// Memory of the devices that the window touches.
    pub(super) memory: Memory,
}

/// The link of a job that runs right after another on their queue at the earliest.
pub(super) fn after(reference: &Reference<'_>, from: u32, to: u32) -> Link {
    Link { from, to, delay_ns: reference.span[from as usize] }
}

/// Whether an op is a copy whose making is open.
pub(super) fn is_optional(graph: &Graph<'_>, window: &Window, job: u32) -> bool {
    matches!(graph.kind(job), OpKind::O | OpKind::R) && window.toggled[graph.pair(job)]
}

impl Links {
    /// All links of a window.
    pub(super) fn new(reference: &Reference<'_>, window: &Window) -> Links {
        let graph = reference.graph;
        let mut links =
            Links { firm: Vec::new(), conditional: Vec::new(), open: Vec::new(), memory: Memory::default() };
        links.precedences(reference, window);
        for device in 0..graph.problem.devices {
            let queue: Vec<u32> = reference.compute(device).collect();
            links.queue(reference, window, &queue);
        }
        for channel in 0..graph.channel_names.len() {
            let firm: Vec<u32> =
                (reference.copies(channel).iter().copied()).filter(|&job| !is_optional(graph, window, job)).collect();
            links.queue(reference, window, &firm);
            links.optional_copies(reference, window, channel, &firm);
        }
        let mut touched = vec![false; graph.problem.devices];
        for &job in &window.jobs {
            touched[graph.device(job)] = true;
        }
        for (device, touched) in touched.into_iter().enumerate() {
            if touched {
                memory::add(&mut links, reference, window, device);
            } else {
                links.waits(reference, device);
            }
        }
        links
    }

    /// Data, and the copies that are made for sure.
    fn precedences(&mut self, reference: &Reference<'_>, window: &Window) {
        let graph = reference.graph;
        for &job in &reference.sorted {
            let node = &graph.nodes[job as usize];
            let kind = graph.kind(job);
            if is_optional(graph, window, job) {
                continue;
            }
            if node.data != graph.none() {
                // A fused W is the end of its B.
                let from = if reference.is_job(node.data) { node.data } else { graph.sibling(node.data, OpKind::B) };
                let delay_ns = reference.span[from as usize] + node.lag;
                self.firm.push(Link { from, to: job, delay_ns });
            }
            if kind == OpKind::R {
                self.firm.push(after(reference, job, graph.sibling(job, OpKind::B)));
            }
        }
    }

    /// The order of a queue, as far as it is not free.
    fn queue(&mut self, reference: &Reference<'_>, window: &Window, queue: &[u32]) {
        // Whether each job is free against an earlier one.
        let mut loose = vec![false; queue.len()];
        for (i, &job) in queue.iter().enumerate() {
            for j in (0..i).rev() {
                let earlier = queue[j];
                if window.frees(reference, earlier, job) {
                    loose[i] = true;
                    self.open.push((earlier, job));
                    continue;
                }
                self.firm.push(after(reference, earlier, job));
                if !loose[j] {
                    break; // all that comes before that one is ordered by its links
                }
            }
        }
    }

    /// Optional copies of a channel: open against those that are free, in today's order against all others.
    fn optional_copies(&mut self, reference: &Reference<'_>, window: &Window, channel: usize, firm: &[u32]) {
        let graph = reference.graph;
        let queue = graph.problem.devices + channel;
        let optional: Vec<u32> = (window.jobs.iter().copied())
            .filter(|&job| is_optional(graph, window, job) && reference.queue(job) == queue)
            .collect();
        let key = |job: u32| (reference.start[job as usize], reference.end(job), job);
        for (x, &job) in optional.iter().enumerate() {
            let pair = graph.pair(job);
            let mut nearest: [Option<u32>; 2] = [None, None];
            let others = firm.iter().chain(&optional[x + 1..]).copied();
            for other in others.filter(|&other| graph.pair(other) != pair) {
                if window.frees(reference, job, other) {
                    self.open.push((job, other));
                    continue;
                }
                let first = key(job) < key(other);
                if window.inside[other as usize] {
                    let link = if first { after(reference, job, other) } else { after(reference, other, job) };
                    let second = is_optional(graph, window, other).then(|| graph.pair(other));
                    self.conditional.push((link, [Some(pair), second]));
                    continue;
                }
                let best = &mut nearest[usize::from(first)];
                if best.is_none_or(|best| (key(other) < key(best)) == first) {
                    *best = Some(other);
                }
            }
            let [before, behind] = nearest;
            if let Some(other) = before {
                self.conditional.push((after(reference, other, job), [Some(pair), None]));
            }
            if let Some(other) = behind {
                self.conditional.push((after(reference, job, other), [Some(pair), None]));
            }
        }
    }

    /// What the ops of a device that the window leaves alone wait for.
    fn waits(&mut self, reference: &Reference<'_>, device: usize) {
        let graph = reference.graph;
        for &job in &reference.plan.sequences[device] {
            if matches!(graph.kind(job), OpKind::F | OpKind::R) {
                self.wait(reference, job, reference.nodes[job as usize].copy);
                self.wait(reference, job, reference.nodes[job as usize].freed);
            }
        }
    }

    /// An allocation that waits for the end of an op, if that is one.
    pub(super) fn wait(&mut self, reference: &Reference<'_>, job: u32, ended: u32) {
        let graph = reference.graph;
        if ended == graph.none() {
            return;
        }
        if reference.is_job(ended) {
            let delay_ns = if graph.kind(ended) == OpKind::B {
                reference.frees_after(ended)
            } else {
                reference.span[ended as usize]
            };
            self.firm.push(Link { from: ended, to: job, delay_ns });
        } else {
            self.firm.push(after(reference, graph.sibling(ended, OpKind::B), job));
        }
    }
}
