//! Search and exact methods side by side, each on its own threads, on one incumbent.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::record::Record;
use super::{SolveOptions, offer};
use crate::bound::counter_bound;
use crate::graph::Graph;
use crate::incumbent::Incumbent;
use crate::method::Method;
use crate::milp::{self, Known, MilpOptions, MilpPoint, MilpStats};
use crate::objective::{self, Objective};
use crate::order::Order;
use crate::plan::{Evaluator, Plan};
use crate::problem::Problem;
use crate::schedule::Schedule;
use crate::search::{self, SearchOptions};
use crate::windows::{self, WINDOWS, WindowOptions};

/// Threads in all.
const THREADS: usize = 2;
/// The MILP is part of `auto` up to this many binaries: above, it does not leave its root in time.
const MILP_BINARIES: usize = 1_500;
/// Windows are part of `auto` up to this many stage-microbatch pairs: above, each changes too little.
const WINDOW_PAIRS: usize = 1_000;
/// Share of the time in which the windows' thread searches like the other one: windows pay once that stalls.
const SHARE_BEFORE_WINDOWS: f64 = 0.4;
/// Share of the time for the counter relaxation where a MILP follows.
const COUNTER_SHARE: f64 = 0.3;
/// How often the record looks whether it is time to stop.
const POLL: Duration = Duration::from_millis(10);

/// What lanes tell the record.
pub(super) enum News {
    /// A part begins.
    Begin(&'static str),
    /// A part has run for a time; why it did nothing, where that needs a reason.
    End(&'static str, Duration, Option<String>),
    /// A plan shorter than all before.
    Plan(search::Better),
    /// A schedule that may be shorter.
    Schedule(Schedule, &'static str),
    /// A bound, ns.
    Bound(i64, &'static str),
    /// What the MILP did.
    Milp(MilpStats),
}

/// The lanes of one solve.
pub(super) struct Lanes<'a> {
    problem: &'a Problem,
    graph: &'a Graph<'a>,
    options: &'a SolveOptions,
    deadline: Instant,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(
        problem: &'a Problem,
        graph: &'a Graph<'a>,
        options: &'a SolveOptions,
        deadline: Instant,
    ) -> Self {
        Lanes { problem, graph, options, deadline }
    }

    /// Runs all lanes to their end, from the record's schedule.
    pub(super) fn run(&self, record: &mut Record<'_>) -> Option<MilpStats> {
        let mut evaluator = Evaluator::new(self.graph);
        let incumbent = Incumbent::new(record.bound_ns());
        self.adopt(record.schedule(), &mut evaluator, &incumbent);
        let method = self.options.method;
        let repeatable = self.options.iterations.is_some();
        let searches = method != Method::Milp;
        // The bounds and the MILP are those of the makespan.
        let makespan = self.options.objective == Objective::Makespan;
        let exact = makespan && (method == Method::Milp || method == Method::Auto && !repeatable);
        let windows = makespan && method == Method::Auto && !repeatable && self.graph.pairs <= WINDOW_PAIRS;
        let mut stats = None;
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            if searches {
                let (lane, incumbent) =
                    (Lane { lanes: self, incumbent: &incumbent, sender: sender.clone() }, &incumbent);
                let threads = if windows || exact && self.milp_is_small() { THREADS - 1 } else { THREADS };
                scope.spawn(move || lane.search(threads, incumbent));
            }
            if windows {
                let lane = Lane { lanes: self, incumbent: &incumbent, sender: sender.clone() };
                scope.spawn(move || lane.windows());
            }
            if exact {
                let lane = Lane { lanes: self, incumbent: &incumbent, sender: sender.clone() };
                let threads = if searches { 1 } else { THREADS };
                scope.spawn(move || lane.exact(threads));
            }
            drop(sender);
            loop {
                match receiver.recv_timeout(POLL) {
                    Ok(News::Begin(name)) => record.begin(name),
                    Ok(News::End(name, time, note)) => record.end(name, time, note),
                    Ok(News::Plan(x)) => {
                        offer(record, self.graph, &mut evaluator, &x.plan, x.part);
                    }
                    Ok(News::Schedule(schedule, part)) => {
                        if record.incumbent(schedule, part) {
                            self.adopt(record.schedule(), &mut evaluator, &incumbent);
                        }
                    }
                    Ok(News::Bound(bound_ns, part)) => {
                        incumbent.raise_bound(bound_ns);
                        record.bound(bound_ns, part);
                    }
                    Ok(News::Milp(x)) => stats = Some(x),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                if record.stopped().is_some() {
                    incumbent.stop_all();
                }
            }
        });
        stats
    }

    /// Makes the plan of a schedule the incumbent, if it has one.
    fn adopt(&self, schedule: Option<&Schedule>, evaluator: &mut Evaluator, incumbent: &Incumbent) {
        let order = schedule.map(|x| Order::of(self.problem, x));
        let Some(plan) = order.and_then(|x| Plan::from_order(self.graph, &x).ok()) else { return };
        if let Some(value_ns) = objective::evaluate(self.options.objective, self.graph, evaluator, &plan) {
            incumbent.offer(&plan, value_ns);
        }
    }

    fn milp_is_small(&self) -> bool {
        milp::size(self.problem).binaries <= MILP_BINARIES
    }
}

/// What one lane works with.
struct Lane<'a> {
    lanes: &'a Lanes<'a>,
    incumbent: &'a Incumbent,
    sender: Sender<News>,
}

impl Lane<'_> {
    fn tell(&self, news: News) {
        // The record listens until all lanes are done.
        let _ = self.sender.send(news);
    }

    /// Policies, then annealing.
    fn search(self, threads: usize, incumbent: &Incumbent) {
        let SolveOptions { seed, iterations, objective, .. } = *self.lanes.options;
        let options = SearchOptions { threads, seed, deadline: self.lanes.deadline, iterations, objective };
        self.tell(News::Begin(search::POLICIES));
        let phases = search::search(self.lanes.graph, options, incumbent, &mut |better| self.tell(News::Plan(better)));
        self.tell(News::End(search::POLICIES, phases.policies, None));
        self.tell(News::End(search::ANNEALING, phases.annealing, None));
    }

    /// A search with a seed of its own, then large-neighbourhood search.
    fn windows(self) {
        let Lanes { deadline, options: SolveOptions { seed, objective, .. }, .. } = *self.lanes;
        let now = Instant::now();
        let options = SearchOptions {
            threads: 1,
            seed: !seed,
            deadline: now + deadline.saturating_duration_since(now).mul_f64(SHARE_BEFORE_WINDOWS),
            iterations: None,
            objective: *objective,
        };
        search::search(self.lanes.graph, options, self.incumbent, &mut |better| self.tell(News::Plan(better)));
        let options = WindowOptions { deadline, seed: *seed, windows: None };
        let begun = Instant::now();
        self.tell(News::Begin(WINDOWS));
        windows::improve(self.lanes.graph, options, self.incumbent, &mut |better| self.tell(News::Plan(better)));
        self.tell(News::End(WINDOWS, begun.elapsed(), None));
    }

    /// Bounds and MILPs.
    fn exact(self, threads: usize) {
        self.counter();
        if self.lanes.options.method == Method::Milp || self.lanes.milp_is_small() {
            self.milp(threads);
        }
    }

    /// The counter relaxation; before a MILP for a share of the time.
    fn counter(&self) {
        let Lanes { problem, deadline, .. } = *self.lanes;
        let name = "counter-lp";
        let begun = Instant::now();
        self.tell(News::Begin(name));
        let left = deadline.saturating_duration_since(begun);
        let deadline = if self.lanes.milp_is_small() { begun + left.mul_f64(COUNTER_SHARE) } else { deadline };
        let makespan_ns = || self.incumbent.makespan_ns();
        let tell = &mut |bound_ns| self.tell(News::Bound(bound_ns, name));
        counter_bound(problem, self.incumbent.bound_ns(), &makespan_ns, deadline, self.incumbent.stop(), tell);
        self.tell(News::End(name, begun.elapsed(), None));
    }

    fn milp(&self, threads: usize) {
        let Lanes { problem, graph, deadline, .. } = *self.lanes;
        let mut evaluator = Evaluator::new(graph);
        let Some((_, plan)) = self.incumbent.plan() else { return };
        if self.incumbent.is_stopped() || evaluator.run(graph, &plan, true).is_err() {
            return;
        }
        let start = evaluator.schedule(graph, &plan);
        let name = Method::Milp.name();
        let begun = Instant::now();
        self.tell(News::Begin(name));
        let options = MilpOptions { time_limit: deadline.saturating_duration_since(begun), threads };
        let bound_ns = self.incumbent.bound_ns();
        let mut on_progress = |point: &MilpPoint, schedule: Option<&Schedule>| {
            if let Some(schedule) = schedule {
                self.tell(News::Schedule(schedule.clone(), name));
            }
            self.tell(News::Bound(point.bound_ns, name));
        };
        let mut heard = start.makespan_ns;
        let mut news = || {
            let mut known = Known { schedule: None, bound_ns: self.incumbent.bound_ns() };
            if let Some((makespan_ns, plan)) = self.incumbent.plan().filter(|x| x.0 < heard) {
                heard = makespan_ns;
                known.schedule = evaluator.run(graph, &plan, true).is_ok().then(|| evaluator.schedule(graph, &plan));
            }
            known
        };
        let cancel = self.incumbent.stop();
        let outcome = milp::improve(problem, &start, bound_ns, &options, &mut on_progress, &mut news, cancel);
        let note = match outcome {
            Ok(outcome) => {
                self.tell(News::Milp(outcome.stats));
                None
            }
            Err(error) => Some(error.to_string()),
        };
        self.tell(News::End(name, begun.elapsed(), note));
    }
}
