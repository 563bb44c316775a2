//! Why this schedule wins: idle time by cause, copies and channels, what more of something would buy, and the
//! memory-time front.

use maud::{Markup, html};

use super::parts::{measured_time, table, time};
use super::plot::{Axis, Plot, Scale, Series, Style};
use super::shown::Shown;
use crate::analysis::{Idle, channel_loads, idle, waits};
use crate::export::units;
use crate::sensitivity::file::SensitivityFile;
use crate::sensitivity::front::WayPoint;
use crate::text;

/// Idle time by cause, device by device, and against the other predicted schedules.
pub(super) fn idle_section(ours: &Shown<'_>, others: &[&Shown<'_>]) -> Markup {
    let of = |shown: &Shown<'_>| {
        let waits = waits(shown.problem, &shown.bars);
        idle(shown.problem, &shown.bars, &waits)
    };
    let own = of(ours);
    let makespan = ours.bars.makespan;
    let compared: Vec<(&str, i64, Idle)> = std::iter::once((ours.name.as_str(), makespan, mean(&own)))
        .chain(others.iter().map(|shown| (shown.name.as_str(), shown.bars.makespan, mean(&of(shown)))))
        .collect();
    let names: Vec<&str> = Idle::default().parts().iter().map(|part| part.0).collect();
    html! {
        h3 { "Idle time by cause" }
        p { "Time in which a device does not compute, by what its next op waits for; not forced is what nothing explains: "
            "when measured, the time lost between ops. The mean over the devices, of each schedule:" }
        ul .legend {
            li { span .swatch.busy {} "computing" }
            @for (i, name) in names.iter().enumerate() { li { span class={ "swatch i" (i) } {} (name) } }
        }
        (bars(compared.iter().map(|(name, makespan, idle)| ((*name).to_owned(), *makespan, *idle)).collect(), &names))
        h4 { "Device by device, as predicted" }
        (bars(own.iter().enumerate().map(|(d, idle)| (format!("device {d}"), makespan, *idle)).collect(), &names))
    }
}

/// The mean over devices, ns.
fn mean(all: &[Idle]) -> Idle {
    let n = all.len().max(1) as i64;
    let of = |part: fn(&Idle) -> i64| all.iter().map(part).sum::<i64>() / n;
    Idle {
        warm_up_ns: of(|x| x.warm_up_ns),
        neighbour_ns: of(|x| x.neighbour_ns),
        reload_ns: of(|x| x.reload_ns),
        memory_ns: of(|x| x.memory_ns),
        unforced_ns: of(|x| x.unforced_ns),
        drain_ns: of(|x| x.drain_ns),
    }
}

/// A table with a bar a row: computing, then the causes; bars are drawn to the longest step.
fn bars(rows: Vec<(String, i64, Idle)>, names: &[&str]) -> Markup {
    let longest = rows.iter().map(|row| row.1).max().unwrap_or(1).max(1);
    let wide = |ns: i64| format!("{:.3}", 100.0 * ns as f64 / longest as f64);
    let part = |ns: i64| if ns == 0 { "–".to_owned() } else { time(ns) };
    html! {
        div .scroll {
            table .bars {
                thead { tr { th { "" } th .wide { "" } th { "step" } th { "idle" } @for name in names { th { (name) } } } }
                tbody {
                    @for (name, makespan, idle) in rows {
                        tr {
                            th scope="row" { (name) }
                            td .wide {
                                div .bar aria-hidden="true" {
                                    span .busy style={ "width:" (wide(makespan - idle.total_ns())) "%" } {}
                                    @for (i, (_, ns)) in idle.parts().into_iter().enumerate() {
                                        @if ns > 0 { span class={ "i" (i) } style={ "width:" (wide(ns)) "%" } {} }
                                    }
                                }
                            }
                            td { (time(makespan)) }
                            td { (text::percent(idle.total_ns() as f64 / makespan.max(1) as f64)) }
                            @for (_, ns) in idle.parts() { td { (part(ns)) } }
                        }
                    }
                }
            }
        }
    }
}

/// What is offloaded, and how busy the channels are.
pub(super) fn copies_section(ours: &Shown<'_>) -> Markup {
    let makespan = ours.bars.makespan.max(1);
    let list =
        |devices: &[usize]| if devices.is_empty() { "–".to_owned() } else { text::list(devices, |d| d.to_string()) };
    let rows: Vec<Vec<String>> = channel_loads(ours.problem, &ours.bars)
        .into_iter()
        .filter(|load| load.copies > 0)
        .map(|load| {
            vec![
                load.channel.to_string(),
                list(&load.offloads_of),
                list(&load.reloads_of),
                load.copies.to_string(),
                units::bytes(load.bytes),
                time(load.busy_ns),
                text::percent(load.busy_ns as f64 / makespan as f64),
            ]
        })
        .collect();
    html! {
        h3 { "Copies to the host and back" }
        @if rows.is_empty() {
            p { "Nothing is offloaded: every activation stays on its device." }
        } @else {
            p { "What each channel carries in a step, as predicted. Channels that carry nothing are left out." }
            (table(&["channel", "offloads of device", "reloads of device", "copies", "bytes", "busy", "share of the step"], rows))
        }
    }
}

/// What more memory or bandwidth would buy, and the front; both take solving.
pub(super) fn sensitivity_section(found: Option<&SensitivityFile>) -> Markup {
    let Some(found) = found else {
        return html! {
            h3 { "What more memory or bandwidth would buy" }
            p .muted { "Not looked at: finding it takes solving. " code { "optpipe report RUN_DIR --sensitivity" } " does." }
        };
    };
    let limit = measured_time(found.sensitivity.time_limit_ns);
    let rows = found.sensitivity.changes.iter().map(|worth| {
        let proven = worth.makespan_ns <= worth.bound_ns;
        vec![
            worth.change.to_string(),
            time(worth.makespan_ns),
            text::percent(worth.gain),
            if proven { "proven".to_owned() } else { text::percent(worth.gain_at_most) },
        ]
    });
    html! {
        h3 { "What more memory or bandwidth would buy" }
        p { "The problem solved again with each change, at most " (limit) " each, from the best step predicted, "
            (time(found.sensitivity.makespan_ns)) ". The bound says what it can gain at most." }
        (table(&["change", "step", "gain", "at most"], rows.collect()))
        (front(found))
    }
}

fn front(found: &SensitivityFile) -> Markup {
    let front = &found.front;
    let point = |memory: f64, ns: i64| (100.0 * memory, ns as f64);
    let ours: Vec<(f64, f64)> = front.ours.iter().map(|x| point(x.memory, x.makespan_ns)).collect();
    let bounds: Vec<(f64, f64)> = front.ours.iter().map(|x| point(x.memory, x.bound_ns)).collect();
    let methods = front.methods.iter().map(|x| point(x.memory, x.makespan_ns)).collect();
    let mut textbook = Series::new("textbook schedules", 1, Style::Points, methods);
    textbook.labels = front.methods.iter().map(|x| x.method.clone()).collect();
    let way = |name: &str, colour: usize, style: Style, points: &[WayPoint]| {
        (!points.is_empty())
            .then(|| Series::new(name, colour, style, points.iter().map(|x| point(x.memory, x.makespan_ns)).collect()))
    };
    let series = [
        Some(Series::new("bound", 3, Style::Steps, bounds)),
        way("textbook + offload", 4, Style::Steps, &front.textbook_offload),
        way("PipeOffload", 2, Style::Steps, &front.pipe_offload),
        Some(Series::new("ours, list scheduling", 0, Style::Steps, ours)),
        way("ours, full solve", 5, Style::Points, &front.auto),
        Some(textbook),
    ];
    let plot = Plot {
        description: "Step time over memory: ours falls with more memory, so do textbook schedules completed by \
                      offloads and PipeOffload; textbook schedules as they are are single points"
            .to_owned(),
        x: Axis {
            label: "memory, % of the limit".to_owned(),
            scale: Scale::Linear,
            show: |x| format!("{}", x.round()),
        },
        y: Axis { label: "step, predicted".to_owned(), scale: Scale::Linear, show: |y| time(y as i64) },
        series: series.into_iter().flatten().collect(),
        mark: Some((100.0, "the limit".to_owned())),
    };
    let at = |points: &[WayPoint], memory: f64, named: bool| {
        let found = points.iter().find(|x| x.memory == memory);
        found.map_or_else(
            || "–".to_owned(),
            |x| if named { format!("{} ({})", time(x.makespan_ns), x.method) } else { time(x.makespan_ns) },
        )
    };
    let rows = front.ours.iter().map(|x| {
        let best = front.auto.iter().find(|y| y.memory == x.memory).map_or(x.makespan_ns, |y| y.makespan_ns);
        vec![
            text::percent(x.memory),
            at(&front.auto, x.memory, false),
            time(x.makespan_ns),
            time(x.bound_ns),
            text::gap((best as f64 / x.bound_ns.max(1) as f64 - 1.0).max(0.0)),
            at(&front.pipe_offload, x.memory, false),
            at(&front.textbook_offload, x.memory, true),
        ]
    });
    let methods = front.methods.iter().map(|x| {
        let fits = if x.memory <= 1.0 { "yes" } else { "no" };
        vec![x.method.clone(), text::percent(x.memory), time(x.makespan_ns), fits.to_owned()]
    });
    let heading =
        ["limit", "ours, full solve", "ours, list scheduling", "bound", "gap", "PipeOffload", "textbook + offload"];
    html! {
        h3 { "Memory against time" }
        p { "The best step found under other memory limits, each from a solve of at most "
            (measured_time(front.time_limit_ns)) ": ours, PipeOffload, and the textbook order that is the fastest once it "
            "is completed by offloads. Textbook schedules as they are need the memory that they need. Lower left is "
            "better." }
        (plot.draw())
        details { summary { "The numbers" }
            (table(&heading, rows.collect()))
            (table(&["textbook schedule", "peak over limit", "step", "fits"], methods.collect()))
        }
    }
}
