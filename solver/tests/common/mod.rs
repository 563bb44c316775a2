//! Random problems.

#![allow(unreachable_pub)]

use optpipe_solver::problem::{Problem, Sizes, Times};
use proptest::prelude::*;

/// How large problems get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Most {
    pub(crate) devices: usize,
    pub(crate) stages: usize,
    pub(crate) microbatches: usize,
    /// The least time of F, B and W.
    pub(crate) least_time: i64,
}

/// Feasible problems of all kinds: any placement, also with devices that hold no stage, uneven and zero
/// times and sizes, memory from just enough to plenty, channels private, shared or half-duplex.
pub(crate) fn problems(most: Most) -> impl Strategy<Value = Problem> {
    (1..=most.devices, 1..=most.stages, 1..=most.microbatches, any::<bool>()).prop_flat_map(
        move |(devices, stages, microbatches, split_backward)| {
            let times = |least: i64| prop::collection::vec(least..7_i64, stages);
            let placement = prop::collection::vec(0..devices, stages);
            let compute = (times(most.least_time), times(most.least_time), times(most.least_time));
            let copies = (times(0), times(0));
            let sends = prop::collection::vec((0..4_i64, 0..4_i64), stages - 1);
            let sizes = prop::collection::vec((0..9_i64, 0..=8_i64, 0..=8_i64), stages);
            let memory = prop::collection::vec((0..4_i64, 0..20_i64), devices);
            let channels = prop::collection::vec((0..2 * devices, 0..2 * devices), devices);
            (placement, compute, copies, sends, sizes, memory, channels).prop_map(
                move |(placement, compute, copies, sends, sizes, memory, channels)| {
                    let mut problem = Problem {
                        devices,
                        placement,
                        microbatches,
                        split_backward,
                        time_ns: Times {
                            forward: compute.0,
                            backward_input: compute.1,
                            backward_weight: compute.2,
                            send_forward: sends.iter().map(|x| x.0).collect(),
                            send_backward: sends.iter().map(|x| x.1).collect(),
                            offload: copies.0,
                            reload: copies.1,
                        },
                        bytes: Sizes {
                            activation: sizes.iter().map(|x| x.0).collect(),
                            weight_context: sizes.iter().map(|x| x.0 * x.1 / 8).collect(),
                            offloadable: sizes.iter().map(|x| x.0 * x.2 / 8).collect(),
                            r#static: memory.iter().map(|x| x.0).collect(),
                            capacity: vec![0; devices],
                        },
                        offload_channel: channels.iter().map(|x| x.0).collect(),
                        reload_channel: channels.iter().map(|x| x.1).collect(),
                    };
                    // Just enough on every device, by what the refusals say, then some more.
                    while let Err(e) = problem.feasible() {
                        problem.bytes.capacity[e.device] += e.missing_bytes;
                    }
                    for (capacity, (_, more)) in problem.bytes.capacity.iter_mut().zip(&memory) {
                        *capacity += more;
                    }
                    problem
                },
            )
        },
    )
}
