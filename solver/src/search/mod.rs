//! Search: constructions over random policies, then simulated annealing on orders, offloads and copies,
//! on several threads.

mod anneal;
mod group_moves;
mod moves;
mod policies;
mod retime;
mod state;
#[cfg(test)]
mod tests;

use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use crate::graph::Graph;
use crate::incumbent::Incumbent;
use crate::objective::Objective;
use crate::plan::Plan;

/// How long and how to search.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SearchOptions {
    /// Threads; each searches by itself, from a seed of its own.
    pub(crate) threads: usize,
    pub(crate) seed: u64,
    pub(crate) deadline: Instant,
    /// Evaluations of each thread, at most; with the deadline far enough, the same seed then finds the
    /// same schedule.
    pub(crate) iterations: Option<u64>,
    pub(crate) objective: Objective,
}

/// The parts of the search, as they are named in records.
pub(crate) const POLICIES: &str = "policies";
pub(crate) const ANNEALING: &str = "annealing";

/// How long the parts took, the longest of all threads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Phases {
    pub(crate) policies: Duration,
    pub(crate) annealing: Duration,
}

/// A plan of more stage-microbatch pairs than this is long.
const LONG: usize = 1_000;

/// A better plan, with its makespan, and the part that found it.
#[derive(Debug, Clone)]
pub(crate) struct Better {
    pub(crate) plan: Plan,
    pub(crate) makespan_ns: i64,
    pub(crate) part: &'static str,
}

/// What the threads share.
struct Shared<'a> {
    options: SearchOptions,
    begun: Instant,
    incumbent: &'a Incumbent,
}

/// One thread's search: its generator, what it has found, and how many evaluations are left.
struct Worker<'a> {
    shared: &'a Shared<'a>,
    /// Which of the threads it is.
    thread: usize,
    better: Sender<Better>,
    rng: Pcg64Mcg,
    /// The best that it knows of.
    best: Option<Better>,
    evaluations: u64,
    /// Whether it has reached the target.
    done: bool,
}

impl Worker<'_> {
    /// Notes a plan if it is the best of this thread; sends it if it is the best of all.
    fn found(&mut self, plan: &Plan, makespan_ns: i64, part: &'static str) {
        if self.best.as_ref().is_some_and(|x| x.makespan_ns <= makespan_ns) {
            return;
        }
        let better = Better { plan: plan.clone(), makespan_ns, part };
        let (incumbent, options) = (self.shared.incumbent, &self.shared.options);
        if options.iterations.is_none() && incumbent.offer(plan, makespan_ns) {
            // The receiver outlives the threads.
            let _ = self.better.send(better.clone());
        }
        self.best = Some(better);
        self.done |= makespan_ns <= incumbent.bound_ns();
    }

    /// Whether this thread should end.
    fn stopped(&self) -> bool {
        let (incumbent, options) = (self.shared.incumbent, &self.shared.options);
        self.done
            || incumbent.is_stopped()
            || options.iterations.is_none() && incumbent.is_optimal()
            || Instant::now() >= options.deadline
    }

    /// Share of this search that is over, by iterations where they are limited, else by time.
    fn progress(&self) -> f64 {
        let options = &self.shared.options;
        match options.iterations {
            Some(most) => self.evaluations as f64 / most.max(1) as f64,
            None => {
                let whole = options.deadline.saturating_duration_since(self.shared.begun).as_secs_f64();
                self.shared.begun.elapsed().as_secs_f64() / whole.max(1e-9)
            }
        }
    }

    /// About how many evaluations are left, at a rate a second.
    fn left(&self, rate: Option<f64>) -> u64 {
        match self.shared.options.iterations {
            Some(most) => most.saturating_sub(self.evaluations),
            None => {
                let left = self.shared.options.deadline.saturating_duration_since(Instant::now());
                rate.map_or(u64::MAX / 2, |rate| (rate * left.as_secs_f64()) as u64)
            }
        }
    }

    fn run(mut self, graph: &Graph<'_>) -> (Option<Better>, Phases) {
        let begun = Instant::now();
        // Annealing gains little where plans are long: constructions get most of the time there.
        let share = if graph.pairs > LONG { 0.75 } else { 0.35 };
        let others = policies::search(graph, &mut self, share);
        let policies = begun.elapsed();
        anneal::anneal(graph, &mut self, &others);
        (self.best, Phases { policies, annealing: begun.elapsed() - policies })
    }
}

/// Searches from the incumbent until it meets the bound, the time or the iterations are over, or all are
/// told to stop. `on_better` hears of each plan shorter than all before; with a limit on iterations of the
/// best one only, when all threads are done, so that it does not depend on the clock.
pub(crate) fn search(
    graph: &Graph<'_>,
    options: SearchOptions,
    incumbent: &Incumbent,
    on_better: &mut dyn FnMut(Better),
) -> Phases {
    let start =
        incumbent.plan().map(|(makespan_ns, plan)| Better { plan: (*plan).clone(), makespan_ns, part: "incumbent" });
    let known = start.as_ref().map_or(i64::MAX, |x| x.makespan_ns);
    let shared = Shared { options, begun: Instant::now(), incumbent };
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for thread in 0..options.threads.max(1) {
            let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(thread as u64);
            let rng = Pcg64Mcg::seed_from_u64(seed);
            let (better, best) = (sender.clone(), start.clone());
            let worker = Worker { shared: &shared, thread, better, rng, best, evaluations: 0, done: false };
            threads.push(scope.spawn(move || worker.run(graph)));
        }
        drop(sender);
        while let Ok(better) = receiver.recv() {
            on_better(better);
        }
        let mut phases = Phases::default();
        let mut bests = Vec::new();
        for thread in threads {
            let (best, own) = thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
            phases.policies = phases.policies.max(own.policies);
            phases.annealing = phases.annealing.max(own.annealing);
            bests.extend(best);
        }
        let best = bests.into_iter().min_by_key(|x| x.makespan_ns).filter(|x| x.makespan_ns < known);
        if let (Some(best), Some(_)) = (best, options.iterations) {
            incumbent.offer(&best.plan, best.makespan_ns);
            on_better(best);
        }
        phases
    })
}

/// Annealing without the clock, for benchmarks.
pub(crate) struct Trial<'g> {
    state: state::State<'g>,
    mover: moves::Mover,
    mean: f64,
}

impl<'g> Trial<'g> {
    pub(crate) fn new(graph: &'g Graph<'g>, plan: Plan, seed: u64) -> Option<Self> {
        let state = state::State::new(graph, plan, Objective::Makespan)?;
        let mover = moves::Mover::new(&state, Pcg64Mcg::seed_from_u64(seed));
        Some(Trial { state, mover, mean: anneal::mean_time(graph) })
    }

    pub(crate) fn steps(&mut self, count: u64, temperature: f64) {
        for _ in 0..count {
            anneal::step(&mut self.state, &mut self.mover, temperature * self.mean);
        }
    }

    pub(crate) fn makespan_ns(&self) -> i64 {
        self.state.value_ns
    }
}
