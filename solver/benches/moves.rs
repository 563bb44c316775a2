//! Steps a second of the annealing: an edit, the times that it changes, and the edit taken back or kept.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{SIZES, problem};
use divan::Bencher;
use divan::counter::ItemsCount;
use optpipe_solver::bench::Timing;

fn main() {
    divan::main();
}

/// Steps of one sample.
const STEPS: u64 = 1_000;

#[divan::bench(args = SIZES, sample_count = 10)]
fn anneal(bencher: Bencher<'_, '_>, size: (usize, usize, usize)) {
    let problem = problem(size);
    let timing = Timing::new(&problem).unwrap();
    let mut annealing = timing.annealing(0).unwrap();
    bencher.counter(ItemsCount::new(STEPS)).bench_local(|| annealing.steps(STEPS, 0.02));
}
