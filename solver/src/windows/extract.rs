//! From a solution's binaries to a plan. The times of the solution are not used: the orders give exact
//! starts by longest path, these the plan.

use super::links::{Link, after, is_optional};
use super::model::Legend;
use super::network::Network;
use super::reference::Reference;
use super::window::Window;
use crate::order::Order;
use crate::plan::Plan;
use crate::schedule::{OpKind, Schedule, ScheduledOp};

/// The plan of a solution; None if, within the solver's tolerances, its orders contradict each other.
pub(super) fn plan(
    reference: &Reference<'_>,
    window: &Window,
    network: &Network,
    legend: &Legend,
    values: &[f64],
) -> Option<Plan> {
    let graph = reference.graph;
    let mut offloaded = reference.plan.offloaded.clone();
    for &(pair, lit) in &legend.offloads {
        offloaded[pair] = lit.holds(values);
    }
    let mut links: Vec<Link> = network.links.firm.clone();
    links.extend(legend.orders.iter().map(|&(yes, no, lit)| if lit.holds(values) { yes } else { no }));
    links.extend(legend.claims.iter().filter(|x| x.1.holds(values)).map(|x| x.0));
    for (link, pairs) in &network.links.conditional {
        if pairs.iter().flatten().all(|&pair| offloaded[pair]) {
            links.push(*link);
        }
    }
    for &job in &window.jobs {
        if is_optional(graph, window, job) && graph.kind(job) == OpKind::O {
            let (f, b, r) =
                (graph.sibling(job, OpKind::F), graph.sibling(job, OpKind::B), graph.sibling(job, OpKind::R));
            links.extend([after(reference, f, job), after(reference, job, r), after(reference, r, b)]);
        }
    }
    let exists = |job: u32| match graph.kind(job) {
        OpKind::O | OpKind::R => offloaded[graph.pair(job)],
        _ => reference.is_job(job),
    };
    links.retain(|link| exists(link.from) && exists(link.to));
    let starts = longest_path(graph.none() as usize, &links)?;
    let problem = graph.problem;
    let mut schedule = Schedule { makespan_ns: 0, ops: vec![Vec::new(); problem.devices] };
    for op in 0..graph.none() {
        let start_ns = match graph.kind(op) {
            OpKind::W if !reference.is_job(op) => {
                let b = graph.sibling(op, OpKind::B);
                starts[b as usize] + reference.frees_after(b)
            }
            _ if exists(op) => starts[op as usize],
            _ => continue,
        };
        let crate::schedule::Op { kind, stage, microbatch } = graph.decode(op);
        schedule.ops[graph.device(op)].push(ScheduledOp { op: kind, stage, microbatch, start_ns });
    }
    for list in &mut schedule.ops {
        list.sort_by_key(|x| x.start_ns);
    }
    Plan::from_order(graph, &Order::of(problem, &schedule)).ok()
}

/// Earliest starts; None on a cycle.
fn longest_path(count: usize, links: &[Link]) -> Option<Vec<i64>> {
    let mut incoming = vec![0_usize; count];
    let mut begin = vec![0_usize; count + 1];
    for link in links {
        incoming[link.to as usize] += 1;
        begin[link.from as usize + 1] += 1;
    }
    for i in 0..count {
        begin[i + 1] += begin[i];
    }
    let mut next = begin.clone();
    let mut sorted = vec![0; links.len()];
    for (i, link) in links.iter().enumerate() {
        sorted[next[link.from as usize]] = i;
        next[link.from as usize] += 1;
    }
    let mut ready: Vec<usize> = (0..count).filter(|&job| incoming[job] == 0).collect();
    let mut start = vec![0_i64; count];
    let mut done = 0;
    while let Some(job) = ready.pop() {
        done += 1;
        for &i in &sorted[begin[job]..begin[job + 1]] {
            let Link { to, delay_ns, .. } = links[i];
            let to = to as usize;
            start[to] = start[to].max(start[job] + delay_ns);
            incoming[to] -= 1;
            if incoming[to] == 0 {
                ready.push(to);
            }
        }
    }
    (done == count).then_some(start)
}
