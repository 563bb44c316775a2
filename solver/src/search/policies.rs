//! Search over policies: a fixed grid, shared among the threads, then random ones and mutations of the best.

use rand::RngExt;

use super::{POLICIES, Worker};
use crate::adaptive::Constructor;
use crate::adaptive::policy::Policy;
use crate::graph::Graph;
use crate::objective::{self, Objective};
use crate::plan::Plan;

/// Policies that are kept and mutated.
const POOL: usize = 8;
/// Plans that are returned.
const OTHERS: usize = 3;

/// Constructs until the share of the search that policies get is over. Returns plans of the best policies.
pub(super) fn search(graph: &Graph<'_>, worker: &mut Worker<'_>, share: f64) -> Vec<Plan> {
    let devices = graph.problem.devices;
    let mut constructor = Constructor::new(graph);
    let chunks = graph.problem.placement.len().div_ceil(devices);
    let threads = worker.shared.options.threads.max(1);
    let grid = Policy::grid(devices).into_iter().chain(Policy::pipe_offload(devices, chunks));
    let mut grid = grid.skip(worker.thread).step_by(threads);
    let mut pool: Vec<(i64, Policy)> = Vec::new();
    while worker.progress() < share && !worker.stopped() {
        let policy = match grid.next() {
            Some(policy) => policy,
            None if pool.len() < POOL || worker.rng.random_range(0..4) == 0 => Policy::random(&mut worker.rng, devices),
            None => {
                // Better ones more often.
                let at = worker.rng.random_range(0..pool.len()).min(worker.rng.random_range(0..pool.len()));
                pool[at].1.mutate(&mut worker.rng, devices)
            }
        };
        worker.evaluations += constructor.cost();
        let Some((plan, makespan)) = constructor.construct(&policy) else { continue };
        let value = match worker.shared.options.objective {
            Objective::Makespan => Some(makespan),
            Objective::Period => objective::evaluate(Objective::Period, graph, &mut constructor.evaluator, &plan),
        };
        let Some(value) = value else { continue };
        worker.found(&plan, value, POLICIES);
        let at = pool.partition_point(|x| x.0 < value);
        if pool.get(at).is_none_or(|x| x.0 != value || x.1 != policy) {
            pool.insert(at, (value, policy));
            pool.truncate(POOL);
        }
    }
    pool.iter().take(OTHERS).filter_map(|x| Some(constructor.construct(&x.1)?.0)).collect()
}
