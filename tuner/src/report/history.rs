//! How the schedule came about: the solver's trace, the rounds, the profile and the calibration.

use maud::{Markup, html};
use optpipe_configs::hardware::Link;
use optpipe_configs::profile::Sample;
use optpipe_solver::solve::TracePoint;

use super::parts::{measured_time, table, time};
use super::plot::{Axis, Plot, Scale, Series, Style};
use super::run::{RoundFiles, Run};
use crate::export::units;
use crate::{table as tables, text};

/// What the solver did in the round of the best schedule.
pub(super) fn solver(run: &Run) -> Markup {
    let files = run.best();
    let round = &files.round;
    html! {
        p { "Round " (round.round) ": found by " strong { (round.method) } " in " (measured_time(round.solve_ns)) "; bound "
            (time(round.bound_ns)) ", "
            @if round.proven { "proven optimal." } @else { "gap " (text::gap(round.gap)) "." } }
        (trace(files))
        h3 { "MILP" }
        @if let Some(milp) = round.milp.as_ref().filter(|milp| milp.variables > 0) {
            (table(&["models", "variables", "binaries", "constraints", "nodes", "bound at the root", "time"], vec![vec![
                milp.models.to_string(),
                text::count(milp.variables as u64),
                text::count(milp.binaries as u64),
                text::count(milp.rows as u64),
                text::count(milp.nodes.unsigned_abs()),
                milp.root_bound_ns.map_or_else(|| "–".to_owned(), time),
                format!("{:.2} s", milp.time_s),
            ]]))
        } @else {
            (no_milp(files))
        }
        (windows(files))
    }
}

/// The size that the model would have had, and why there was none, as far as that is recorded.
fn no_milp(files: &RoundFiles) -> Markup {
    let size = optpipe_solver::milp::size(&files.problem);
    let part = files.solved.iter().flat_map(|solved| &solved.parts).find(|part| part.name == "milp");
    let why = part.and_then(|part| part.note.clone()).unwrap_or_else(|| match files.round.proven {
        true => "the schedule was proven before its turn".to_owned(),
        false => "it had no turn within the time limit".to_owned(),
    });
    html! {
        p { "The whole problem was not solved as a MILP: " (why) ". Estimated, it would have had:" }
        (table(&["variables", "binaries", "constraints"], vec![vec![
            text::count(size.variables as u64),
            text::count(size.binaries as u64),
            text::count(size.rows as u64),
        ]]))
    }
}

/// The MILPs of neighbourhoods, where there were any.
fn windows(files: &RoundFiles) -> Markup {
    let part = files.solved.iter().flat_map(|solved| &solved.parts).find(|part| part.name == "windows");
    html! {
        @if let Some(part) = part.filter(|part| part.time_s > 0.0) {
            p { "Neighbourhoods of some dozen ops were solved as MILPs for " (format!("{:.2} s", part.time_s)) " (the part "
                code { "windows" } "), which made the step "
                @if part.gain_ns > 0 { (time(part.gain_ns)) " shorter." } @else { "no shorter." } }
        }
    }
}

fn trace(files: &RoundFiles) -> Markup {
    let Some(solved) = &files.solved else {
        return html! { p .muted { "How the solve went is not recorded: an older OptPipe wrote this folder." } };
    };
    let parts = solved.parts.iter().map(|part| {
        let found = |ns: i64| if ns > 0 { time(ns) } else { "–".to_owned() };
        vec![
            part.name.clone(),
            format!("{:.3} s", part.time_s),
            found(part.gain_ns),
            found(part.bound_gain_ns),
            part.note.clone().unwrap_or_default(),
        ]
    });
    html! {
        @if let Some(hit) = solved.cache { p { "Cache: " (hit) "." } }
        @if solved.trace.len() > 1 { (trace_plot(&solved.trace)) }
        (table(&["part", "time", "step shorter by", "bound higher by", "note"], parts.collect()))
        p .muted { "The solve ended with: " (solved.stop) ". Parts run side by side; times overlap." }
    }
}

fn trace_plot(trace: &[TracePoint]) -> Markup {
    let finite = trace.iter().filter(|x| x.makespan_ns < i64::MAX);
    let best: Vec<(f64, f64)> = finite.map(|x| (x.time_s, x.makespan_ns as f64)).collect();
    let bound = trace.iter().map(|x| (x.time_s, x.bound_ns as f64)).collect();
    Plot {
        description: "Best step and bound over the time of the solve".to_owned(),
        x: Axis { label: "time of the solve".to_owned(), scale: Scale::Linear, show: |s| time((1e9 * s) as i64) },
        y: Axis { label: "step".to_owned(), scale: Scale::Linear, show: |ns| time(ns as i64) },
        series: vec![Series::new("best schedule", 0, Style::Steps, best), Series::new("bound", 3, Style::Steps, bound)],
        mark: None,
    }
    .draw()
}

/// The rounds: predicted, measured, error.
pub(super) fn rounds(run: &Run) -> Markup {
    let (heading, rows) = tables::round_cells(&run.summary);
    let at = |ns: i64, i: usize| ((i + 1) as f64, ns as f64);
    let predicted = run.summary.rounds.iter().enumerate().map(|(i, x)| at(x.predicted.step_ns, i)).collect();
    let steps: Vec<&Sample> = run.summary.rounds.iter().map(|x| &x.measured.step).collect();
    let measured = steps.iter().enumerate().map(|(i, x)| at(x.median_ns as i64, i)).collect();
    let mut measured = Series::new("measured (5th to 95th percentile)", 0, Style::LineAndPoints, measured);
    measured.spread = steps.iter().map(|x| (x.p05_ns as f64, x.p95_ns as f64)).collect();
    let plot = Plot {
        description: "Predicted and measured step of each round".to_owned(),
        x: Axis {
            label: "round".to_owned(),
            scale: Scale::Linear,
            show: |x| if x.fract() == 0.0 { format!("{x}") } else { String::new() },
        },
        y: Axis { label: "step".to_owned(), scale: Scale::Linear, show: |ns| time(ns as i64) },
        series: vec![Series::new("predicted", 1, Style::LineAndPoints, predicted), measured],
        mark: None,
    };
    html! {
        p { "Measured times of a round replace the predicted ones of the next. The tune ended: " (run.summary.stop) "." }
        @if steps.len() > 1 { (plot.draw()) }
        (table(&heading, rows))
    }
}

/// Every layer's times with their spread.
pub(super) fn profile(run: &Run) -> Markup {
    let profile = &run.profile;
    let sample = |x: &Sample| {
        let settled = if x.stable { "" } else { " (did not settle)" };
        format!(
            "{} ± {} [{}, {}] n={}{settled}",
            measured_time(x.median_ns),
            measured_time(x.mad_ns),
            measured_time(x.p05_ns),
            measured_time(x.p95_ns),
            x.count
        )
    };
    let layers = profile.layers.iter().map(|layer| {
        vec![
            format!("{} × {}", layer.count, layer.kind.name()),
            sample(&layer.forward),
            sample(&layer.backward_input),
            sample(&layer.backward_weight),
            text::bytes(layer.bytes.activation),
            text::bytes(layer.bytes.offloadable),
        ]
    });
    html! {
        p { (profile.model) ", " (profile.precision) " on " (profile.backend) ", sequences of " (profile.sequence_length)
            " tokens, " (profile.microbatch_size) " a microbatch. Medians ± median absolute deviation, 5th and 95th "
            "percentile, samples; clock: " (profile.clock) "." }
        (table(&["layers", "forward", "backward_input", "backward_weight", "activations", "offloadable"], layers.collect()))
        @for layer in &profile.layers {
            @if let Some(conditions) = layer.conditions.as_ref().filter(|x| x.throttled_passes > 0) {
                p .muted {
                    (layer.kind.name()) ": " (conditions.throttled_passes) " of " (conditions.passes)
                    " passes were throttled: " (conditions.throttle_reasons.join(", "))
                }
            }
        }
        (copies(run))
    }
}

/// Copies of each size, measured, with the fit.
fn copies(run: &Run) -> Markup {
    let hardware = &run.hardware;
    let links: Vec<(&str, &Link)> = [
        ("offload", Some(&hardware.offload)),
        ("reload", Some(&hardware.reload)),
        ("offload beside a reload", Some(&hardware.offload_duplex)),
        ("reload beside an offload", Some(&hardware.reload_duplex)),
        ("offload beside the neighbour's", hardware.offload_neighbour.as_ref()),
        ("reload beside the neighbour's", hardware.reload_neighbour.as_ref()),
        ("send to the next stage", Some(&hardware.send)),
    ]
    .into_iter()
    .filter_map(|(name, link)| Some((name, link?)))
    .collect();
    let mut series = Vec::new();
    for (colour, (name, link)) in links.iter().take(2).enumerate() {
        let points: Vec<(f64, f64)> = link.points.iter().map(|x| (x.bytes as f64, x.time.median_ns as f64)).collect();
        let fit = link.points.iter().map(|x| (x.bytes as f64, link.copy_ns(x.bytes) as f64)).collect();
        let mut measured = Series::new(format!("{name}, measured"), colour, Style::Points, points);
        measured.spread = link.points.iter().map(|x| (x.time.p05_ns as f64, x.time.p95_ns as f64)).collect();
        series.push(Series::new(format!("{name}, fitted"), colour, Style::Line, fit));
        series.push(measured);
    }
    let plot = Plot {
        description: "Time of copies to the host and back over their size, measured and fitted".to_owned(),
        x: Axis { label: "bytes a copy".to_owned(), scale: Scale::LogBytes, show: |bytes| units::bytes(bytes as i64) },
        y: Axis { label: "time of a copy".to_owned(), scale: Scale::Log, show: |ns| time(ns as i64) },
        series,
        mark: None,
    };
    let rows = links.iter().map(|(name, link)| {
        vec![
            (*name).to_owned(),
            // A pointer handed over takes the same time whatever it points to.
            if link.bytes_per_second < 1e14 { text::rate(link.bytes_per_second) } else { "any size alike".to_owned() },
            time(link.latency_ns as i64),
            text::percent(link.residual),
            link.points.len().to_string(),
        ]
    });
    html! {
        h3 { "Copies" }
        @if links[0].1.points.is_empty() {
            p .muted { "The measurements behind the fits are not in hardware.yaml." }
        } @else {
            (plot.draw())
        }
        (table(&["copy", "bandwidth, fitted", "latency, fitted", "median error of the fit", "sizes measured"], rows.collect()))
    }
}

/// Where the memory of each device goes, and what the stages hold.
pub(super) fn memory(run: &Run) -> Markup {
    let peaks = &run.best_measured().peak_bytes;
    let predicted = run.summary.best.predicted.as_ref();
    let devices = run.summary.memory.iter().enumerate().map(|(d, memory)| {
        let bytes =
            |list: Option<&Vec<u64>>| list.and_then(|x| x.get(d)).map_or_else(|| "–".to_owned(), |x| text::bytes(*x));
        vec![
            format!("device {d}"),
            text::bytes(memory.weights),
            text::bytes(memory.gradients),
            text::bytes(memory.optimizer),
            text::bytes(memory.workspace),
            bytes(predicted.map(|x| &x.peak_bytes)),
            bytes(Some(peaks)),
            text::bytes(memory.capacity),
        ]
    });
    let stages = run.summary.stages.iter().enumerate().map(|(s, stage)| {
        vec![
            format!("stage {s} on device {}", stage.device),
            stage.layers.clone(),
            text::count(stage.parameters),
            time(stage.forward_ns),
            time(stage.backward_input_ns),
            time(stage.backward_weight_ns),
            text::bytes(stage.activation_bytes.unsigned_abs()),
            text::bytes(stage.offloadable_bytes.unsigned_abs()),
        ]
    });
    html! {
        (table(&["", "weights", "gradients", "optimizer", "workspace", "peak, predicted", "peak, measured", "limit"],
            devices.collect()))
        (table(&["", "layers", "parameters", "forward", "backward_input", "backward_weight", "activations", "offloadable"],
            stages.collect()))
    }
}
