//! Search: constructions over random policies, then simulated annealing on orders, offloads and copies,
//! on several threads.

mod anneal;
mod moves;
mod policies;
mod state;

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use crate::graph::Graph;
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
    /// The search ends once a makespan is no longer than this.
    pub(crate) target_ns: i64,
}

/// The parts of the search, as they are named in records.
pub(crate) const POLICIES: &str = "policies";
pub(crate) const ANNEALING: &str = "annealing";

/// A plan of more stage-microbatch pairs than this is long.
const LONG: usize = 8_000;

/// A better plan, with its makespan, and the part that found it.
pub(crate) struct Better {
    pub(crate) plan: Plan,
    pub(crate) makespan_ns: i64,
    pub(crate) part: &'static str,
}

/// What the threads share.
struct Shared<'a> {
    options: SearchOptions,
    begun: Instant,
    stop: AtomicBool,
    best: AtomicI64,
    cancel: &'a AtomicBool,
}

impl Shared<'_> {
    fn stopped(&self) -> bool {
        // A thread that stops because of another's luck makes no difference: the target is reached.
        self.stop.load(Ordering::Relaxed)
            || self.cancel.load(Ordering::Relaxed)
            || Instant::now() >= self.options.deadline
    }
}

/// One thread's search: its generator, what it has found, and how many evaluations are left.
struct Worker<'a> {
    shared: &'a Shared<'a>,
    better: Sender<Better>,
    rng: Pcg64Mcg,
    /// Its best plan and makespan.
    best: Option<(Plan, i64)>,
    evaluations: u64,
}

impl Worker<'_> {
    /// Notes a plan if it is the best of this thread; sends it if it is the best of all.
    fn found(&mut self, plan: &Plan, makespan_ns: i64, part: &'static str) {
        if self.best.as_ref().is_some_and(|x| x.1 <= makespan_ns) {
            return;
        }
        self.best = Some((plan.clone(), makespan_ns));
        if self.shared.best.fetch_min(makespan_ns, Ordering::Relaxed) > makespan_ns {
            // The receiver outlives the threads.
            let _ = self.better.send(Better { plan: plan.clone(), makespan_ns, part });
        }
        if makespan_ns <= self.shared.options.target_ns {
            self.shared.stop.store(true, Ordering::Relaxed);
        }
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

    fn run(&mut self, graph: &Graph<'_>) {
        // Annealing gains little where plans are long: constructions get most of the time there.
        let share = if graph.pairs > LONG { 0.8 } else { 0.2 };
        let others = policies::search(graph, self, share);
        anneal::anneal(graph, self, &others);
    }
}

/// Searches from a plan that is known, and its makespan. `on_better` hears of each plan shorter than all
/// before.
pub(crate) fn search(
    graph: &Graph<'_>,
    options: SearchOptions,
    start: Option<(&Plan, i64)>,
    on_better: &mut dyn FnMut(Better),
    cancel: &AtomicBool,
) {
    let shared = Shared {
        options,
        begun: Instant::now(),
        stop: AtomicBool::new(false),
        best: AtomicI64::new(start.map_or(i64::MAX, |x| x.1)),
        cancel,
    };
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for thread in 0..options.threads.max(1) as u64 {
            let rng = Pcg64Mcg::seed_from_u64(options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(thread));
            let best = start.map(|(plan, makespan)| (plan.clone(), makespan));
            let mut worker = Worker { shared: &shared, better: sender.clone(), rng, best, evaluations: 0 };
            scope.spawn(move || worker.run(graph));
        }
        drop(sender);
        let mut heard = start.map_or(i64::MAX, |x| x.1);
        loop {
            match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(better) if better.makespan_ns < heard => {
                    heard = better.makespan_ns;
                    on_better(better);
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
}
