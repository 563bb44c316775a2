//! The schedules of the literature, as orders: GPipe, 1F1B, interleaved 1F1B, ZB-H1, ZB-H2, ZB-V, V-Half,
//! V-Min.
//!
//! Each is a fixed order of F, B and W for a kind of placement, whatever the times are; none offloads.
//! Closed forms for equal times and no communication are in the tests. Where W cannot be split off
//! (`split_backward: false`), it follows its B at once.

mod controllable;
mod zero_bubble;

use crate::method::Method;
use crate::order::Order;
use crate::problem::Problem;
use crate::schedule::{Op, OpKind, Schedule};
use crate::simulate::{SimulateError, simulate_unlimited};

/// Why a method has no schedule for a problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MethodError {
    /// The placement is not of the kind that the method is for.
    #[error("{method} needs {needs}")]
    Placement {
        /// The method.
        method: Method,
        /// The placements that it is for.
        needs: &'static str,
    },
    /// The method is a search, not a fixed order.
    #[error("{0} is not a textbook schedule")]
    NotTextbook(Method),
    /// The order cannot run.
    #[error(transparent)]
    Simulate(#[from] SimulateError),
}

/// The textbook schedule of a method, *without* the memory limit: whether it fits is for the caller to
/// check ([`crate::check::check`]).
///
/// # Errors
/// [`MethodError`], when the placement is not of the method's kind.
pub fn schedule(problem: &Problem, method: Method) -> Result<Schedule, MethodError> {
    Ok(simulate_unlimited(problem, &order(problem, method)?)?.schedule)
}

/// The textbook order of a method.
///
/// # Errors
/// As [`schedule`].
pub fn order(problem: &Problem, method: Method) -> Result<Order, MethodError> {
    if method.is_textbook() && !applies(problem, method) {
        let needs = match method {
            Method::Interleaved => "the stages dealt out to the devices in turn, two or more a device",
            Method::ZbV | Method::VHalf | Method::VMin => "two stages a device, down the devices and back up (vshape)",
            _ => "one stage a device",
        };
        return Err(MethodError::Placement { method, needs });
    }
    match method {
        Method::Gpipe => Ok(finish(problem, gpipe(problem))),
        Method::OneFOneB => Ok(finish(problem, one_f_one_b(problem, |stage| problem.stages() - 1 - stage))),
        Method::ZbH1 => Ok(finish(problem, zero_bubble::h1(problem))),
        Method::ZbH2 => Ok(finish(problem, zero_bubble::h2(problem))),
        Method::Interleaved => interleaved(problem),
        Method::ZbV => Ok(finish(problem, zero_bubble::v(problem))),
        Method::VHalf => Ok(finish(problem, controllable::half(problem))),
        Method::VMin => Ok(finish(problem, controllable::min(problem))),
        other => Err(MethodError::NotTextbook(other)),
    }
}

/// Whether the method is made for the problem's placement.
pub(crate) fn applies(problem: &Problem, method: Method) -> bool {
    match method {
        Method::Gpipe => true,
        Method::OneFOneB | Method::ZbH1 | Method::ZbH2 => chunks(problem) == Some(1),
        Method::Interleaved => chunks(problem).is_some_and(|v| v > 1),
        Method::ZbV | Method::VHalf | Method::VMin => is_vee(problem),
        _ => false,
    }
}

/// Sequences of ops by rank, a rank being the place of a device among the first stages.
type Ranks = Vec<Vec<Op>>;

pub(crate) fn op(kind: OpKind, stage: usize, microbatch: usize) -> Op {
    Op { kind, stage, microbatch }
}

/// Stages a device, when they are dealt out in turn; devices without a stage do not count.
fn chunks(problem: &Problem) -> Option<usize> {
    let placement = &problem.placement;
    let ranks = distinct(placement);
    let dealt =
        placement.len().is_multiple_of(ranks) && placement.iter().enumerate().all(|(s, &d)| d == placement[s % ranks]);
    (dealt && distinct(&placement[..ranks]) == ranks).then_some(placement.len() / ranks)
}

/// Whether the stages go down the devices once and back up.
fn is_vee(problem: &Problem) -> bool {
    let placement = &problem.placement;
    let half = placement.len() / 2;
    placement.len() == 2 * half
        && distinct(&placement[..half]) == half
        && (0..half).all(|s| placement[s] == placement[placement.len() - 1 - s])
}

fn distinct(devices: &[usize]) -> usize {
    let mut seen = devices.to_vec();
    seen.sort_unstable();
    seen.dedup();
    seen.len()
}

/// Puts each rank's ops on its device; W right after B where it is missing or may not be elsewhere.
fn finish(problem: &Problem, ranks: Ranks) -> Order {
    let mut devices = vec![Vec::new(); problem.devices];
    for ops in ranks {
        let weights = ops.iter().any(|x| x.kind == OpKind::W);
        let at_once = !problem.split_backward || !weights;
        for x in ops {
            if x.kind == OpKind::W && at_once {
                continue;
            }
            let device = &mut devices[problem.placement[x.stage]];
            device.push(x);
            if x.kind == OpKind::B && at_once {
                device.push(Op { kind: OpKind::W, ..x });
            }
        }
    }
    let mut names: Vec<usize> = problem.offload_channel.iter().chain(&problem.reload_channel).copied().collect();
    names.sort_unstable();
    names.dedup();
    Order { devices, channels: vec![Vec::new(); names.len()] }
}

/// All F by stage, then all B from the last stage on.
fn gpipe(problem: &Problem) -> Ranks {
    let mut devices = vec![Vec::new(); problem.devices];
    let all = 0..problem.microbatches;
    for s in 0..problem.stages() {
        devices[problem.placement[s]].extend(all.clone().map(|j| op(OpKind::F, s, j)));
    }
    for s in (0..problem.stages()).rev() {
        devices[problem.placement[s]].extend(all.clone().map(|j| op(OpKind::B, s, j)));
    }
    devices
}

/// For each stage: some F ahead, then F and B in turn.
fn one_f_one_b(problem: &Problem, ahead: impl Fn(usize) -> usize) -> Ranks {
    let m = problem.microbatches;
    let rank = |s: usize| {
        let ahead = ahead(s).min(m);
        let forwards = (0..m).map(|j| (j.saturating_sub(ahead) * 2 + usize::from(j >= ahead), op(OpKind::F, s, j)));
        let backwards = (0..m).map(|j| (2 * j + 2, op(OpKind::B, s, j)));
        // Slots: forward ahead + i at 2i + 1 (those ahead at 0), backward i at 2i + 2.
        let mut ops: Vec<(usize, Op)> = forwards.chain(backwards).collect();
        ops.sort_by_key(|x| (x.0, x.1.kind, x.1.microbatch));
        ops.into_iter().map(|x| x.1).collect()
    };
    (0..problem.stages()).map(rank).collect()
}

/// Groups of as many microbatches as ranks go through chunk after chunk (Narayanan et al. 2021). Where
/// the number of microbatches is no multiple of that, the last group is smaller, and all ranks start
/// with as many more F as it takes to run at all.
fn interleaved(problem: &Problem) -> Result<Order, MethodError> {
    let m = problem.microbatches;
    let ranks = distinct(&problem.placement);
    let chunks = problem.stages() / ranks;
    let mut turns = Vec::with_capacity(chunks * m);
    for group in (0..m).step_by(ranks) {
        for v in 0..chunks {
            turns.extend((group..m.min(group + ranks)).map(|j| (v, j)));
        }
    }
    let order = |more: usize| {
        let rank = |r: usize| {
            let ahead = (2 * (ranks - 1 - r) + (chunks - 1) * ranks + more).min(turns.len());
            let forward = |&(v, j): &(usize, usize)| op(OpKind::F, v * ranks + r, j);
            let backward = |&(v, j): &(usize, usize)| op(OpKind::B, (chunks - 1 - v) * ranks + r, j);
            let mut ops: Vec<Op> = turns[..ahead].iter().map(forward).collect();
            for (f, b) in turns[ahead..].iter().zip(&turns) {
                ops.extend([forward(f), backward(b)]);
            }
            ops.extend(turns[turns.len() - ahead..].iter().map(backward));
            ops
        };
        finish(problem, (0..ranks).map(rank).collect())
    };
    // With all F ahead (GPipe by chunks) the order runs for sure.
    let mut more = 0;
    loop {
        let order = order(more);
        match simulate_unlimited(problem, &order) {
            Err(SimulateError::Cycle { .. }) if more < turns.len() => more = (2 * more + 1).min(turns.len()),
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(order),
        }
    }
}

#[cfg(test)]
mod tests;
