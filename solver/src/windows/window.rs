//! What a window frees.

use super::reference::Reference;
use crate::schedule::OpKind;

/// The part of a schedule that is solved anew. All else keeps its order.
pub(super) struct Window {
    /// Whether each job is inside.
    pub(super) inside: Vec<bool>,
    /// The jobs inside.
    pub(super) jobs: Vec<u32>,
    /// Whether the offload of each (stage, microbatch) is open; then its copies are inside.
    pub(super) toggled: Vec<bool>,
    /// Two jobs inside are free against each other if they start no further apart, ns.
    pub(super) reach_ns: i64,
    /// A job inside is free against one outside if they start no further apart, ns; negative: never.
    pub(super) beside_ns: i64,
}

impl Window {
    /// A window with nothing inside.
    pub(super) fn empty(reference: &Reference<'_>, reach_ns: i64, beside_ns: i64) -> Self {
        let graph = reference.graph;
        Window {
            inside: vec![false; graph.none() as usize],
            jobs: Vec::new(),
            toggled: vec![false; graph.pairs],
            reach_ns,
            beside_ns,
        }
    }

    /// Puts a job inside; a copy that is not made only by [`Window::toggle`].
    pub(super) fn add(&mut self, reference: &Reference<'_>, job: u32) {
        let graph = reference.graph;
        let copy = matches!(graph.kind(job), OpKind::O | OpKind::R);
        if reference.is_job(job) && (!copy || reference.plan.offloaded[graph.pair(job)]) {
            self.put(job);
        }
    }

    /// Opens an offload decision.
    pub(super) fn toggle(&mut self, reference: &Reference<'_>, pair: usize) {
        let graph = reference.graph;
        if !self.toggled[pair] && graph.bytes(graph.sibling(pair as u32, OpKind::O)) > 0 {
            self.toggled[pair] = true;
            self.put(graph.sibling(pair as u32, OpKind::O));
            self.put(graph.sibling(pair as u32, OpKind::R));
        }
    }

    fn put(&mut self, job: u32) {
        if !std::mem::replace(&mut self.inside[job as usize], true) {
            self.jobs.push(job);
        }
    }

    /// Whether the order of two jobs that share a queue or a memory is open.
    pub(super) fn frees(&self, reference: &Reference<'_>, a: u32, b: u32) -> bool {
        let (x, y) = (self.inside[a as usize], self.inside[b as usize]);
        if !x && !y {
            return false;
        }
        let apart = (reference.start[a as usize] - reference.start[b as usize]).abs();
        if apart > if x && y { self.reach_ns } else { self.beside_ns } {
            return false;
        }
        let graph = reference.graph;
        if graph.pair(a) == graph.pair(b) {
            return false; // F, O, R, B, W in this order
        }
        match (graph.kind(a), graph.kind(b)) {
            // Microbatches are numbered by F of the first stage; W follow the order of their B.
            (OpKind::F, OpKind::F) if graph.stage(a) == graph.stage(b) => graph.stage(a) > 0,
            (OpKind::W, OpKind::W) if graph.stage(a) == graph.stage(b) => {
                self.frees(reference, graph.sibling(a, OpKind::B), graph.sibling(b, OpKind::B))
            }
            _ => true,
        }
    }
}
