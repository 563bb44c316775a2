//! The strict checker: a schedule against its problem, from the rules alone.
//!
//! It shares no code with the simulator and the search, so that a mistake there does not hide here.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problem::Problem;
use crate::schedule::{OpKind, Schedule};

/// What [`check`] found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// What breaks a rule, in words: the first [`MOST_VIOLATIONS`]. Empty: the schedule is legal.
    pub violations: Vec<String>,
    /// Latest end less earliest start.
    pub makespan_ns: i64,
    /// `1 - compute / (P · makespan)`.
    pub bubble: f64,
    /// The most that each device holds at any instant, `static` included, bytes.
    pub peak_bytes: Vec<i64>,
    /// Stage-microbatch pairs offloaded.
    pub offloaded: usize,
    /// Bytes that their offloads copy.
    pub offloaded_bytes: i64,
}

impl Report {
    /// Whether no rule is broken.
    pub fn is_legal(&self) -> bool {
        self.violations.is_empty()
    }
}

/// So many violations are put in words.
pub const MOST_VIOLATIONS: usize = 100;

/// An op with its times, as the checker sees it; times are wide, so that no start overflows.
#[derive(Debug, Clone, Copy)]
struct Timed {
    kind: OpKind,
    stage: usize,
    microbatch: usize,
    start: i128,
    end: i128,
}

impl Timed {
    fn name(&self) -> String {
        format!("{}({},{})", self.kind.letter(), self.stage, self.microbatch)
    }
}

struct Checker<'a> {
    problem: &'a Problem,
    violations: Vec<String>,
    /// Found ops: five a pair, in the order F, B, W, O, R.
    ops: Vec<[Option<Timed>; 5]>,
}

/// Holds a schedule against every rule of the problem.
///
/// Any schedule may be given: ops that the problem does not have, missing and repeated ones are
/// violations like others. Memory counts frees before allocations at one instant.
pub fn check(problem: &Problem, schedule: &Schedule) -> Report {
    let pairs = problem.placement.len() * problem.microbatches;
    let mut checker = Checker { problem, violations: Vec::new(), ops: vec![[None; 5]; pairs] };
    checker.lists(schedule);
    let makespan = checker.makespan();
    if i128::from(schedule.makespan_ns) != makespan {
        checker.violation(|| format!("makespan_ns is {}, the schedule takes {makespan}", schedule.makespan_ns));
    }
    checker.precedence();
    checker.queues();
    let peak_bytes = checker.memory();

    let found = || checker.ops.iter().flatten().flatten();
    let busy: i128 = found().filter(|x| x.kind.is_compute()).map(|x| x.end - x.start).sum();
    let offloads = || found().filter(|x| x.kind == OpKind::O);
    Report {
        makespan_ns: i64::try_from(makespan).unwrap_or(i64::MAX),
        bubble: if makespan == 0 { 0.0 } else { 1.0 - busy as f64 / (problem.devices as f64 * makespan as f64) },
        peak_bytes,
        offloaded: offloads().count(),
        offloaded_bytes: offloads().map(|x| problem.bytes.offloadable[x.stage]).sum(),
        violations: checker.violations,
    }
}

impl Checker<'_> {
    fn violation(&mut self, words: impl FnOnce() -> String) {
        if self.violations.len() < MOST_VIOLATIONS {
            self.violations.push(words());
        }
    }

    /// Every op once, on the device of its stage, in order of start; copies in pairs.
    fn lists(&mut self, schedule: &Schedule) {
        let p = self.problem;
        if schedule.ops.len() != p.devices {
            self.violation(|| format!("ops has {} lists, the problem {} devices", schedule.ops.len(), p.devices));
        }
        for (d, list) in schedule.ops.iter().enumerate() {
            let mut before: Option<Timed> = None;
            for x in list {
                let start = i128::from(x.start_ns);
                let name = format_args!("{}({},{})", x.op.letter(), x.stage, x.microbatch).to_string();
                if x.stage >= p.placement.len() || x.microbatch >= p.microbatches {
                    self.violation(|| format!("{name} on device {d}: the problem has no such op"));
                    continue;
                }
                let t = &p.time_ns;
                let (index, time) = match x.op {
                    OpKind::F => (0, t.forward[x.stage]),
                    OpKind::B => (1, t.backward_input[x.stage]),
                    OpKind::W => (2, t.backward_weight[x.stage]),
                    OpKind::O => (3, t.offload[x.stage]),
                    OpKind::R => (4, t.reload[x.stage]),
                };
                let (stage, microbatch) = (x.stage, x.microbatch);
                let timed = Timed { kind: x.op, stage, microbatch, start, end: start + i128::from(time) };
                let entry = &mut self.ops[stage * p.microbatches + microbatch][index];
                if entry.is_some() {
                    self.violation(|| format!("{name} on device {d} at {start}: a second time"));
                    continue;
                }
                *entry = Some(timed);
                if p.placement[stage] != d {
                    self.violation(|| format!("{name} is on device {d}, its stage on device {}", p.placement[stage]));
                }
                if let Some(y) = before.filter(|y| start < y.start) {
                    self.violation(|| {
                        format!("device {d}: {name} at {start} is listed after {} at {}", y.name(), y.start)
                    });
                }
                before = Some(timed);
            }
        }
        for s in 0..p.placement.len() {
            for j in 0..p.microbatches {
                let ops = self.ops[s * p.microbatches + j];
                for (index, letter) in ['F', 'B', 'W'].into_iter().enumerate() {
                    if ops[index].is_none() {
                        self.violation(|| format!("{letter}({s},{j}) is missing"));
                    }
                }
                if ops[3].is_some() != ops[4].is_some() {
                    self.violation(|| format!("O({s},{j}) and R({s},{j}): one without the other"));
                }
            }
        }
    }

    fn makespan(&self) -> i128 {
        let found = || self.ops.iter().flatten().flatten();
        let first = found().map(|x| x.start).min().unwrap_or(0);
        found().map(|x| x.end).max().unwrap_or(0) - first
    }

    /// `later` starts no earlier than `delay` after the end of `earlier`, where both are there.
    fn after(&mut self, earlier: Option<Timed>, delay: i64, later: Option<Timed>) {
        let (Some(x), Some(y)) = (earlier, later) else { return };
        if y.start < x.end + i128::from(delay) {
            let plus = if delay > 0 { format!(" plus {delay} of sending") } else { String::new() };
            self.violation(|| {
                format!("{} starts at {}, before the end of {} at {}{plus}", y.name(), y.start, x.name(), x.end)
            });
        }
    }

    fn precedence(&mut self) {
        let p = self.problem;
        let stages = p.placement.len();
        for s in 0..stages {
            let apart = s + 1 < stages && p.placement[s] != p.placement[s + 1];
            for j in 0..p.microbatches {
                let [f, b, w, o, r] = self.ops[s * p.microbatches + j];
                self.after(f, 0, b);
                self.after(b, 0, w);
                self.after(f, 0, o);
                self.after(o, 0, r);
                self.after(r, 0, b);
                if s + 1 < stages {
                    let [next_f, next_b, next_w, ..] = self.ops[(s + 1) * p.microbatches + j];
                    let gradient = if p.split_backward { next_b } else { next_w };
                    self.after(f, if apart { p.time_ns.send_forward[s] } else { 0 }, next_f);
                    self.after(gradient, if apart { p.time_ns.send_backward[s] } else { 0 }, b);
                }
                if let (false, Some(b), Some(w)) = (p.split_backward, b, w)
                    && w.start != b.end
                {
                    self.violation(|| {
                        format!("{} starts at {}, not at the end of {} at {}", w.name(), w.start, b.name(), b.end)
                    });
                }
            }
        }
    }

    /// One op at a time on every device and channel; one of length 0 may touch another.
    fn queues(&mut self) {
        let p = self.problem;
        let mut queues: BTreeMap<(&str, usize), Vec<Timed>> = BTreeMap::new();
        for x in self.ops.iter().flatten().flatten() {
            let d = p.placement[x.stage];
            let queue = match x.kind {
                OpKind::F | OpKind::B | OpKind::W => ("device", d),
                OpKind::O => ("channel", p.offload_channel[d]),
                OpKind::R => ("channel", p.reload_channel[d]),
            };
            queues.entry(queue).or_default().push(*x);
        }
        for ((what, number), mut ops) in queues {
            ops.sort_by_key(|x| (x.start, x.end));
            let mut last = ops[0];
            for &x in &ops[1..] {
                if x.start < last.end {
                    self.violation(|| {
                        format!(
                            "{what} {number}: {} starts at {}, {} runs until {}",
                            x.name(),
                            x.start,
                            last.name(),
                            last.end
                        )
                    });
                }
                if x.end >= last.end {
                    last = x;
                }
            }
        }
    }

    /// The limit of every device at every instant; returns the peaks.
    fn memory(&mut self) -> Vec<i64> {
        let p = self.problem;
        let b = &p.bytes;
        let mut changes: Vec<Vec<(i128, i64)>> = vec![Vec::new(); p.devices];
        for x in self.ops.iter().flatten().flatten() {
            let s = x.stage;
            changes[p.placement[s]].push(match x.kind {
                OpKind::F => (x.start, b.activation[s]),
                OpKind::O => (x.end, -b.offloadable[s]),
                OpKind::R => (x.start, b.offloadable[s]),
                OpKind::B => (x.end, b.weight_context[s] - b.activation[s]),
                OpKind::W => (x.end, -b.weight_context[s]),
            });
        }
        let mut peaks = Vec::with_capacity(p.devices);
        for (d, mut changes) in changes.into_iter().enumerate() {
            changes.sort_by_key(|x| x.0);
            let capacity = b.capacity[d];
            let mut held = b.r#static[d];
            let mut peak = held;
            let mut over = held > capacity;
            if over {
                self.violation(|| format!("device {d}: static {held} bytes, capacity {capacity}"));
            }
            for instant in changes.chunk_by(|x, y| x.0 == y.0) {
                held += instant.iter().map(|x| x.1).sum::<i64>();
                peak = peak.max(held);
                if held > capacity && !over {
                    let at = instant[0].0;
                    self.violation(|| format!("device {d}: {held} bytes held at {at}, capacity {capacity}"));
                }
                over = held > capacity;
            }
            peaks.push(peak);
        }
        peaks
    }
}
