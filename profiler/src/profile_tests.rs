#![allow(clippy::unwrap_used)]
use optpipe_kernels::cpu::CpuBackend;

use super::*;

/// What needs the counting allocator is tested in a program that has it (`tests/profile.rs`).
#[test]
fn without_the_counting_allocator_nothing_is_measured() {
    let model = Model::read("llama-15m", None).unwrap();
    let (job, backend) = (Job::default(), CpuBackend::new(1).unwrap());
    let cancel = AtomicBool::new(false);
    let error = profile(&model, &job, &backend, &ProfileOptions::default(), &mut |_| {}, &cancel).unwrap_err();
    assert!(error.to_string().contains("Counting"), "{error}");
}
