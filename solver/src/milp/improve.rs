//! Targets, one model each, between the known bound and the best known schedule.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::engine::{self, Ending, Limits};
use super::extract;
use super::model::Program;
use super::network::Network;
use super::scale::Scale;
use super::size;
use super::watch::{Inbox, Update};
use super::{MOST_BINARIES, MilpError, MilpPoint, MilpStats};
use crate::problem::Problem;
use crate::schedule::Schedule;

/// Share of the time in which better schedules are sought, before bounds are.
const SHARE_TO_FIND: f64 = 0.6;
/// Share of what time is left for one model while schedules are sought, and while bounds are.
const SLICE_TO_FIND: f64 = 0.3;
const SLICE_TO_PROVE: f64 = 0.5;
const SHORTEST_SLICE: Duration = Duration::from_millis(300);

/// The state of an improvement.
pub(super) struct Improvement<'a> {
    pub(super) problem: &'a Problem,
    pub(super) begin: Instant,
    pub(super) best: Schedule,
    /// Bound for all schedules, ns.
    pub(super) bound: i64,
    pub(super) bound_is_new: bool,
    pub(super) stats: MilpStats,
    pub(super) tell: &'a mut dyn FnMut(Update),
    pub(super) inbox: &'a Inbox,
    pub(super) threads: usize,
}

/// Which model is solved.
#[derive(Debug, Clone, Copy)]
struct Mode {
    /// Microbatches stay in order.
    in_order: bool,
    /// No better schedule is lost by that.
    exact: bool,
}

/// Where a solve starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// From nothing, strictly below the best schedule.
    Cold,
    /// From the best schedule, which the model then allows, too.
    Warm,
}

/// What a target came to.
enum Verdict {
    /// No schedule reaches it.
    Refuted,
    /// A schedule reaches it.
    Found,
    /// Neither in its time.
    Open,
}

impl Improvement<'_> {
    /// Everything, within the time.
    pub(super) fn run(&mut self, time_limit: Duration) -> Result<(), MilpError> {
        let deadline = self.begin + time_limit;
        let half = self.begin + time_limit.mul_f64(SHARE_TO_FIND);
        let in_order_is_exact = !size::may_offload(self.problem);
        let exact = size::orders_are_exact(self.problem);
        let in_order = Mode { in_order: true, exact: in_order_is_exact && exact };
        self.find(in_order, if exact { half } else { deadline })?;
        if exact { self.prove(Mode { in_order: in_order_is_exact, exact }, deadline) } else { Ok(()) }
    }

    fn is_over(&mut self, deadline: Instant) -> bool {
        self.take_news();
        self.best.makespan_ns <= self.bound || self.is_stopped() || Instant::now() >= deadline
    }

    fn is_stopped(&self) -> bool {
        self.inbox.stop.load(Ordering::Relaxed)
    }

    /// Takes over what others have found.
    fn take_news(&mut self) {
        let known = self.inbox.take();
        if let Some(schedule) = known.schedule.filter(|x| x.makespan_ns < self.best.makespan_ns) {
            self.best = schedule;
        }
        self.bound = self.bound.max(known.bound_ns);
    }

    /// Seeks better schedules: low targets first, as their models are the smallest, higher ones when
    /// these stay open; in turn with models that start from the best schedule, near which the solver's own
    /// heuristics look.
    fn find(&mut self, mode: Mode, deadline: Instant) -> Result<(), MilpError> {
        let scale = Scale::of(self.problem, self.best.makespan_ns);
        let mut refuted_below = self.bound_units(scale);
        let mut low = refuted_below;
        let mut slice = self.slice(deadline, SLICE_TO_FIND);
        let mut warm = false;
        while !self.is_over(deadline) {
            let high = scale.units(self.best.makespan_ns - 1);
            if refuted_below > high {
                break;
            }
            if low > high {
                low = refuted_below;
                slice *= 2;
            }
            let target = if warm { high } else { low + (high - low) / 2 };
            let start = if warm { Start::Warm } else { Start::Cold };
            match self.solve(scale, target, refuted_below, mode, start, deadline.min(Instant::now() + slice))? {
                Verdict::Refuted => {
                    refuted_below = target + 1;
                    low = low.max(refuted_below);
                }
                Verdict::Found => {}
                Verdict::Open if warm => warm = false,
                Verdict::Open => {
                    low = target + 1;
                    warm = true;
                }
            }
        }
        let in_order = if refuted_below > scale.units(self.best.makespan_ns - 1) {
            self.best.makespan_ns
        } else {
            refuted_below * scale.unit_ns
        };
        if size::orders_are_exact(self.problem) && in_order > self.bound {
            self.stats.in_order_bound_ns = Some(in_order);
        }
        Ok(())
    }

    /// Seeks bounds: first the target that proves the best schedule, lower ones when it stays open.
    fn prove(&mut self, mode: Mode, deadline: Instant) -> Result<(), MilpError> {
        let scale = Scale::of(self.problem, self.best.makespan_ns);
        let mut open_from = i64::MAX;
        let mut slice = self.slice(deadline, SLICE_TO_PROVE);
        while !self.is_over(deadline) {
            let low = self.bound_units(scale);
            let high = scale.units(self.best.makespan_ns - 1);
            if low > high {
                break;
            }
            if open_from <= low {
                open_from = i64::MAX;
                slice *= 2;
            }
            let target = if open_from > high { high } else { low + (open_from - 1 - low) / 2 };
            match self.solve(scale, target, low, mode, Start::Cold, deadline.min(Instant::now() + slice))? {
                Verdict::Refuted | Verdict::Found => {}
                Verdict::Open => {
                    open_from = target;
                    slice = self.slice(deadline, SLICE_TO_PROVE / 2.0);
                }
            }
        }
        Ok(())
    }

    fn slice(&self, deadline: Instant, share: f64) -> Duration {
        deadline.saturating_duration_since(Instant::now()).mul_f64(share).max(SHORTEST_SLICE)
    }

    /// The bound in units, rounded up: no schedule is shorter.
    fn bound_units(&self, scale: Scale) -> i64 {
        self.bound / scale.unit_ns + i64::from(self.bound % scale.unit_ns > 0)
    }

    /// One model: schedules of at most `target` units, none being shorter than `at_least`.
    fn solve(
        &mut self,
        scale: Scale,
        target: i64,
        at_least: i64,
        mode: Mode,
        start: Start,
        deadline: Instant,
    ) -> Result<Verdict, MilpError> {
        let binaries = size::estimate(self.problem, mode.in_order).binaries;
        if binaries > 4 * MOST_BINARIES {
            return Err(MilpError::TooLarge { binaries });
        }
        self.stats.models += 1;
        let horizon = match start {
            Start::Cold => target,
            Start::Warm => (self.best.makespan_ns - 1) / scale.unit_ns + 1,
        };
        let Ok(network) = Network::new(self.problem, scale, horizon, mode.in_order, |_| Vec::new()) else {
            self.refuted(scale, target, mode);
            return Ok(Verdict::Refuted);
        };
        if self.is_stopped() {
            return Ok(Verdict::Open);
        }
        let program = Program::new(&network, at_least);
        if program.contradiction {
            self.refuted(scale, target, mode);
            return Ok(Verdict::Refuted);
        }
        if program.binaries > MOST_BINARIES {
            return Err(MilpError::TooLarge { binaries: program.binaries });
        }
        let size = program.size();
        if size.binaries >= self.stats.binaries {
            self.stats.variables = size.variables;
            self.stats.binaries = size.binaries;
            self.stats.rows = size.rows;
        }
        self.report(None, None);
        if self.is_stopped() {
            return Ok(Verdict::Open);
        }
        let (statement, legend) = program.finish();
        let limits = Limits { deadline, threads: self.threads, nodes: None, gap: 0.5, cancel: &self.inbox.stop };
        let before = self.best.makespan_ns;
        let warm = if start == Start::Warm { extract::columns_of(&legend, &self.best) } else { None };
        let solved = engine::solve(statement, warm.as_deref(), &limits, &mut |report| {
            if let Some(schedule) = report.columns.and_then(|columns| extract::schedule(&legend, columns)) {
                self.offer(schedule);
            }
            if let (true, Some(bound)) = (mode.exact, report.bound) {
                self.raise_bound(scale.bound_ns(bound.min(horizon as f64)).min(self.best.makespan_ns));
            }
            self.take_news();
            // A better schedule makes for a smaller model: go on with that.
            self.best.makespan_ns == before
        })?;
        self.stats.nodes += solved.nodes;
        if mode.exact {
            let root = solved.root_bound.map(|bound| scale.bound_ns(bound));
            self.stats.root_bound_ns = self.stats.root_bound_ns.max(root);
        }
        if let Some(schedule) = solved.columns.as_deref().and_then(|columns| extract::schedule(&legend, columns)) {
            self.offer(schedule);
        }
        if self.best.makespan_ns < before {
            return Ok(Verdict::Found);
        }
        let nothing_better = match (solved.ending, start) {
            (Ending::Infeasible, _) => true,
            (Ending::Optimal, Start::Warm) => {
                solved.bound.is_some_and(|bound| scale.bound_ns(bound) >= self.best.makespan_ns)
            }
            _ => false,
        };
        // A solution that is none, within the tolerances, leaves the target open.
        if !nothing_better {
            return Ok(Verdict::Open);
        }
        self.refuted(scale, target, mode);
        Ok(Verdict::Refuted)
    }

    /// No schedule takes `target` units or less.
    fn refuted(&mut self, scale: Scale, target: i64, mode: Mode) {
        if mode.exact {
            let proven = if target >= scale.units(self.best.makespan_ns - 1) {
                self.best.makespan_ns
            } else {
                (target + 1) * scale.unit_ns
            };
            self.raise_bound(proven);
        }
    }

    fn offer(&mut self, schedule: Schedule) {
        if schedule.makespan_ns < self.best.makespan_ns {
            self.best = schedule;
            self.record(true);
        }
    }

    fn raise_bound(&mut self, bound: i64) {
        if bound > self.bound {
            self.bound = bound;
            self.bound_is_new = true;
            self.record(false);
        }
    }

    /// Notes a better schedule or bound.
    fn record(&mut self, is_schedule: bool) {
        let point = MilpPoint {
            time_s: self.begin.elapsed().as_secs_f64(),
            incumbent_ns: self.best.makespan_ns,
            bound_ns: self.bound.min(self.best.makespan_ns),
        };
        self.stats.points.push(point);
        let schedule = is_schedule.then(|| self.best.clone());
        self.report(Some(point), schedule);
    }

    fn report(&mut self, point: Option<MilpPoint>, schedule: Option<Schedule>) {
        self.stats.time_s = self.begin.elapsed().as_secs_f64();
        let bound = self.bound_is_new.then_some(self.bound);
        (self.tell)(Update { schedule, bound, point, stats: self.stats.clone() });
    }
}
