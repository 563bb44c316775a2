//! A bound on the period: the longest span of a device.

use super::area;
use super::heads::Heads;
use crate::problem::Problem;

/// A lower bound on the longest span of a device in any legal schedule, ns: all that the busiest device
/// computes; the way of one microbatch from the first F of a device through all later stages and back; and
/// memory times time within a span.
///
/// The problem must be feasible; of an infeasible one the bound says nothing.
pub fn period_bound(problem: &Problem) -> i64 {
    let t = &problem.time_ns;
    let whole = |s: usize| t.forward[s] + t.backward_input[s] + t.backward_weight[s];
    let mut best = 0;
    for d in 0..problem.devices {
        let compute = problem.stages_of(d).map(whole).sum::<i64>() * problem.microbatches as i64;
        let first = problem.stages_of(d).min();
        best = best.max(compute).max(first.map_or(0, |s| round_trip(problem, s)));
    }
    // A device's copies lie within its span, a shared channel's need not lie within any: each device as if
    // it had channels of its own.
    let mut private = problem.clone();
    for d in 0..problem.devices {
        let shared = problem.offload_channel[d] == problem.reload_channel[d];
        private.offload_channel[d] = 2 * d;
        private.reload_channel[d] = if shared { 2 * d } else { 2 * d + 1 };
    }
    let none = Heads::none(problem);
    best.max(area::area(&private, &none, &none))
}

/// The shortest time from the start of F(s, j) to the end of W(s, j).
fn round_trip(problem: &Problem, s: usize) -> i64 {
    let t = &problem.time_ns;
    let gradient = |x: usize| t.backward_input[x] + if problem.split_backward { 0 } else { t.backward_weight[x] };
    let beyond = (s + 1..problem.stages())
        .map(|x| problem.hop_forward(x - 1) + t.forward[x] + gradient(x) + problem.hop_backward(x - 1))
        .sum::<i64>();
    t.forward[s] + beyond + t.backward_input[s] + t.backward_weight[s]
}
