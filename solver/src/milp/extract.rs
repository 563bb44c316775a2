//! Between columns of the model and schedules.
//!
//! Starts never come from the MILP: the arcs of the binaries that are 1 and the precedences give exact
//! starts in ns by longest path, these an [`Order`], and that, simulated, the schedule, which is checked.

use super::model::{Arc, Column, Legend};
use super::network::{Network, Unit};
use crate::check::check;
use crate::order::Order;
use crate::schedule::{OpKind, Schedule, ScheduledOp};
use crate::simulate::simulate;

/// The schedule of a solution's binaries; None if, within the solver's tolerances, they contradict each
/// other or exceed the memory.
pub(super) fn schedule(legend: &Legend, columns: &[f64]) -> Option<Schedule> {
    let network = legend.network;
    let mut exists: Vec<bool> = network.jobs.iter().map(|job| job.kind.is_compute()).collect();
    let mut arcs = legend.arcs.clone();
    for (column, &value) in legend.columns.iter().zip(columns) {
        let on = value > 0.5;
        match *column {
            Column::Makespan | Column::Start(_) => {}
            Column::Offload(unit) => {
                if let (true, Some((o, r))) = (on, network.units[unit].copies) {
                    exists[o] = true;
                    exists[r] = true;
                }
            }
            Column::Order(yes, no) => arcs.push(if on { yes } else { no }),
            Column::When(first, second) if on => arcs.extend([Some(first), second].into_iter().flatten()),
            Column::When(..) => {}
        }
    }
    arcs.retain(|arc| exists[arc.from] && exists[arc.to]);
    let starts = longest_path(network.jobs.len(), &arcs)?;
    let raw = to_schedule(network, &exists, &starts);
    let schedule = simulate(network.problem, &Order::of(network.problem, &raw)).ok()?.schedule;
    check(network.problem, &schedule).is_legal().then_some(schedule)
}

/// Earliest starts; None on a cycle.
fn longest_path(jobs: usize, arcs: &[Arc]) -> Option<Vec<i64>> {
    let mut incoming = vec![0_usize; jobs];
    let mut outgoing: Vec<Vec<(usize, i64)>> = vec![Vec::new(); jobs];
    for arc in arcs {
        incoming[arc.to] += 1;
        outgoing[arc.from].push((arc.to, arc.delay_ns));
    }
    let mut ready: Vec<usize> = (0..jobs).filter(|&job| incoming[job] == 0).collect();
    let mut start = vec![0_i64; jobs];
    let mut done = 0;
    while let Some(job) = ready.pop() {
        done += 1;
        for &(to, delay) in &outgoing[job] {
            start[to] = start[to].max(start[job] + delay);
            incoming[to] -= 1;
            if incoming[to] == 0 {
                ready.push(to);
            }
        }
    }
    (done == jobs).then_some(start)
}

fn to_schedule(network: &Network, exists: &[bool], starts: &[i64]) -> Schedule {
    let problem = network.problem;
    let mut ops: Vec<Vec<ScheduledOp>> = vec![Vec::new(); problem.devices];
    let mut makespan_ns = 0;
    for (id, job) in network.jobs.iter().enumerate().filter(|&(id, _)| exists[id]) {
        makespan_ns = makespan_ns.max(starts[id] + job.span_ns);
        let scheduled =
            |op: OpKind, start_ns: i64| ScheduledOp { op, stage: job.stage, microbatch: job.microbatch, start_ns };
        ops[job.device].push(scheduled(job.kind, starts[id]));
        let unit = network.units[network.unit(job.stage, job.microbatch)];
        if job.kind == OpKind::B && unit.w.is_none() {
            ops[job.device].push(scheduled(OpKind::W, starts[id] + problem.time_ns.backward_input[job.stage]));
        }
    }
    for list in &mut ops {
        list.sort_by_key(|x| x.start_ns);
    }
    Schedule { makespan_ns, ops }
}

/// Starts in ns of every job of a schedule, counted from its earliest; None for copies that it does not
/// make, and None altogether if an op is missing.
pub(super) fn starts_of(network: &Network, schedule: &Schedule) -> Option<Vec<Option<i64>>> {
    let mut starts = vec![None; network.jobs.len()];
    let first = schedule.ops.iter().flatten().map(|x| x.start_ns).min()?;
    for x in schedule.ops.iter().flatten() {
        let Unit { f, b, w, copies } = *network.units.get(network.unit(x.stage, x.microbatch))?;
        let job = match x.op {
            OpKind::F => Some(f),
            OpKind::B => Some(b),
            OpKind::W => w,
            OpKind::O => Some(copies?.0),
            OpKind::R => Some(copies?.1),
        };
        if let Some(job) = job {
            starts[job] = Some(x.start_ns - first);
        }
    }
    let missing = |(id, start): (usize, &Option<i64>)| network.jobs[id].kind.is_compute() && start.is_none();
    (!starts.iter().enumerate().any(missing)).then_some(starts)
}

/// A value for every column that states a schedule; None if the model's orders rule it out.
pub(super) fn columns_of(legend: &Legend, schedule: &Schedule) -> Option<Vec<f64>> {
    let network = legend.network;
    let starts = starts_of(network, schedule)?;
    // Jobs that start at one instant: short ones first, then down the stages and up again.
    let rank = |job: usize| {
        let x = &network.jobs[job];
        let back = matches!(x.kind, OpKind::B | OpKind::W | OpKind::R);
        let stage = if back { usize::MAX - x.stage } else { x.stage };
        (starts[job].unwrap_or(0), x.span_ns, back, stage, x.kind == OpKind::W, x.microbatch)
    };
    let holds = |arc: Arc| match (starts[arc.from], starts[arc.to]) {
        (Some(from), Some(to)) => {
            to > from && to >= from + arc.delay_ns || to == from && arc.delay_ns == 0 && rank(arc.from) < rank(arc.to)
        }
        _ => false,
    };
    let mut positions = units_of_time(legend, &starts);
    let unit = network.scale.unit_ns as f64;
    let mut values = Vec::with_capacity(legend.columns.len());
    for column in &legend.columns {
        values.push(match *column {
            Column::Makespan => (schedule.makespan_ns as f64 / unit - 1e-6).ceil(),
            Column::Start(job) => std::mem::take(&mut positions[job]),
            Column::Offload(unit) => f64::from(network.units[unit].copies.is_some_and(|(o, _)| starts[o].is_some())),
            Column::Order(yes, _) => f64::from(rank(yes.from) < rank(yes.to)),
            Column::When(first, second) => f64::from(holds(first) && second.is_none_or(holds)),
        });
    }
    Some(values)
}

/// Starts in units of time; copies that do not happen between their F and B, after the copies of
/// earlier microbatches.
fn units_of_time(legend: &Legend, starts: &[Option<i64>]) -> Vec<f64> {
    let network = legend.network;
    let unit = network.scale.unit_ns as f64;
    let mut at: Vec<f64> = starts.iter().map(|start| start.map_or(0.0, |ns| ns as f64 / unit)).collect();
    let microbatches = network.problem.microbatches;
    for stage in 0..network.problem.stages() {
        let mut last = (0.0_f64, 0.0_f64);
        for j in 0..microbatches {
            let Unit { f, copies: Some((o, r)), .. } = network.units[network.unit(stage, j)] else { continue };
            if starts[o].is_none() {
                let ready = at[f] + network.jobs[f].span as f64;
                at[o] = if network.in_order { ready.max(last.0) } else { ready };
                at[r] = if network.in_order { at[o].max(last.1) } else { ready };
                last = (last.0.max(at[o]), last.1.max(at[r]));
            } else {
                last = (at[o] + network.jobs[o].span as f64, at[r] + network.jobs[r].span as f64);
            }
        }
    }
    at
}
