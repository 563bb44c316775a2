//! Adaptive offload: a compute order by list scheduling ([`dispatch`]), then what to offload so that it
//! fits ([`evict`]), then the order of the copies ([`replay`]); or, by the policy's choice, list scheduling
//! of compute and copies together, at the pace of the channels ([`copies`]) or in a timetable of theirs
//! ([`timetable`]). Instead of by list scheduling, the compute order can come from a pattern that repeats
//! ([`periodic`]).
//!
//! Where a legal schedule exists at all, so does one that runs a microbatch at a time with everything
//! offloaded that must be; [`construct_serial`] finds that one, so a schedule is always found.

mod copies;
pub(crate) mod dispatch;
pub(crate) mod evict;
mod periodic;
pub(crate) mod policy;
pub(crate) mod replay;
mod shape;
#[cfg(test)]
mod tests;
mod timetable;

use dispatch::ComputeOrder;
use evict::Rule;
use policy::{Copying, Policy};
use shape::Shape;

use crate::graph::Graph;
use crate::plan::{Evaluator, Plan};
use crate::schedule::OpKind;

/// Constructs plans of one problem, one policy after another.
#[derive(Debug, Clone)]
pub(crate) struct Constructor<'p> {
    pub(crate) graph: &'p Graph<'p>,
    shape: Shape,
    pub(crate) evaluator: Evaluator,
    marks: evict::Marks,
    timetable: timetable::Timetable,
}

impl<'p> Constructor<'p> {
    pub(crate) fn new(graph: &'p Graph<'p>) -> Self {
        let shape = Shape::new(graph);
        Constructor {
            graph,
            timetable: timetable::Timetable::new(graph, &shape),
            shape,
            evaluator: Evaluator::new(graph),
            marks: evict::Marks::new(graph),
        }
    }

    /// What a construction costs, in evaluations of a plan; a ratio once measured.
    pub(crate) fn cost(&self) -> u64 {
        20
    }

    /// The policy's plan and makespan; `None` where its compute order cannot be made to fit.
    pub(crate) fn construct(&mut self, policy: &Policy) -> Option<(Plan, i64)> {
        if let Some(pattern) = &policy.pattern {
            let order = periodic::order(self.graph, &self.shape, pattern);
            return self.complete(&order, policy);
        }
        if policy.copying == Copying::Timetable {
            if !self.timetable.construct(self.graph, &self.shape, policy) {
                return None;
            }
            return [false, true].into_iter().find_map(|booked_first| {
                let made = self.timetable.orders(self.graph, booked_first);
                let plan = Plan::new(self.graph, made.sequences, made.channels);
                let makespan = self.evaluator.run(self.graph, &plan, true).ok()?;
                Some((plan, makespan))
            });
        }
        if policy.copying == Copying::Paced {
            let (order, copies) = dispatch::dispatch_with_copies(self.graph, &self.shape, policy)?;
            let plan = Plan::new(self.graph, order.sequences, copies);
            let makespan = self.evaluator.run(self.graph, &plan, true).ok()?;
            return Some((plan, makespan));
        }
        let order = dispatch::dispatch(self.graph, &self.shape, policy);
        self.complete(&order, policy)
    }

    /// One microbatch at a time: fits whenever anything does.
    pub(crate) fn construct_serial(&mut self) -> Option<(Plan, i64)> {
        let graph = self.graph;
        let mut order =
            ComputeOrder { sequences: vec![Vec::new(); graph.problem.devices], end: vec![0; 3 * graph.pairs] };
        let mut now = 0;
        for j in 0..graph.microbatches {
            let forwards = (0..graph.stages).map(|s| graph.op(OpKind::F, s, j));
            let backwards =
                (0..graph.stages).rev().flat_map(|s| [OpKind::B, OpKind::W].map(|kind| graph.op(kind, s, j)));
            for op in forwards.chain(backwards) {
                now += graph.nodes[op as usize].duration;
                order.end[op as usize] = now;
                order.sequences[graph.device(op)].push(op);
            }
        }
        self.complete(&order, &Policy::SERIAL)
    }

    /// Adds offloads and reloads to a compute order.
    pub(crate) fn complete(&mut self, order: &ComputeOrder, policy: &Policy) -> Option<(Plan, i64)> {
        let graph = self.graph;
        let rule = Rule { spare: policy.spare, eager: policy.eager, prefetch: policy.prefetch };
        let mut sequences = Vec::with_capacity(order.sequences.len());
        let mut channels = vec![Vec::new(); graph.channel_names.len()];
        for (d, compute) in order.sequences.iter().enumerate() {
            let evicted = evict::evict(graph, d, compute, &order.end, rule, &mut self.marks)?;
            channels[graph.offload_channel[d]].extend(&evicted.offloads);
            let reloads = evicted.sequence.iter().copied().filter(|&op| graph.kind(op) == OpKind::R);
            channels[graph.reload_channel[d]].extend(reloads);
            sequences.push(evicted.sequence);
        }
        let mut plan = Plan::new(graph, sequences, channels);
        replay::order_copies(graph, &mut self.evaluator, &mut plan, policy.copies, &order.end)?;
        let makespan = self.evaluator.run(graph, &plan, true).ok()?;
        Some((plan, makespan))
    }
}
