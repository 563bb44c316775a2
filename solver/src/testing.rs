//! Problems for tests.

use crate::problem::{Problem, Sizes, Times};

/// F = B = W = 1, no communication, activations of 2 bytes of which 1 stays until W, room for all.
pub(crate) fn uniform(devices: usize, placement: Vec<usize>, microbatches: usize) -> Problem {
    let s = placement.len();
    let capacity = 2 * (s * microbatches) as i64;
    Problem {
        devices,
        microbatches,
        split_backward: true,
        time_ns: Times {
            forward: vec![1; s],
            backward_input: vec![1; s],
            backward_weight: vec![1; s],
            send_forward: vec![0; s - 1],
            send_backward: vec![0; s - 1],
            offload: vec![1; s],
            reload: vec![1; s],
        },
        bytes: Sizes {
            activation: vec![2; s],
            weight_context: vec![1; s],
            offloadable: vec![2; s],
            r#static: vec![0; devices],
            capacity: vec![capacity; devices],
        },
        offload_channel: (0..devices).collect(),
        reload_channel: (devices..2 * devices).collect(),
        placement,
    }
}
