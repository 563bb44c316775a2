//! Rows that no schedule needs but that tighten the relaxation.
//!
//! - Load of a queue: a job starts no earlier than the queue's first start plus all that runs before it
//!   there; the makespan lies no earlier than its end plus all that runs after it plus the least tail;
//!   and between two jobs of known order lies all that runs between them.
//! - Triangles: of three jobs of a device, the orders of the pairs form no cycle.

use super::model::{Lit, Program, Row};
use super::network::Known;

/// Most binaries for which triangles of three open orders are added: more of them slow every LP down
/// without paying.
const MOST_BINARIES_FOR_TRIANGLES: usize = 900;
/// Most binaries for which the load between two jobs of known order is counted.
const MOST_BINARIES_FOR_BETWEEN: usize = 4000;

/// Adds the rows.
pub(super) fn add_rows(program: &mut Program) {
    let triangles = program.binaries <= MOST_BINARIES_FOR_TRIANGLES;
    let between = program.binaries <= MOST_BINARIES_FOR_BETWEEN;
    for device in 0..program.network.by_device.len() {
        device_load(program, device, between);
        add_triangles(program, device, triangles);
    }
    for channel in program.channels() {
        channel_load(program, &channel);
    }
}

fn device_load(program: &mut Program, device: usize, between: bool) {
    let network = program.network;
    let jobs = &network.by_device[device];
    let span = |job: usize| network.jobs[job].span as f64;
    for &i in jobs {
        let others = || jobs.iter().copied().filter(move |&a| a != i);
        let may_precede = others().filter(|&a| network.known(a, i) != Known::After);
        let may_follow = others().filter(|&a| network.known(a, i) != Known::Before);
        let first = may_precede.map(|a| network.head[a]).min();
        let last = may_follow.map(|a| network.tail[a] - network.jobs[a].span).min();
        if let Some(first) = first.map(|head| head.min(network.head[i])) {
            let row = Row::default().var(1.0, program.start[i]).add(-first as f64);
            let row = others().fold(row, |row, a| row.lit(-span(a), program.before(a, i)));
            program.at_least_zero(row);
        }
        if let Some(last) = last.map(|tail| tail.min(network.tail[i] - network.jobs[i].span)) {
            let row = Row::default().var(1.0, program.makespan).var(-1.0, program.start[i]).add(-span(i) - last as f64);
            let row = others().fold(row, |row, a| row.lit(-span(a), program.before(i, a)));
            program.at_least_zero(row);
        }
        if !between {
            continue;
        }
        for j in others().filter(|&j| network.known(i, j) == Known::Before) {
            let mut row = Row::default().var(1.0, program.start[j]).var(-1.0, program.start[i]).add(-span(i));
            let mut open = false;
            for a in others().filter(|&a| a != j) {
                // Between them: after i and before j; as i is before j, one of both always holds.
                let (after, before) = (program.before(i, a), program.before(a, j));
                if matches!(after, Lit::Never) || matches!(before, Lit::Never) {
                    continue;
                }
                open |= after.is_open() || before.is_open();
                row = row.lit(-span(a), after).lit(-span(a), before).add(span(a));
            }
            if open {
                program.at_least_zero(row);
            }
        }
    }
}

fn add_triangles(program: &mut Program, device: usize, all: bool) {
    let jobs = program.network.by_device[device].clone();
    for (x, &a) in jobs.iter().enumerate() {
        for (y, &b) in jobs.iter().enumerate().skip(x + 1) {
            for &c in &jobs[y + 1..] {
                let lits = [program.before(a, b), program.before(b, c), program.before(c, a)];
                let open = lits.iter().filter(|lit| lit.is_open()).count();
                if open == 2 || (open == 3 && all) {
                    // Neither all nor none of a < b, b < c, c < a.
                    let sum = |sign: f64| lits.iter().fold(Row::default(), |row, &lit| row.lit(sign, lit));
                    let never_all = !lits.iter().any(|lit| matches!(lit, Lit::Never));
                    let never_none = !lits.iter().any(|lit| matches!(lit, Lit::Always));
                    if never_all {
                        program.at_least_zero(sum(-1.0).add(2.0));
                    }
                    if never_none {
                        program.at_least_zero(sum(1.0).add(-1.0));
                    }
                }
            }
        }
    }
}

/// The same loads on a channel; a copy that does not happen is no load and bears none.
fn channel_load(program: &mut Program, channel: &[usize]) {
    let network = program.network;
    let after_end = |job: usize| network.tail[job] - network.jobs[job].span;
    let (Some(first), Some(last)) =
        (channel.iter().map(|&a| network.head[a]).min(), channel.iter().map(|&a| after_end(a)).min())
    else {
        return;
    };
    let happens = |program: &Program, job: usize| {
        program.offload[network.unit(network.jobs[job].stage, network.jobs[job].microbatch)]
    };
    let known = (first + last).min(program.at_least);
    let mut whole = Row::default().var(1.0, program.makespan).add(-known as f64);
    for &a in channel {
        let (own, exists) = (network.jobs[a].span as f64, happens(program, a));
        whole = whole.lit(-own, exists);
        // A copy that does not happen may lie before the first and after the last that can happen.
        let (low, high) = program.window(a);
        let (low, high) = (low.min(first), (network.horizon - high).min(last));
        let mut before = Row::default().var(1.0, program.start[a]).add(-low as f64).lit((low - first) as f64, exists);
        let mut after = Row::default().var(1.0, program.makespan).var(-1.0, program.start[a]).add(-high as f64);
        after = after.lit((high - last) as f64 - own, exists);
        for &b in channel {
            let span = network.jobs[b].span as f64;
            if let Some(&lit) = program.copy_order.get(&(b, a)) {
                before = before.lit(-span, lit);
            }
            if let Some(&lit) = program.copy_order.get(&(a, b)) {
                let lit = if program.copies_in_order(a, b) { happens(program, b) } else { lit };
                after = after.lit(-span, lit);
            }
        }
        program.at_least_zero(before);
        program.at_least_zero(after);
    }
    program.at_least_zero(whole);
}
