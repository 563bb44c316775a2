//! `optpipe explain`.

use std::path::PathBuf;

use optpipe_configs::file;
use optpipe_solver::bound::lower_bound;
use optpipe_solver::check::{Report, check};
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{OpKind, ScheduleFile};
use schemars::JsonSchema;
use serde::Serialize;

use super::input;
use crate::analysis::{ChannelLoad, Idle, OpPlace, Waits, channel_loads, idle, waits};
use crate::error::{Error, Result};
use crate::export::bars::{Bar, Bars};
use crate::text;

/// Say in words what a schedule does and where its time goes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  optpipe explain schedule.yaml --problem problem.yaml")]
pub(super) struct Args {
    /// The schedule
    schedule: PathBuf,
    /// The problem that it solves [default: problem.yaml beside the schedule]
    #[arg(long)]
    problem: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One device's part.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct DevicePart {
    /// Its number.
    device: usize,
    /// The stages that it holds.
    stages: Vec<usize>,
    /// Forwards before the first backward_input.
    forwards_ahead: usize,
    /// backward_weights that do not follow at once upon their backward_input.
    weights_later: usize,
    /// Activations that it sends to the host.
    offloaded: usize,
    /// Time that it computes, ns.
    busy_ns: i64,
    /// The rest of the step, by cause.
    idle: Idle,
    /// The most that it holds.
    peak_bytes: i64,
    /// What it may hold.
    capacity_bytes: i64,
}

/// What there is to say, and what `--json` prints.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Explanation {
    /// What found the schedule, where the file says so.
    method: Option<String>,
    /// Microbatches of a step.
    microbatches: usize,
    /// How long the step takes, ns.
    makespan_ns: i64,
    /// No schedule of the problem is shorter, ns.
    bound_ns: i64,
    /// Share of the devices' time in which they do not compute.
    bubble: f64,
    /// One entry a device.
    devices: Vec<DevicePart>,
    /// The channels that carry copies.
    channels: Vec<ChannelLoad>,
    /// Time on the critical path by kind of op, ns.
    critical_path_ns: Vec<(OpKind, i64)>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let path = match &args.problem {
        Some(path) => path.clone(),
        None => input::problem_beside(&args.schedule)?,
    };
    let problem: Problem = file::read_checked(&path)?;
    let schedule = input::schedule(&args.schedule)?;
    let report = check(&problem, &schedule.schedule);
    if !report.is_legal() {
        return Err(Error::input(format!(
            "{}: not a schedule of {}: {}",
            args.schedule.display(),
            path.display(),
            report.violations.join("; ")
        ))
        .hint("`optpipe check PROBLEM SCHEDULE` lists what is broken"));
    }
    let bars = Bars::predicted(&problem, &schedule.schedule).map_err(|e| Error::failed(e.to_string()))?;
    let explanation = explain(&problem, &schedule, &report, &bars);
    if args.json { super::emit_json(&explanation) } else { super::emit_words(&words(&explanation)) }
}

fn explain(problem: &Problem, file: &ScheduleFile, report: &Report, bars: &Bars) -> Explanation {
    let waits = waits(problem, bars);
    let devices = idle(problem, bars, &waits).into_iter().enumerate().map(|(device, idle)| {
        let compute: Vec<&Bar> = bars.devices[device].iter().filter(|bar| bar.kind.is_compute()).collect();
        let apart = |pair: &&[&Bar]| {
            let place = |bar: &Bar| (bar.stage, bar.microbatch);
            pair[0].kind == OpKind::B && (pair[1].kind != OpKind::W || place(pair[1]) != place(pair[0]))
        };
        DevicePart {
            device,
            stages: (0..problem.placement.len()).filter(|&s| problem.placement[s] == device).collect(),
            forwards_ahead: compute.iter().take_while(|bar| bar.kind == OpKind::F).count(),
            weights_later: compute.windows(2).filter(apart).count(),
            offloaded: bars.devices[device].iter().filter(|bar| bar.kind == OpKind::O).count(),
            busy_ns: bars.busy(device),
            idle,
            peak_bytes: report.peak_bytes[device],
            capacity_bytes: problem.bytes.capacity[device],
        }
    });
    Explanation {
        method: file.method.clone(),
        microbatches: problem.microbatches,
        makespan_ns: report.makespan_ns,
        bound_ns: file.bound_ns.unwrap_or(0).max(lower_bound(problem)),
        bubble: report.bubble,
        devices: devices.collect(),
        channels: channel_loads(problem, bars).into_iter().filter(|load| load.copies > 0).collect(),
        critical_path_ns: by_kind(bars, &waits),
    }
}

/// Time of the ops on the critical path, by kind, most first.
fn by_kind(bars: &Bars, waits: &Waits) -> Vec<(OpKind, i64)> {
    let mut sums: Vec<(OpKind, i64)> = Vec::new();
    for OpPlace { device, index } in waits.critical_path(bars) {
        let bar = &bars.devices[device][index];
        match sums.iter_mut().find(|(kind, _)| *kind == bar.kind) {
            Some((_, sum)) => *sum += bar.end - bar.start,
            None => sums.push((bar.kind, bar.end - bar.start)),
        }
    }
    sums.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
    sums
}

/// The explanation as sentences.
fn words(of: &Explanation) -> String {
    let share = |ns: i64| text::percent(ns as f64 / of.makespan_ns.max(1) as f64);
    let found = of.method.as_ref().map_or(String::new(), |method| format!(", found by {method}"));
    let gap = of.makespan_ns as f64 / of.bound_ns.max(1) as f64 - 1.0;
    let distance = if of.makespan_ns <= of.bound_ns {
        "no schedule of this problem is shorter".to_owned()
    } else {
        format!("the shortest of all is at most {} shorter", text::percent(gap / (1.0 + gap)))
    };
    let mut lines = vec![format!(
        "A step of {} microbatches on {} devices takes {}{found}; {distance}. Of all device time {} is idle.",
        of.microbatches,
        of.devices.len(),
        text::duration(of.makespan_ns),
        text::percent(of.bubble)
    )];
    for part in &of.devices {
        lines.push(String::new());
        lines.push(device_words(part, &share));
    }
    if !of.channels.is_empty() {
        lines.push(String::new());
    }
    for load in &of.channels {
        lines.push(format!(
            "Channel {} carries {} copies, {} a step, and is busy for {} of it.",
            load.channel,
            load.copies,
            text::bytes(load.bytes.unsigned_abs()),
            share(load.busy_ns)
        ));
    }
    let kinds = text::list(&of.critical_path_ns, |(kind, ns)| format!("{} in {}", text::duration(*ns), kind.letter()));
    lines.push(String::new());
    lines.push(format!(
        "The longest chain of ops that wait for one another has {kinds}: what shortens the step is on it."
    ));
    lines.join("\n")
}

fn device_words(part: &DevicePart, share: &dyn Fn(i64) -> String) -> String {
    let stages = text::list(&part.stages, ToString::to_string);
    let plural = if part.stages.len() == 1 { "" } else { "s" };
    let offloads = match part.offloaded {
        0 => "sends nothing to the host".to_owned(),
        n => format!("sends {n} activations to the host and takes them back"),
    };
    let weights = match part.weights_later {
        0 => "each backward_weight follows its backward_input".to_owned(),
        n => format!("{n} backward_weights are put off, into time that would be idle or behind what others wait for"),
    };
    let mut causes: Vec<(&str, i64)> = part.idle.parts().into_iter().filter(|(_, ns)| *ns > 0).collect();
    causes.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    let idle = match causes.is_empty() {
        true => "never idle".to_owned(),
        false => {
            format!(
                "idle {}: {}",
                share(part.idle.total_ns()),
                text::list(&causes, |(name, ns)| format!("{name} {}", share(*ns)))
            )
        }
    };
    format!(
        "Device {} holds stage{plural} {stages}. It begins with {} forwards, {offloads}; {weights}.\n\
         It computes {} of the step and is {idle}.\n\
         It holds at most {} of {}.",
        part.device,
        part.forwards_ahead,
        share(part.busy_ns),
        text::bytes(part.peak_bytes.unsigned_abs()),
        text::bytes(part.capacity_bytes.unsigned_abs())
    )
}
