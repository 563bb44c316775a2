//! Problems for tests.

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

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

/// Feasible problems of all kinds: any placement, uneven and zero times and sizes, memory from just enough
/// to plenty, channels private, shared or half-duplex.
pub(crate) fn random(rng: &mut Pcg64Mcg) -> Problem {
    let devices = rng.random_range(1..5);
    let s = rng.random_range(1..9);
    let mut times = |n: usize, most: i64| (0..n).map(|_| rng.random_range(0..=most)).collect::<Vec<_>>();
    let activation = times(s, 8);
    let part = |of: &[i64], eighths: Vec<i64>| of.iter().zip(eighths).map(|(x, y)| x * y / 8).collect();
    let mut problem = Problem {
        devices,
        time_ns: Times {
            forward: times(s, 6),
            backward_input: times(s, 6),
            backward_weight: times(s, 6),
            send_forward: times(s - 1, 3),
            send_backward: times(s - 1, 3),
            offload: times(s, 6),
            reload: times(s, 6),
        },
        bytes: Sizes {
            weight_context: part(&activation, times(s, 8)),
            offloadable: part(&activation, times(s, 8)),
            activation,
            r#static: times(devices, 3),
            capacity: vec![0; devices],
        },
        placement: (0..s).map(|_| rng.random_range(0..devices)).collect(),
        microbatches: rng.random_range(1..7),
        split_backward: rng.random(),
        offload_channel: (0..devices).map(|_| rng.random_range(0..2 * devices)).collect(),
        reload_channel: (0..devices).map(|_| rng.random_range(0..2 * devices)).collect(),
    };
    while let Err(e) = problem.feasible() {
        problem.bytes.capacity[e.device] += e.missing_bytes;
    }
    problem.bytes.capacity.iter_mut().for_each(|x| *x += rng.random_range(0..20));
    problem
}
