//! `trace.json`: the Chrome trace event format, which Perfetto (<https://ui.perfetto.dev>) and
//! `chrome://tracing` open.
//!
//! Predicted and measured are two processes. Each device has a track for compute, one for its
//! offloads and one for its reloads; each hand-over between devices is a flow arrow, and memory is a
//! counter with the limit beside it. Format:
//! <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>.

use std::collections::HashMap;

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{OpKind, Schedule};
use serde_json::{Value, json};

use super::ExportError;
use super::bars::{Bar, Bars};
use super::memory::memory_curves;
use crate::measured::Measured;

/// The text of `trace.json`, one event a line.
///
/// # Errors
/// If the schedule or the measurement is not one of this problem; whether it is legal is not looked at.
pub fn trace_json(problem: &Problem, schedule: &Schedule, measured: Option<&Measured>) -> Result<String, ExportError> {
    let mut trace = Trace { problem, events: Vec::new(), next_tid: 10, next_flow: 1 };
    trace.process(1, "predicted", &Bars::predicted(problem, schedule)?, None);
    if let Some(measured) = measured {
        trace.process(2, "measured (median step)", &Bars::measured(problem, measured)?, Some(&measured.peak_bytes));
    }
    let other = json!({
        "devices": problem.devices,
        "stages": problem.stages(),
        "microbatches": problem.microbatches,
        "predicted_makespan_ns": schedule.makespan_ns,
        "measured_step_median_ns": measured.map(|m| m.step.median_ns),
    });
    let events = trace.events.join(",\n");
    Ok(format!("{{\"displayTimeUnit\":\"ns\",\"otherData\":{other},\"traceEvents\":[\n{events}\n]}}\n"))
}

/// The tracks of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Compute,
    Offload,
    Reload,
}

impl Lane {
    const ALL: [Lane; 3] = [Lane::Compute, Lane::Offload, Lane::Reload];

    fn of(kind: OpKind) -> Lane {
        match kind {
            OpKind::F | OpKind::B | OpKind::W => Lane::Compute,
            OpKind::O => Lane::Offload,
            OpKind::R => Lane::Reload,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Lane::Compute => "compute",
            Lane::Offload => "offload",
            Lane::Reload => "reload",
        }
    }
}

/// A name of `chrome://tracing`'s palette; Perfetto colours by the event's name without its digits,
/// which is the op too.
fn colour(kind: OpKind) -> &'static str {
    match kind {
        OpKind::F => "rail_response",
        OpKind::B => "rail_animation",
        OpKind::W => "rail_load",
        OpKind::O => "thread_state_iowait",
        OpKind::R => "thread_state_runnable",
    }
}

fn category(kind: OpKind) -> &'static str {
    match kind {
        OpKind::F => "forward",
        OpKind::B => "backward_input",
        OpKind::W => "backward_weight",
        OpKind::O => "offload",
        OpKind::R => "reload",
    }
}

/// Nanoseconds as the format's microseconds. Perfetto reads them back as the whole part of 1000
/// times the number: where rounding would lose a nanosecond there, ops that touch would overlap,
/// so the next larger number is given.
fn micros(ns: i64) -> f64 {
    let us = ns as f64 / 1000.0;
    if ((us * 1000.0) as i64) < ns { us.next_up() } else { us }
}

struct Trace<'a> {
    problem: &'a Problem,
    events: Vec<String>,
    next_tid: usize,
    next_flow: usize,
}

impl Trace<'_> {
    fn push(&mut self, event: Value) {
        self.events.push(event.to_string());
    }

    fn process(&mut self, pid: usize, name: &str, bars: &Bars, measured_peaks: Option<&[u64]>) {
        self.push(json!({"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": name}}));
        self.push(json!({"ph": "M", "pid": pid, "tid": 0, "name": "process_sort_index", "args": {"sort_index": pid}}));
        let mut tids: HashMap<(OpKind, usize, usize), usize> = HashMap::new();
        for (device, ops) in bars.devices.iter().enumerate() {
            for lane in Lane::ALL {
                let ops: Vec<Bar> = ops.iter().copied().filter(|op| Lane::of(op.kind) == lane).collect();
                self.lane(pid, &format!("device {device} {}", lane.name()), lane, &ops, &mut tids);
            }
        }
        self.hand_overs(pid, bars, &tids);
        self.memory(pid, bars, measured_peaks);
    }

    /// One track, or more where measured ops overlap: events of one track must not.
    fn lane(
        &mut self,
        pid: usize,
        name: &str,
        lane: Lane,
        ops: &[Bar],
        tids: &mut HashMap<(OpKind, usize, usize), usize>,
    ) {
        // (tid, end of the last op)
        let mut tracks: Vec<(usize, i64)> = Vec::new();
        if lane == Lane::Compute {
            // Shown even if the device holds no stage.
            tracks.push((self.track(pid, name), 0));
        }
        for op in ops {
            let free = match tracks.iter().position(|&(_, end)| end <= op.start) {
                Some(free) => free,
                None => {
                    let nth = tracks.len() + 1;
                    let name = if nth == 1 { name.to_owned() } else { format!("{name} ({nth})") };
                    tracks.push((self.track(pid, &name), 0));
                    nth - 1
                }
            };
            let (tid, end) = &mut tracks[free];
            *end = op.end;
            let tid = *tid;
            tids.insert((op.kind, op.stage, op.microbatch), tid);
            self.push(json!({
                "ph": "X",
                "pid": pid,
                "tid": tid,
                "name": op.name(),
                "cat": category(op.kind),
                "cname": colour(op.kind),
                "ts": micros(op.start),
                "dur": micros(op.end - op.start),
                "args": {
                    "op": op.kind.letter(),
                    "stage": op.stage,
                    "microbatch": op.microbatch,
                    "start_ns": op.start,
                    "duration_ns": op.end - op.start,
                },
            }));
        }
    }

    fn track(&mut self, pid: usize, name: &str) -> usize {
        let tid = self.next_tid;
        self.next_tid += 1;
        self.push(json!({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}));
        self.push(json!({"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}}));
        tid
    }

    /// Arrows from each op to the op on another device that waits for its result.
    fn hand_overs(&mut self, pid: usize, bars: &Bars, tids: &HashMap<(OpKind, usize, usize), usize>) {
        let problem = self.problem;
        let ops: HashMap<(OpKind, usize, usize), Bar> =
            bars.devices.iter().flatten().map(|bar| ((bar.kind, bar.stage, bar.microbatch), *bar)).collect();
        let gradient = if problem.split_backward { OpKind::B } else { OpKind::W };
        for stage in 1..problem.stages() {
            if problem.placement[stage - 1] == problem.placement[stage] {
                continue;
            }
            for microbatch in 0..problem.microbatches {
                let forward = ("activation", (OpKind::F, stage - 1, microbatch), (OpKind::F, stage, microbatch));
                let backward = ("gradient", (gradient, stage, microbatch), (OpKind::B, stage - 1, microbatch));
                for (name, from, to) in [forward, backward] {
                    let (Some(source), Some(target)) = (ops.get(&from), ops.get(&to)) else { continue };
                    // An arrow binds to the op around its time: there is none around an op of no length.
                    if source.start == source.end || target.start == target.end {
                        continue;
                    }
                    let id = self.next_flow;
                    self.next_flow += 1;
                    let (out, arrival) = (micros(source.end - 1), micros(target.start));
                    self.push(json!({"ph": "s", "pid": pid, "tid": tids[&from], "ts": out, "id": id, "name": name, "cat": "hand-over"}));
                    self.push(json!({"ph": "f", "bp": "e", "pid": pid, "tid": tids[&to], "ts": arrival, "id": id, "name": name, "cat": "hand-over"}));
                }
            }
        }
    }

    /// One counter a device: bytes held by the problem's rules at these times, and the limit; a
    /// measurement also has the peak that was measured.
    fn memory(&mut self, pid: usize, bars: &Bars, measured_peaks: Option<&[u64]>) {
        for (device, curve) in memory_curves(self.problem, bars).into_iter().enumerate() {
            let limit = self.problem.bytes.capacity[device];
            let end = curve.last().map(|&(_, bytes)| (bars.makespan, bytes));
            for (time, bytes) in curve.into_iter().chain(end) {
                let mut args = json!({"bytes": bytes, "limit": limit});
                let mut name = format!("memory of device {device}");
                if let Some(peaks) = measured_peaks {
                    args["measured_peak"] = json!(peaks[device]);
                    name.push_str(" by the problem's rules at measured times");
                }
                self.push(json!({"ph": "C", "pid": pid, "tid": 0, "ts": micros(time), "name": name, "args": args}));
            }
        }
    }
}
