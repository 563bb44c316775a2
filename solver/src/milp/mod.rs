//! The MILP of OptPipe (arXiv 2510.05186, section 4): start times, order binaries between the ops of a
//! queue, offload decisions, memory rows, channels. It improves a given schedule, proves it optimal, or
//! says how far from the optimum it can be.
//!
//! ```text
//! scale ── network (windows, forced orders) ── model (memory, cuts) ── engine (HiGHS) ── extract
//! ```
//!
//! The makespan is bounded strictly below that of the best known schedule: a solution is an improvement,
//! and infeasibility proves the known schedule optimal.
//!
//! Where nothing can be offloaded, microbatches may be kept in order at every stage without loss. With
//! offloading that is a restriction: the model is then solved in that order first, being far smaller, for
//! improvements; and then in full, which alone yields a bound.

mod crowding;
mod cuts;
mod engine;
mod extract;
mod memory;
mod model;
mod network;
mod scale;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::check;
use crate::order::Order;
use crate::problem::Problem;
use crate::schedule::Schedule;
use crate::simulate::simulate;
use engine::{Ending, Limits};
use model::Program;
use network::Network;
use scale::Scale;

/// Most binaries of a model that is built: larger ones do not leave the root of the tree in a minute.
pub const MOST_BINARIES: usize = 30_000;
/// Share of the time for the model in order, where that is a restriction.
const SHARE_IN_ORDER: f64 = 0.4;

/// Limits of [`improve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MilpOptions {
    /// Time for everything, building the models included.
    pub time_limit: Duration,
    /// Threads of HiGHS. Its thread pool belongs to the process: the first number given holds.
    pub threads: usize,
}

impl Default for MilpOptions {
    fn default() -> Self {
        MilpOptions { time_limit: Duration::from_secs(30), threads: 1 }
    }
}

/// Why there is no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MilpError {
    /// The schedule to improve is not legal.
    #[error("the schedule to start from is not legal: {0}")]
    IllegalStart(String),
    /// The model would be too large to be of use.
    #[error("the model would have about {binaries} binaries, more than the {MOST_BINARIES} it is built with")]
    TooLarge {
        /// Estimated binaries.
        binaries: usize,
    },
    /// HiGHS failed.
    #[error("the MILP solver failed: {0}")]
    Solver(String),
}

/// Size of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MilpSize {
    /// Variables, binaries included.
    pub variables: usize,
    /// Binaries.
    pub binaries: usize,
    /// Rows.
    pub rows: usize,
}

/// One step of a solve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MilpPoint {
    /// Time since the start, s.
    pub time_s: f64,
    /// Makespan of the best schedule so far, ns.
    pub incumbent_ns: i64,
    /// No schedule is shorter, ns.
    pub bound_ns: i64,
}

/// What the MILP did.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MilpStats {
    /// Variables of the largest model solved, binaries included.
    pub variables: usize,
    /// Its binaries.
    pub binaries: usize,
    /// Its rows.
    pub rows: usize,
    /// Whether that model keeps microbatches in order where that is a restriction, so that it yields no
    /// bound.
    pub restricted: bool,
    /// Bound of that model after the root of its tree, ns; valid for all schedules unless `restricted`.
    pub root_bound_ns: Option<i64>,
    /// Nodes of the trees of all models.
    pub nodes: i64,
    /// Time taken, s.
    pub time_s: f64,
    /// Gap over time.
    pub points: Vec<MilpPoint>,
}

/// Result of [`improve`].
#[derive(Debug, Clone, PartialEq)]
pub struct MilpOutcome {
    /// A schedule shorter than the one given, re-derived by the simulator and checked; None if none was
    /// found.
    pub schedule: Option<Schedule>,
    /// No legal schedule at all is shorter, ns; None if the MILP proved nothing beyond the bound given.
    pub bound_ns: Option<i64>,
    /// Whether the best schedule, found or given, is optimal.
    pub proven: bool,
    /// What was done.
    pub stats: MilpStats,
}

/// Size of the full model, estimated without building it: windows and forced orders, which often take
/// away half of it, are not counted in.
pub fn size(problem: &Problem) -> MilpSize {
    estimate(problem, !may_offload(problem))
}

/// Improves a legal schedule, or proves it optimal. `lower_bound_ns` is a bound that is already known.
/// `on_progress` hears of every better schedule and bound; `cancel` ends the solve within moments.
///
/// # Errors
/// [`MilpError`]; a model too large, or a failure of HiGHS after a better schedule was found, is none.
pub fn improve(
    problem: &Problem,
    start: &Schedule,
    lower_bound_ns: i64,
    options: &MilpOptions,
    on_progress: &mut dyn FnMut(&MilpPoint),
    cancel: &AtomicBool,
) -> Result<MilpOutcome, MilpError> {
    let report = check(problem, start);
    if let Some(violation) = report.violations.first() {
        return Err(MilpError::IllegalStart(violation.clone()));
    }
    // The same order again, without the waiting that it does not need.
    let compact = simulate(problem, &Order::of(problem, start)).ok().map(|x| x.schedule);
    let given = report.makespan_ns;
    let best = compact.filter(|x| x.makespan_ns < given && check(problem, x).is_legal());
    let mut work = Improvement {
        problem,
        begin: Instant::now(),
        given,
        improved: best.is_some(),
        best: best.unwrap_or_else(|| start.clone()),
        bound: lower_bound_ns,
        bound_is_new: false,
        stats: MilpStats::default(),
        on_progress,
        cancel,
        threads: options.threads,
    };
    work.best.makespan_ns = work.best.makespan_ns.min(given);
    work.run(options.time_limit)?;
    work.stats.time_s = work.begin.elapsed().as_secs_f64();
    Ok(MilpOutcome {
        proven: work.bound >= work.best.makespan_ns,
        bound_ns: work.bound_is_new.then_some(work.bound),
        schedule: work.improved.then_some(work.best),
        stats: work.stats,
    })
}

struct Improvement<'a> {
    problem: &'a Problem,
    begin: Instant,
    given: i64,
    best: Schedule,
    improved: bool,
    bound: i64,
    bound_is_new: bool,
    stats: MilpStats,
    on_progress: &'a mut dyn FnMut(&MilpPoint),
    cancel: &'a AtomicBool,
    threads: usize,
}

impl Improvement<'_> {
    fn run(&mut self, time_limit: Duration) -> Result<(), MilpError> {
        let deadline = self.begin + time_limit;
        if may_offload(self.problem) {
            let restricted = self.model(true, false, self.begin + time_limit.mul_f64(SHARE_IN_ORDER));
            let full = self.model(false, true, deadline);
            // Too large in full is no failure where the restricted model could be solved.
            if restricted.is_ok() && matches!(full, Err(MilpError::TooLarge { .. })) { Ok(()) } else { full }
        } else {
            self.model(true, true, deadline)
        }
    }

    /// Builds and solves one model. `exact`: no better schedule is lost by it.
    fn model(&mut self, in_order: bool, exact: bool, deadline: Instant) -> Result<(), MilpError> {
        if self.best.makespan_ns <= self.bound || self.cancel.load(Ordering::Relaxed) || Instant::now() >= deadline {
            return Ok(());
        }
        let binaries = estimate(self.problem, in_order).binaries;
        if binaries > 4 * MOST_BINARIES {
            return Err(MilpError::TooLarge { binaries });
        }
        let exact = exact && orders_are_exact(self.problem);
        let known = self.best.makespan_ns;
        let scale = Scale::of(self.problem, known);
        // Strictly better for a proof. The restricted model proves nothing: it starts from the known
        // schedule, if that is in order, which its heuristics can work on.
        let strict = scale.units(known - 1);
        let horizon = if exact { strict } else { (known + scale.unit_ns - 1) / scale.unit_ns };
        let Ok(network) = Network::new(self.problem, scale, horizon, in_order, |_| Vec::new()) else {
            if exact {
                self.raise_bound(known);
            }
            return Ok(());
        };
        let at_least = (self.bound + scale.unit_ns - 1) / scale.unit_ns;
        let program = Program::new(&network, at_least.min(network.horizon));
        if program.binaries > MOST_BINARIES {
            return Err(MilpError::TooLarge { binaries: program.binaries });
        }
        if at_least > network.horizon {
            return Ok(());
        }
        let size = program.size();
        let larger = size.binaries >= self.stats.binaries;
        if larger {
            self.stats.variables = size.variables;
            self.stats.binaries = size.binaries;
            self.stats.rows = size.rows;
            self.stats.restricted = !exact;
        }
        let limits = Limits { deadline, threads: self.threads, cancel: self.cancel };
        let (statement, legend) = program.finish();
        let warm = if exact { None } else { extract::columns_of(&legend, &self.best) };
        let solved = engine::solve(statement, warm.as_deref(), &limits, &mut |report| {
            if let Some(schedule) = report.columns.and_then(|columns| extract::schedule(&legend, columns)) {
                self.offer(schedule);
            }
            if let (true, Some(bound)) = (exact, report.bound) {
                self.raise_bound(scale.bound_ns(bound).min(self.best.makespan_ns));
            }
        })?;
        self.stats.nodes += solved.nodes;
        if larger {
            self.stats.root_bound_ns = solved.root_bound.map(|bound| scale.bound_ns(bound));
        }
        if let Some(schedule) = solved.columns.as_deref().and_then(|columns| extract::schedule(&legend, columns)) {
            self.offer(schedule);
        }
        if exact {
            match (solved.ending, solved.bound) {
                (Ending::Infeasible, _) => self.raise_bound(known),
                (_, Some(bound)) => self.raise_bound(scale.bound_ns(bound).min(known)),
                _ => {}
            }
        }
        Ok(())
    }

    fn offer(&mut self, schedule: Schedule) {
        if schedule.makespan_ns < self.best.makespan_ns {
            self.improved |= schedule.makespan_ns < self.given;
            self.best = schedule;
            self.record();
        }
    }

    fn raise_bound(&mut self, bound: i64) {
        if bound > self.bound {
            self.bound = bound;
            self.bound_is_new = true;
            self.record();
        }
    }

    fn record(&mut self) {
        let point = MilpPoint {
            time_s: self.begin.elapsed().as_secs_f64(),
            incumbent_ns: self.best.makespan_ns,
            bound_ns: self.bound,
        };
        self.stats.points.push(point);
        (self.on_progress)(&point);
    }
}

/// Whether an offload can be of any use.
fn may_offload(problem: &Problem) -> bool {
    (0..problem.stages())
        .any(|s| problem.bytes.offloadable[s] > 0 && network::can_run_out(problem, problem.placement[s]))
}

/// Whether counting memory along orders loses nothing: an op that frees what the same instant allocated,
/// which takes work of length 0 on both sides, would not be counted as harmless.
fn orders_are_exact(problem: &Problem) -> bool {
    let t = &problem.time_ns;
    (0..problem.stages()).all(|s| {
        let offloads = problem.bytes.offloadable[s] > 0;
        let forward = t.forward[s] > 0 || (t.backward_input[s] > 0 && (!offloads || t.offload[s] > 0));
        let reload = !offloads || t.reload[s] > 0 || t.backward_input[s] > 0;
        forward && reload
    })
}

/// Size of a model before windows and forced orders take anything away.
fn estimate(problem: &Problem, in_order: bool) -> MilpSize {
    let m = problem.microbatches;
    let mut size = MilpSize { variables: 1, binaries: 0, rows: 0 };
    let mut copies = std::collections::BTreeMap::<usize, usize>::new();
    for device in 0..problem.devices {
        let stages: Vec<usize> = problem.stages_of(device).collect();
        let (units, v) = (stages.len() * m, stages.len());
        let jobs = stages
            .iter()
            .map(|&s| if problem.split_backward && problem.time_ns.backward_weight[s] > 0 { 3 } else { 2 })
            .sum::<usize>();
        // Same kind and stage: fixed in order, otherwise one for F and one for B and W together.
        let pairs = jobs * m * (jobs * m).saturating_sub(1) / 2;
        let same = m * m.saturating_sub(1) / 2;
        let orders = pairs - jobs * same + if in_order { 0 } else { 2 * v * same };
        let mut binaries = orders;
        if network::can_run_out(problem, device) {
            let movable = stages.iter().filter(|&&s| problem.bytes.offloadable[s] > 0).count() * m;
            let factor = if in_order { 1 } else { 2 };
            // Offloaded at F, back at F; B and W ended at R, offloaded at R.
            binaries += movable + 5 * movable * units.saturating_sub(1) * factor / 2;
            *copies.entry(problem.offload_channel[device]).or_default() += movable;
            *copies.entry(problem.reload_channel[device]).or_default() += movable;
            size.variables += 2 * movable;
        }
        size.binaries += binaries;
        size.variables += jobs * m;
    }
    let in_one_queue = |n: usize| if in_order { 0 } else { n * n.saturating_sub(1) };
    size.binaries += copies.values().map(|&n| in_one_queue(n)).sum::<usize>();
    size.variables += size.binaries;
    size.rows = 3 * size.binaries + 5 * size.variables;
    size
}
