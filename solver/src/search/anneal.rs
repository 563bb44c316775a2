//! Simulated annealing on orders, offloads and copies.

use std::time::Instant;

use rand::RngExt;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use super::Worker;
use super::moves::Mover;
use super::state::State;
use crate::graph::Graph;
use crate::plan::Plan;

/// Evaluations of the first round; each later one has twice as many, up to the last.
const FIRST_ROUND: u64 = 20_000;
const LONGEST_ROUND: u64 = 640_000;
/// The clock is read after so many evaluations.
const STEP: u64 = 32;
/// Temperatures at the start and at the end of a round, in mean times of an op.
const HOT: f64 = 0.04;
const COLD: f64 = 0.004;

/// Anneals in rounds, from the best plan, until the search is over. Rounds at later times start from the
/// best plan or, in turn, from one of `others`.
pub(super) fn anneal(graph: &Graph<'_>, worker: &mut Worker<'_>, others: &[Plan]) {
    let mean = mean_time(graph);
    // Evaluations a second, to plan rounds that end in time.
    let mut rate = None;
    for round in 0.. {
        if worker.stopped() || worker.left(rate) == 0 {
            return;
        }
        let Some(best) = worker.best.as_ref().map(|x| &x.plan) else { return };
        let plan = if round % 3 == 2 && !others.is_empty() { &others[round / 3 % others.len()] } else { best };
        let objective = worker.shared.options.objective;
        let Some(mut state) = State::new(graph, plan.clone(), objective) else { return };
        let mut mover = Mover::new(&state, Pcg64Mcg::seed_from_u64(worker.rng.random()));
        let planned = (FIRST_ROUND << round.min(10)).min(LONGEST_ROUND);
        let left = worker.left(rate);
        let budget = if left < planned * 3 / 2 { left } else { planned };
        let begun = Instant::now();
        let done = run(worker, &mut state, &mut mover, budget, mean);
        rate = Some(done as f64 / begun.elapsed().as_secs_f64().max(1e-6));
    }
}

/// One round; returns the evaluations that it took.
fn run(worker: &mut Worker<'_>, state: &mut State<'_>, mover: &mut Mover, budget: u64, mean: f64) -> u64 {
    let mut done = 0;
    while done < budget && !worker.stopped() {
        let temperature = mean * HOT * (COLD / HOT).powf(done as f64 / budget as f64);
        for _ in 0..STEP {
            if step(state, mover, temperature) {
                worker.found(&state.plan, state.value_ns, super::ANNEALING);
            }
        }
        done += STEP;
        worker.evaluations += STEP;
    }
    done
}

/// Tries one edit; returns whether it was kept.
pub(super) fn step(state: &mut State<'_>, mover: &mut Mover, temperature: f64) -> bool {
    mover.edit(state);
    // The threshold is drawn before the evaluation, which so can end early.
    let draw: f64 = mover.rng().random();
    let threshold = state.objective - temperature * draw.max(1e-12).ln();
    let kept = state.settle(threshold);
    if kept {
        mover.accepted();
    }
    kept
}

/// Mean time of F, B and W, ns.
pub(super) fn mean_time(graph: &Graph<'_>) -> f64 {
    let compute = &graph.nodes[..3 * graph.pairs];
    compute.iter().map(|x| x.duration).sum::<i64>() as f64 / compute.len() as f64
}
