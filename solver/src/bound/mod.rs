//! A lower bound on the makespan: no legal schedule is shorter.
//!
//! Microbatches may overtake each other, yet the k-th op of a stage can be spoken of: if every Y(s',j)
//! starts no earlier than x after the end of X(s,j), the k-th Y(s') starts no earlier than x after the
//! end of the k-th X(s), since the first k+1 ops Y belong to k+1 microbatches whose X all ended by then.
//!
//! From this come heads (no k-th op starts earlier) and tails (so much time is left after the k-th op
//! from the last), sharpened by the work that a device must have done before and by memory; from heads
//! and tails, for each device, the bound of one machine that may interrupt its ops; and, apart from
//! that, a bound on memory times time.

mod area;
mod counter;
mod heads;
mod period;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::problem::Problem;
use heads::Heads;

pub use counter::counter_bound;
pub use period::period_bound;

/// A lower bound on the makespan of any legal schedule, ns: the best of three, rounded up to a multiple
/// of the common divisor of all times (some optimal schedule starts every op at a sum of times).
///
/// The problem must be feasible; of an infeasible one the bound says nothing.
pub fn lower_bound(problem: &Problem) -> i64 {
    let heads = Heads::forwards(problem);
    let tails = Heads::backwards(problem);
    let t = &problem.time_ns;
    let compute = (0..problem.devices)
        .map(|d| {
            let whole = |s: usize| t.forward[s] + t.backward_input[s] + t.backward_weight[s];
            problem.stages_of(d).map(whole).sum::<i64>() * problem.microbatches as i64
        })
        .max()
        .unwrap_or(0);
    let one_machine = (0..problem.devices).map(|d| one_machine(problem, d, &heads, &tails)).max().unwrap_or(0);
    let area = area::area(problem, &heads, &tails);
    let grain = grain(problem);
    let best = compute.max(one_machine).max(area);
    if grain > 0 { (best + grain - 1) / grain * grain } else { best }
}

/// The common divisor of all times that count.
fn grain(problem: &Problem) -> i64 {
    let t = &problem.time_ns;
    let hops = (0..problem.stages() - 1).flat_map(|s| [problem.hop_forward(s), problem.hop_backward(s)]);
    [&t.forward, &t.backward_input, &t.backward_weight, &t.offload, &t.reload]
        .into_iter()
        .flatten()
        .copied()
        .chain(hops)
        .fold(0, gcd)
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The device's ops with their heads and tails, if they could be interrupted: always run the one with
/// the longest tail (Jackson's rule, optimal for this).
fn one_machine(problem: &Problem, device: usize, heads: &Heads, tails: &Heads) -> i64 {
    let t = &problem.time_ns;
    let m = problem.microbatches;
    let mut jobs = Vec::new();
    for s in problem.stages_of(device) {
        for k in 0..m {
            let (at, last) = (s * m + k, s * m + m - 1 - k);
            jobs.push((heads.f[at], t.forward[s], tails.f[last]));
            if problem.split_backward {
                jobs.push((heads.b[at], t.backward_input[s], tails.b[last]));
                jobs.push((heads.w[at], t.backward_weight[s], tails.w[last]));
            } else {
                jobs.push((heads.b[at], t.backward_input[s] + t.backward_weight[s], tails.w[last]));
            }
        }
    }
    jobs.sort_unstable();
    let mut jobs = jobs.into_iter().peekable();
    let mut waiting: BinaryHeap<(i64, Reverse<i64>)> = BinaryHeap::new();
    let (mut best, mut now) = (0, 0);
    loop {
        if waiting.is_empty() {
            let Some(job) = jobs.peek() else { return best };
            now = now.max(job.0);
        }
        while let Some((_, time, tail)) = jobs.next_if(|x| x.0 <= now) {
            waiting.push((tail, Reverse(time)));
        }
        let until = jobs.peek().map_or(i64::MAX, |x| x.0);
        if let Some((tail, Reverse(time))) = waiting.pop() {
            let step = time.min(until - now);
            now += step;
            if step == time {
                best = best.max(now + tail);
            } else {
                waiting.push((tail, Reverse(time - step)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
