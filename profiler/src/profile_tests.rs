#![allow(clippy::unwrap_used)]
use optpipe_kernels::cpu::CpuBackend;

use super::*;

#[test]
fn devices_that_share_hardware_do_not_compute_at_once() {
    assert_eq!(beside(4, |device| device), [1, 2, 3]);
    assert_eq!(beside(4, |device| device % 2), [1]);
    assert_eq!(beside(6, |device| [0, 0, 1, 2, 1, 2][device]), [2, 3]);
    assert!(beside(4, |_| 0).is_empty());
    assert!(beside(1, |device| device).is_empty() && beside(0, |device| device).is_empty());
}

#[test]
fn what_tensors_do_not_explain_shows_beyond_the_granularity() {
    assert_eq!(unexplained(100 + GRANULARITY, 100), None);
    assert_eq!(unexplained(101 + GRANULARITY, 100), Some(GRANULARITY + 1));
    assert_eq!(unexplained(0, GRANULARITY as u64 + 7), Some(-GRANULARITY - 7));
}

/// What needs the counting allocator is tested in a program that has it (`tests/profile.rs`).
#[test]
fn without_the_counting_allocator_nothing_is_measured() {
    let model = Model::read("llama-15m", None).unwrap();
    let (job, backend) = (Job::default(), CpuBackend::new(1).unwrap());
    let cancel = AtomicBool::new(false);
    let error = profile(&model, &job, &backend, &ProfileOptions::default(), &mut |_| {}, &cancel).unwrap_err();
    assert!(error.to_string().contains("Counting"), "{error}");
}
