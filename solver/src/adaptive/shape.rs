//! What constructors know of a problem's pipeline, whatever the policy.

use super::policy::Policy;
use crate::graph::Graph;

/// What never changes while policies do.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Stages of each device.
    pub(crate) stages_of: Vec<Vec<usize>>,
    /// Place of each stage among its device's.
    pub(super) chunk: Vec<usize>,
    /// How many those are.
    chunks: Vec<usize>,
    /// Microbatches in flight that keep the pipeline busy, a stage.
    pub(super) needed: Vec<f64>,
    /// Place of a device along the pipeline, 0 to 1.
    pub(super) depth: Vec<f64>,
}

impl Shape {
    pub(crate) fn new(graph: &Graph<'_>) -> Self {
        let p = graph.problem;
        let t = &p.time_ns;
        let mut stages_of = vec![Vec::new(); p.devices];
        let mut chunk = vec![0; graph.stages];
        for s in 0..graph.stages {
            let own = &mut stages_of[p.placement[s]];
            chunk[s] = own.len();
            own.push(s);
        }
        let whole = |s: &usize| t.forward[*s] + t.backward_input[*s] + t.backward_weight[*s];
        let period = stages_of.iter().map(|own| own.iter().map(whole).sum::<i64>()).max().unwrap_or(0).max(1);
        let mut life = vec![0; graph.stages];
        let mut beyond = 0;
        for s in (0..graph.stages).rev() {
            let fused = if p.split_backward { 0 } else { t.backward_weight[s] };
            life[s] = t.forward[s] + beyond + t.backward_input[s] + fused;
            beyond = life[s] + if s > 0 { p.hop_forward(s - 1) + p.hop_backward(s - 1) } else { 0 };
        }
        let last = (graph.stages.max(2) - 1) as f64;
        let depth = stages_of.iter().map(|own| own.first().map_or(0.0, |&s| (s as f64 / last).min(1.0))).collect();
        Shape {
            chunks: p.placement.iter().map(|&d| stages_of[d].len()).collect(),
            stages_of,
            chunk,
            needed: life.iter().map(|&x| x as f64 / period as f64).collect(),
            depth,
        }
    }

    /// Microbatches in flight at a stage, at most.
    pub(super) fn most_in_flight(&self, stage: usize, policy: &Policy) -> usize {
        let quarter = policy.quarters[4 * self.chunk[stage] / self.chunks[stage]];
        ((policy.in_flight * self.needed[stage] * quarter).ceil() as usize + policy.extra).max(1)
    }
}
