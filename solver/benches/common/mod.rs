//! Problems that benchmarks run on.

use optpipe_solver::problem::{Problem, Sizes, Times};

/// Devices, chunks a device, microbatches.
pub(crate) const SIZES: [(usize, usize, usize); 3] = [(4, 2, 8), (8, 4, 16), (64, 2, 256)];

/// Half the memory of 1F1B, two devices a channel.
pub(crate) fn problem((devices, chunks, microbatches): (usize, usize, usize)) -> Problem {
    let stages = devices * chunks;
    Problem {
        devices,
        placement: (0..stages).map(|s| s % devices).collect(),
        microbatches,
        split_backward: true,
        time_ns: Times {
            forward: vec![1_000; stages],
            backward_input: (0..stages).map(|s| 1_400 + 50 * (s as i64 % 5)).collect(),
            backward_weight: vec![600; stages],
            send_forward: vec![20; stages - 1],
            send_backward: vec![20; stages - 1],
            offload: vec![800; stages],
            reload: vec![800; stages],
        },
        bytes: Sizes {
            activation: vec![8; stages],
            weight_context: vec![4; stages],
            offloadable: vec![8; stages],
            r#static: vec![0; devices],
            capacity: vec![8 * stages as i64 / 2; devices],
        },
        offload_channel: (0..devices).map(|d| d / 2).collect(),
        reload_channel: (0..devices).map(|d| devices + d / 2).collect(),
    }
}
