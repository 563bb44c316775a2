//! Orders and heads that memory forces where microbatches stay in order.
//!
//! When F(s,a) starts and k of the B of its stage have ended, the microbatches k..=a all hold their
//! activations of this stage and of the device's earlier stages, less what has been offloaded. What
//! exceeds the room must have gone through the offload channel since the F of microbatch k, and must
//! come back through the reload channel before the B of microbatch a. Where this cannot be, more B must
//! come first. The same with W and the weight context.

use super::network::{Empty, Known, Network};
use crate::schedule::OpKind;

/// What microbatches between F and B (or W) of a stage hold at least.
struct Hold {
    /// Each of those before, if nothing is offloaded.
    each: i64,
    /// The one that starts its F.
    own: i64,
    /// Stage, bytes that offloading spares there for each microbatch, whether for the last one too.
    spare: Vec<(usize, i64, bool)>,
}

/// Forces orders of F against B and W of one stage and raises heads of F. True if anything changed.
pub(super) fn order_by_memory(network: &mut Network) -> Result<bool, Empty> {
    let problem = network.problem;
    let mut changed = false;
    for stage in 0..problem.stages() {
        let device = problem.placement[stage];
        // Work of length 0 could start and end at one instant, holding nothing.
        let instant = problem.time_ns.forward[stage] == 0 && problem.time_ns.backward_input[stage] == 0;
        if !network.tight[device] || instant {
            continue;
        }
        let bytes = &problem.bytes;
        let earlier: Vec<usize> = problem.stages_of(device).filter(|&s| s <= stage).collect();
        let stack: i64 = earlier.iter().map(|&s| bytes.activation[s]).sum();
        let until_b = Hold {
            each: stack,
            own: stack,
            spare: earlier.iter().map(|&s| (s, bytes.offloadable[s], s < stage)).collect(),
        };
        changed |= until(network, stage, &until_b, false)?;
        if network.units[network.unit(stage, 0)].w.is_some() {
            let weight = bytes.weight_context[stage];
            let rest = bytes.activation[stage] - bytes.offloadable[stage];
            let until_w = Hold {
                each: weight,
                own: bytes.activation[stage],
                spare: vec![(stage, (weight - rest).max(0), false)],
            };
            changed |= until(network, stage, &until_w, true)?;
        }
    }
    Ok(changed)
}

fn until(network: &mut Network, stage: usize, hold: &Hold, weight: bool) -> Result<bool, Empty> {
    let problem = network.problem;
    let device = problem.placement[stage];
    let room = problem.bytes.capacity[device] - problem.bytes.r#static[device];
    let mut changed = false;
    for a in 1..problem.microbatches {
        let f = network.units[network.unit(stage, a)].f;
        let mut earliest = i64::MAX;
        for k in 0..=a {
            // Microbatches k..a have not ended their B (W); those before k have.
            let gate = |network: &Network, j: usize| {
                let unit = network.units[network.unit(stage, j)];
                if weight { unit.w.unwrap_or(unit.b) } else { unit.b }
            };
            if k < a && network.known(gate(network, k), f) == Known::Before {
                continue;
            }
            let possible = fits(network, stage, hold, room, k, a);
            let Some(copied) = possible.filter(|&t| t <= network.latest(f)) else {
                if k < a {
                    // With k or fewer ended it does not fit either.
                    changed |= network.force(gate(network, k), f)?;
                    continue;
                }
                return Err(Empty);
            };
            let mut at = copied;
            if k > 0 {
                let last = gate(network, k - 1);
                if network.known(last, f) == Known::After {
                    break;
                }
                at = at.max(network.head[last] + network.jobs[last].span);
            }
            earliest = earliest.min(at);
        }
        if earliest < i64::MAX && earliest > network.head[f] {
            network.head[f] = earliest;
            changed = true;
        }
    }
    Ok(changed)
}

/// When F(stage, a) can start at the earliest, as far as memory goes, while microbatches k..a hold
/// theirs; None if it never fits or the copies back come too late.
fn fits(network: &Network, stage: usize, hold: &Hold, room: i64, k: usize, a: usize) -> Option<i64> {
    let problem = network.problem;
    let n = (a - k) as i64;
    let excess = n * hold.each + hold.own - room;
    if excess <= 0 {
        return Some(0);
    }
    let most: i64 = hold.spare.iter().map(|&(_, bytes, last)| (n + i64::from(last)) * bytes).sum();
    if excess > most {
        return None;
    }
    let time = |kind: OpKind| {
        let per_stage = hold.spare.iter().filter(|&&(_, bytes, _)| bytes > 0);
        per_stage
            .map(|&(s, bytes, _)| {
                let span = network.scale.units(problem.duration(kind, s));
                if hold.spare.len() == 1 {
                    (excess + bytes - 1) / bytes * span
                } else {
                    (i128::from(excess) * i128::from(span) / i128::from(bytes)) as i64
                }
            })
            .min()
            .unwrap_or(0)
    };
    let earliest = |s: usize| {
        let f = network.units[network.unit(s, k)].f;
        network.head[f] + network.jobs[f].span
    };
    let ready = hold.spare.iter().map(|&(s, ..)| earliest(s)).min()?;
    let copied = ready + time(OpKind::O);
    let f = network.units[network.unit(stage, a)].f;
    let last_use = hold.spare.iter().map(|&(s, ..)| network.latest(network.units[network.unit(s, a)].b)).max()?;
    (network.head[f].max(copied) + time(OpKind::R) <= last_use).then_some(copied)
}
