//! Large-neighbourhood search whose windows are MILPs (Shaw 1998): the order of a few dozen ops, and some
//! offload decisions, are solved anew, the order of all else stays.
//!
//! ```text
//! reference ── window ── links (memory) ── network (heads, tails, distances) ── model ── HiGHS ── extract
//! ```
//!
//! A window asks for a schedule that is strictly shorter than the reference or, on plateaus, for one that is
//! as long and whose devices end earlier on average. Most windows are refuted before a model exists: a path
//! through what the window leaves alone is too long already. Such a window grows along that path. Starts
//! never come from a MILP: its orders do, and the plan that they make is timed and checked like any other.

mod choose;
mod extract;
mod links;
mod memory;
mod model;
mod network;
mod reference;
mod sum;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod window;

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::graph::Graph;
use crate::incumbent::Incumbent;
use crate::milp::engine::{self, Limits};
use crate::milp::scale::Scale;
use crate::plan::{Evaluator, Plan};
use crate::search::Better;
use choose::Chooser;
use model::{Goal, Program};
use network::Network;
use reference::Reference;
use window::Window;

/// The part's name in records.
pub(crate) const WINDOWS: &str = "windows";

/// Time for the MILP of one window.
const WINDOW_TIME: Duration = Duration::from_millis(1_000);
/// Nodes of the tree of one window.
const WINDOW_NODES: i32 = 2_000;
/// Binaries of a window, at most.
const MOST_BINARIES: usize = 1_500;
/// Times that a window grows along a path that is too long.
const MOST_GROWTH: usize = 40;
/// Windows without success after which schedules of equal makespan are sought, too.
const STALLED: usize = 40;

/// Limits of [`improve`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowOptions {
    pub(crate) deadline: Instant,
    pub(crate) seed: u64,
    /// Windows, at most. With this, limits on nodes replace those on time, and plans that others find are
    /// not taken over: the same seed gives the same schedule.
    pub(crate) windows: Option<u64>,
}

/// What became of the windows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WindowStats {
    pub(crate) windows: u64,
    /// Those for which a MILP was solved.
    pub(crate) models: u64,
    /// Those that gave a better plan.
    pub(crate) improved: u64,
}

/// Improves the incumbent, window by window, until the deadline, the incumbent's stop, or its bound is met.
/// `on_better` hears of each plan that is the best of all.
pub(crate) fn improve(
    graph: &Graph<'_>,
    options: WindowOptions,
    incumbent: &Incumbent,
    on_better: &mut dyn FnMut(Better),
) -> WindowStats {
    let mut stats = WindowStats::default();
    let mut evaluator = Evaluator::new(graph);
    let mut chooser = Chooser::new(Pcg64Mcg::seed_from_u64(options.seed ^ 0x77_69_6e_64_6f_77));
    let Some((_, plan)) = incumbent.plan() else { return stats };
    let Some(mut reference) = Reference::new(graph, &plan, &mut evaluator) else { return stats };
    let mut critical = critical_path(&reference);
    let mut failures = 0;
    while options.windows.is_none_or(|most| stats.windows < most)
        && !incumbent.is_stopped()
        && !incumbent.is_optimal()
        && Instant::now() < options.deadline
    {
        if options.windows.is_none() && incumbent.makespan_ns() < reference.makespan_ns {
            let theirs = incumbent.plan().and_then(|(_, plan)| Reference::new(graph, &plan, &mut evaluator));
            let Some(theirs) = theirs else { return stats };
            reference = theirs;
            critical = critical_path(&reference);
            failures = 0;
        }
        stats.windows += 1;
        let ends = failures >= STALLED && chooser.rng.random_range(0..3) > 0;
        let mut work = Solver { reference: &reference, options: &options, incumbent, stats: &mut stats };
        let found = work.window(&mut chooser, &critical, ends);
        let found = found.and_then(|plan| Reference::new(graph, &plan, &mut evaluator));
        let better = found.filter(|x| (x.makespan_ns, x.ends_ns) < (reference.makespan_ns, reference.ends_ns));
        chooser.note(better.is_some());
        let Some(better) = better else {
            failures += 1;
            continue;
        };
        stats.improved += 1;
        failures = if better.makespan_ns < reference.makespan_ns { 0 } else { STALLED };
        reference = better;
        critical = critical_path(&reference);
        let makespan_ns = reference.makespan_ns;
        if incumbent.offer(&reference.plan, makespan_ns) {
            on_better(Better { plan: reference.plan.clone(), makespan_ns, part: WINDOWS });
        }
    }
    stats
}

/// Jobs of a longest path.
fn critical_path(reference: &Reference<'_>) -> Vec<u32> {
    let nothing = Window::empty(reference, 0, -1);
    match Network::new(reference, &nothing, reference.makespan_ns - 1, false) {
        Err(refuted) => refuted.path,
        Ok(_) => Vec::new(),
    }
}

struct Solver<'a, 'g> {
    reference: &'a Reference<'g>,
    options: &'a WindowOptions,
    incumbent: &'a Incumbent,
    stats: &'a mut WindowStats,
}

impl Solver<'_, '_> {
    /// One window: a plan whose makespan, or else the sum of the devices' ends, is less.
    fn window(&mut self, chooser: &mut Chooser, critical: &[u32], ends: bool) -> Option<Plan> {
        let reference = self.reference;
        let mut window = chooser.next(reference, critical);
        let (horizon, goal) = self.target(ends);
        let mut growth = 0;
        let network = loop {
            match Network::new(reference, &window, horizon, ends) {
                Ok(network) => break network,
                Err(refuted) => {
                    growth += 1;
                    if growth > MOST_GROWTH
                        || refuted.path.len() < 3
                        || window.jobs.len() > chooser.most_jobs()
                        || !chooser.widen(reference, &mut window, &refuted.path)
                    {
                        return None;
                    }
                }
            }
        };
        self.solve(&window, &network, goal)
    }

    /// Horizon and goal of a better schedule.
    fn target(&self, ends: bool) -> (i64, Goal) {
        let reference = self.reference;
        let step = self.step();
        if ends {
            (reference.makespan_ns, Goal::Ends(reference.ends_ns - step))
        } else {
            (reference.makespan_ns - step, Goal::Makespan)
        }
    }

    /// The least gain that is sought, ns.
    fn step(&self) -> i64 {
        Scale::of(self.reference.graph.problem, self.reference.makespan_ns).unit_ns
    }

    fn solve(&mut self, window: &Window, network: &Network, goal: Goal) -> Option<Plan> {
        let reference = self.reference;
        let unit_ns = self.step() as f64;
        let program = Program::new(reference, window, network, goal, unit_ns);
        if program.contradiction || program.binaries == 0 || program.binaries > MOST_BINARIES {
            return None;
        }
        let (model, legend) = program.into_model();
        self.stats.models += 1;
        let limit = match self.options.windows {
            Some(_) => self.options.deadline,
            None => self.options.deadline.min(Instant::now() + WINDOW_TIME),
        };
        let limits =
            Limits { deadline: limit, threads: 1, nodes: Some(WINDOW_NODES), gap: 0.5, cancel: self.incumbent.stop() };
        // The first solution is better already: the next windows go on from it.
        let solved = engine::run(model?, None, &limits, &mut |report| report.columns.is_none()).ok()?;
        extract::plan(reference, window, network, &legend, &solved.columns?)
    }
}
