//! The record that all parts of a solve share: the best schedule, the best bound, who found them when.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::check;
use crate::milp::MilpStats;
use crate::objective::Objective;
use crate::period::period_ns;
use crate::problem::Problem;
use crate::schedule::Schedule;

/// What happens during a solve.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A part of the solve begins.
    Part {
        /// Its name.
        name: String,
    },
    /// A better schedule.
    Incumbent(TracePoint),
    /// A better bound.
    Bound(TracePoint),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Part { name } => write!(f, "{name}"),
            Event::Incumbent(x) | Event::Bound(x) => {
                write!(f, "{}: makespan {} ns, bound {} ns", x.part, x.makespan_ns, x.bound_ns)?;
                let gap = gap(x.makespan_ns, x.bound_ns);
                if gap.is_finite() { write!(f, ", gap {:.2} %", 100.0 * gap) } else { Ok(()) }
            }
        }
    }
}

/// Makespan and bound at one time; the trace has one for each change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TracePoint {
    /// Since the start of the solve, s.
    pub time_s: f64,
    /// Of the best schedule, ns; with that objective its period.
    pub makespan_ns: i64,
    /// No schedule is shorter, ns.
    pub bound_ns: i64,
    /// What changed it.
    pub part: String,
}

/// What one part of a solve did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PartRecord {
    /// Its name.
    pub name: String,
    /// Time it took, s; of one with several threads, the longest. Parts run side by side.
    pub time_s: f64,
    /// By how much the objective fell, ns; of the part that found the first schedule, 0.
    pub gain_ns: i64,
    /// By how much the bound rose, ns.
    pub bound_gain_ns: i64,
    /// Why it did nothing, where that needs a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Why a solve ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The objective meets the bound: no schedule is shorter.
    Optimal,
    /// The time is over.
    TimeLimit,
    /// It was told to stop.
    Cancelled,
    /// The method has nothing more to do.
    MethodDone,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StopReason::Optimal => "proven optimal",
            StopReason::TimeLimit => "time limit",
            StopReason::Cancelled => "cancelled",
            StopReason::MethodDone => "method done",
        })
    }
}

/// A schedule, with what is known about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Solution {
    /// The schedule; it has passed the checker.
    pub schedule: Schedule,
    /// Its makespan, ns.
    pub makespan_ns: i64,
    /// Its period, ns: the longest span of a device.
    pub period_ns: i64,
    /// What it was judged by.
    pub objective: Objective,
    /// The objective of no legal schedule is less, ns.
    pub bound_ns: i64,
    /// Whether the objective meets the bound.
    pub proven: bool,
    /// What found the schedule.
    pub method: String,
    /// Why the solve ended.
    pub stop: StopReason,
    /// What each part did, in order.
    pub parts: Vec<PartRecord>,
    /// Makespan and bound over time.
    pub trace: Vec<TracePoint>,
    /// Sizes and progress of the MILP, where one was solved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milp: Option<MilpStats>,
}

impl Solution {
    /// Makespan or period, ns: what the schedule was judged by.
    pub fn value_ns(&self) -> i64 {
        match self.objective {
            Objective::Makespan => self.makespan_ns,
            Objective::Period => self.period_ns,
        }
    }

    /// The schedule is at most this share longer than the shortest: `value / bound - 1`.
    pub fn gap(&self) -> f64 {
        gap(self.value_ns(), self.bound_ns)
    }

    /// Takes a bound that was proven elsewhere, ns, where it is higher. One above the objective is wrong
    /// and not taken.
    pub fn raise_bound(&mut self, bound_ns: i64) {
        if bound_ns <= self.bound_ns || bound_ns > self.value_ns() {
            return;
        }
        self.bound_ns = bound_ns;
        if self.value_ns() == bound_ns {
            self.proven = true;
            self.stop = StopReason::Optimal;
        }
    }
}

fn gap(makespan_ns: i64, bound_ns: i64) -> f64 {
    if makespan_ns == bound_ns { 0.0 } else { makespan_ns as f64 / bound_ns as f64 - 1.0 }
}

/// The best schedule so far.
struct Best {
    schedule: Schedule,
    found_by: String,
    /// Makespan or period, ns.
    value_ns: i64,
}

/// The record, while a solve runs.
pub(super) struct Record<'a> {
    problem: &'a Problem,
    objective: Objective,
    on_event: &'a mut dyn FnMut(&Event),
    cancel: &'a AtomicBool,
    begun: Instant,
    time_limit: Duration,
    best: Option<Best>,
    bound_ns: i64,
    parts: Vec<PartRecord>,
    trace: Vec<TracePoint>,
}

impl<'a> Record<'a> {
    pub(super) fn new(
        problem: &'a Problem,
        objective: Objective,
        time_limit: Duration,
        on_event: &'a mut dyn FnMut(&Event),
        cancel: &'a AtomicBool,
    ) -> Self {
        Record {
            problem,
            objective,
            on_event,
            cancel,
            begun: Instant::now(),
            time_limit,
            best: None,
            bound_ns: 0,
            parts: Vec::new(),
            trace: Vec::new(),
        }
    }

    /// Runs a part and notes how long it took; it returns why it did nothing, where that needs a reason.
    pub(super) fn part(&mut self, name: &str, run: impl FnOnce(&mut Self) -> Option<String>) {
        self.begin(name);
        let begun = Instant::now();
        let note = run(self);
        self.end(name, begun.elapsed(), note);
    }

    /// A part begins.
    pub(super) fn begin(&mut self, name: &str) {
        self.entry(name);
        (self.on_event)(&Event::Part { name: name.to_owned() });
    }

    /// A part, or some of it, has run for a time.
    pub(super) fn end(&mut self, name: &str, time: Duration, note: Option<String>) {
        let entry = self.entry(name);
        entry.time_s += time.as_secs_f64();
        if note.is_some() {
            entry.note = note;
        }
    }

    /// The record of a part; parts stand in the order in which they were first heard of.
    fn entry(&mut self, name: &str) -> &mut PartRecord {
        let at = self.parts.iter().position(|x| x.name == name).unwrap_or_else(|| {
            let (name, note) = (name.to_owned(), None);
            self.parts.push(PartRecord { name, time_s: 0.0, gain_ns: 0, bound_gain_ns: 0, note });
            self.parts.len() - 1
        });
        &mut self.parts[at]
    }

    /// Takes a schedule if it is legal and better than the best. Returns whether it is legal.
    pub(super) fn incumbent(&mut self, schedule: Schedule, found_by: &str) -> bool {
        if !check(self.problem, &schedule).is_legal() {
            return false;
        }
        let value_ns = self.objective.value_ns(self.problem, &schedule);
        if self.value_ns().is_none_or(|x| value_ns < x) {
            self.entry(found_by).gain_ns += self.value_ns().map_or(0, |x| x - value_ns);
            self.best = Some(Best { schedule, found_by: found_by.to_owned(), value_ns });
            let point = self.point(found_by);
            (self.on_event)(&Event::Incumbent(point.clone()));
            self.trace.push(point);
        }
        true
    }

    /// Takes a bound, if it is better than the best.
    pub(super) fn bound(&mut self, bound_ns: i64, found_by: &str) {
        if bound_ns > self.bound_ns {
            self.entry(found_by).bound_gain_ns += bound_ns - self.bound_ns;
            self.bound_ns = bound_ns;
            if self.best.is_some() {
                let point = self.point(found_by);
                (self.on_event)(&Event::Bound(point.clone()));
                self.trace.push(point);
            }
        }
    }

    fn point(&self, part: &str) -> TracePoint {
        TracePoint {
            time_s: self.begun.elapsed().as_secs_f64(),
            makespan_ns: self.value_ns().unwrap_or(i64::MAX),
            bound_ns: self.bound_ns,
            part: part.to_owned(),
        }
    }

    pub(super) fn schedule(&self) -> Option<&Schedule> {
        self.best.as_ref().map(|x| &x.schedule)
    }

    /// Makespan or period of the best schedule, ns.
    pub(super) fn value_ns(&self) -> Option<i64> {
        self.best.as_ref().map(|x| x.value_ns)
    }

    pub(super) fn objective(&self) -> Objective {
        self.objective
    }

    pub(super) fn bound_ns(&self) -> i64 {
        self.bound_ns
    }

    pub(super) fn deadline(&self) -> Instant {
        self.begun + self.time_limit
    }

    /// Why nothing more should be done, if so.
    pub(super) fn stopped(&self) -> Option<StopReason> {
        if self.value_ns().is_some_and(|x| x <= self.bound_ns) {
            Some(StopReason::Optimal)
        } else if self.cancel.load(Ordering::Relaxed) {
            Some(StopReason::Cancelled)
        } else if self.begun.elapsed() >= self.time_limit {
            Some(StopReason::TimeLimit)
        } else {
            None
        }
    }

    pub(super) fn into_solution(self, milp: Option<MilpStats>) -> Solution {
        let stop = self.stopped().unwrap_or(StopReason::MethodDone);
        let best = self.best.expect("a feasible problem has a serial schedule, which every solve makes");
        Solution {
            makespan_ns: best.schedule.makespan_ns,
            period_ns: period_ns(self.problem, &best.schedule),
            objective: self.objective,
            bound_ns: self.bound_ns,
            proven: best.value_ns <= self.bound_ns,
            schedule: best.schedule,
            method: best.found_by,
            stop,
            parts: self.parts,
            trace: self.trace,
            milp,
        }
    }
}
