#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::uniform;

#[test]
fn one_microbatch_takes_its_way_down_and_up() {
    let problem = uniform(4, vec![0, 1, 2, 3], 1);
    assert_eq!(lower_bound(&problem), 4 + 4 + 1);
}

#[test]
fn the_last_device_starts_late_and_computes_to_the_end() {
    let problem = uniform(4, vec![0, 1, 2, 3], 8);
    assert_eq!(lower_bound(&problem), 3 + 3 * 8);
}

#[test]
fn room_for_one_microbatch_makes_the_pipeline_serial() {
    let mut problem = uniform(2, vec![0, 1], 4);
    problem.bytes.offloadable = vec![0; 2];
    problem.bytes.weight_context = vec![0; 2];
    problem.bytes.capacity = vec![2; 2];
    // F0 F1 B1 B0 for each, one after another, and one W.
    assert_eq!(lower_bound(&problem), 4 * 4 + 1);
}

#[test]
fn the_bound_is_a_multiple_of_the_times_common_divisor() {
    let mut problem = uniform(3, vec![0, 1, 2], 5);
    let t = &mut problem.time_ns;
    for times in [&mut t.forward, &mut t.backward_input, &mut t.backward_weight, &mut t.offload, &mut t.reload] {
        times.iter_mut().for_each(|x| *x *= 30);
    }
    assert_eq!(lower_bound(&problem) % 30, 0);
}
