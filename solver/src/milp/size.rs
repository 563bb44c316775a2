//! What can be said of a model before it is built.

use super::{MilpSize, network};
use crate::problem::Problem;

/// Whether an offload can be of any use.
pub(super) fn may_offload(problem: &Problem) -> bool {
    (0..problem.stages())
        .any(|s| problem.bytes.offloadable[s] > 0 && network::can_run_out(problem, problem.placement[s]))
}

/// Whether counting memory along orders loses nothing: an op that frees what the same instant allocated,
/// which takes work of length 0 on both sides, would not be counted as harmless.
pub(super) fn orders_are_exact(problem: &Problem) -> bool {
    let t = &problem.time_ns;
    (0..problem.stages()).all(|s| {
        let offloads = problem.bytes.offloadable[s] > 0;
        let forward = t.forward[s] > 0 || (t.backward_input[s] > 0 && (!offloads || t.offload[s] > 0));
        let reload = !offloads || t.reload[s] > 0 || t.backward_input[s] > 0;
        forward && reload
    })
}

/// Size of a model before windows and forced orders take anything away.
pub(super) fn estimate(problem: &Problem, in_order: bool) -> MilpSize {
    let m = problem.microbatches;
    let mut size = MilpSize { variables: 1, binaries: 0, rows: 0 };
    let mut copies = std::collections::BTreeMap::<usize, usize>::new();
    for device in 0..problem.devices {
        let stages: Vec<usize> = problem.stages_of(device).collect();
        let (units, v) = (stages.len() * m, stages.len());
        let jobs = stages
            .iter()
            .map(|&s| if problem.split_backward && problem.time_ns.backward_weight[s] > 0 { 3 } else { 2 })
            .sum::<usize>();
        // Same kind and stage: fixed in order, otherwise one for F and one for B and W together.
        let pairs = jobs * m * (jobs * m).saturating_sub(1) / 2;
        let same = m * m.saturating_sub(1) / 2;
        let orders = pairs - jobs * same + if in_order { 0 } else { 2 * v * same };
        let mut binaries = orders;
        if network::can_run_out(problem, device) {
            let movable = stages.iter().filter(|&&s| problem.bytes.offloadable[s] > 0).count() * m;
            let factor = if in_order { 1 } else { 2 };
            // Offloaded at F, back at F; B and W ended at R, offloaded at R.
            binaries += movable + 5 * movable * units.saturating_sub(1) * factor / 2;
            *copies.entry(problem.offload_channel[device]).or_default() += movable;
            *copies.entry(problem.reload_channel[device]).or_default() += movable;
            size.variables += 2 * movable;
        }
        size.binaries += binaries;
        size.variables += jobs * m;
    }
    let in_one_queue = |n: usize| if in_order { 0 } else { n * n.saturating_sub(1) };
    size.binaries += copies.values().map(|&n| in_one_queue(n)).sum::<usize>();
    size.variables += size.binaries;
    size.rows = 3 * size.binaries + 5 * size.variables;
    size
}
