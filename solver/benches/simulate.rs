//! Ops a second of the simulator: `cargo bench -p optpipe-solver`.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{SIZES, problem};
use divan::Bencher;
use divan::counter::ItemsCount;
use optpipe_solver::bench::Timing;
use optpipe_solver::bound::lower_bound;
use optpipe_solver::simulate::simulate;

fn main() {
    divan::main();
}

/// Memory walk and longest path of a plan whose arrays are there.
#[divan::bench(args = SIZES)]
fn evaluate(bencher: Bencher<'_, '_>, size: (usize, usize, usize)) {
    let problem = problem(size);
    let mut timing = Timing::new(&problem).unwrap();
    bencher.counter(ItemsCount::new(timing.ops())).bench_local(|| timing.run());
}

/// The whole call: numbering, checks of the order, times, schedule, peaks.
#[divan::bench(args = SIZES)]
fn simulate_order(bencher: Bencher<'_, '_>, size: (usize, usize, usize)) {
    let problem = problem(size);
    let timing = Timing::new(&problem).unwrap();
    let order = timing.order();
    bencher.counter(ItemsCount::new(timing.ops())).bench_local(|| simulate(&problem, &order).unwrap());
}

#[divan::bench(args = SIZES)]
fn bound(bencher: Bencher<'_, '_>, size: (usize, usize, usize)) {
    let problem = problem(size);
    bencher.bench_local(|| lower_bound(&problem));
}
