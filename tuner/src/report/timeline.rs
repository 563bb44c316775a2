//! The timeline: a picture for all, and the data from which the page's script draws one to explore.

use maud::{Markup, PreEscaped, html};
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::OpKind;
use serde_json::{Value, json};

use super::pack::pack;
use super::run::Run;
use super::shown::Shown;
use crate::error::{Error, Result};
use crate::export::timeline::{chunks, colour};
use crate::export::{TimelineOptions, timeline_svg};

/// All schedules of a page take at most so much of it, bytes; the first is there whatever it takes.
const MOST_DATA: usize = 1_300_000;
/// Boxes in the picture, over the colours of each kind of op: it is to stay a small part of the page.
const MOST_BOXES: usize = 10_000;
/// Rows up to which the picture shows the measurement too.
const MOST_ROWS: usize = 16;

const KINDS: [OpKind; 5] = [OpKind::F, OpKind::B, OpKind::W, OpKind::O, OpKind::R];

/// The picture that needs no script.
pub(super) fn picture(run: &Run) -> Result<Markup> {
    let best = run.best();
    let measured = Some(run.best_measured()).filter(|_| 2 * best.problem.devices <= MOST_ROWS);
    let options = TimelineOptions {
        title: format!("{}, round {}", run.summary.model, best.round.round),
        most_boxes: MOST_BOXES / most_chunks(&chunks(&best.problem)),
        ..TimelineOptions::default()
    };
    let picture = timeline_svg(&best.problem, &best.schedule, measured, &options)
        .map_err(|e| Error::input(format!("cannot draw the schedule: {e}")))?;
    Ok(html! { div #picture .scroll { (PreEscaped(picture)) } })
}

/// Stages of the device that has the most, by the ranks of all stages.
fn most_chunks(ranks: &[usize]) -> usize {
    ranks.iter().max().map_or(1, |most| most + 1)
}

/// What the script reads, as text that can stand in a page; and the names of what was left out.
pub(super) fn data(all: &[Shown<'_>]) -> (String, Vec<String>) {
    let most = all.iter().map(|shown| most_chunks(&chunks(shown.problem))).max().unwrap_or(1);
    let mut problems: Vec<&Problem> = Vec::new();
    let mut schedules: Vec<Value> = Vec::new();
    let (mut left_out, mut size) = (Vec::new(), 0);
    for (i, shown) in all.iter().enumerate() {
        let packed = pack(shown.problem, &shown.bars, shown.is_measured());
        if i >= 1 && size + packed.size() > MOST_DATA {
            left_out.push(shown.name.clone());
            continue;
        }
        size += packed.size();
        let place = problems.iter().position(|known| *known == shown.problem).unwrap_or_else(|| {
            problems.push(shown.problem);
            problems.len() - 1
        });
        let devices = 0..shown.problem.devices;
        schedules.push(json!({
            "name": shown.name,
            "problem": place,
            "bubble": shown.bars.bubble(),
            "grain_ns": shown.bars.grain,
            "busy_ns": devices.map(|device| shown.bars.busy(device)).collect::<Vec<_>>(),
            "measured_peaks": shown.measured_peaks,
            "packed": packed,
        }));
    }
    let colours: Value = KINDS
        .into_iter()
        .map(|kind| (kind.letter().to_string(), (0..most).map(|chunk| colour(kind, chunk, most)).collect::<Value>()))
        .collect::<serde_json::Map<String, Value>>()
        .into();
    let problems: Vec<Value> = problems
        .into_iter()
        .map(|problem| {
            json!({
                "devices": problem.devices,
                "placement": problem.placement,
                "chunks": chunks(problem),
                "microbatches": problem.microbatches,
                "split_backward": problem.split_backward,
                "time_ns": problem.time_ns,
                "bytes": problem.bytes,
            })
        })
        .collect();
    let data = json!({
        "version": 1,
        "colours": colours,
        "problems": problems,
        "schedules": schedules,
    });
    // In a script element nothing but its end tag (and what begins a comment) has a meaning.
    (data.to_string().replace('<', "\\u003c"), left_out)
}

/// What the script fills.
pub(super) fn controls(left_out: &[String]) -> Markup {
    html! {
        div #timeline hidden {
            div .toolbar {
                label { "Upper " select #upper {} }
                label { "Lower " select #lower {} }
                div .buttons {
                    button #zoom-in type="button" aria-label="Zoom in" { "+" }
                    button #zoom-out type="button" aria-label="Zoom out" { "−" }
                    button #fit type="button" { "Fit" }
                    button #critical type="button" aria-pressed="false" { "Critical path" }
                    button #differences type="button" aria-pressed="true" { "Differences" }
                }
            }
            ul #legend .legend {}
            div #rows tabindex="0" role="application" aria-describedby="keys"
                aria-label="Timeline of the schedules, device by device" {}
            p #said role="status" aria-live="polite" {}
            p #keys .muted {
                "Drag to pan; Ctrl and wheel, or the wheel after a click, to zoom; pinch on a touch screen. Keys: "
                kbd { "+" } " " kbd { "−" } " zoom, " kbd { "0" } " fit, " kbd { "a" } " " kbd { "d" } " pan, "
                kbd { "←" } " " kbd { "→" } " op by op, " kbd { "↑" } " " kbd { "↓" } " from lane to lane, "
                kbd { "w" } " to what an op waited for, " kbd { "c" } " critical path, " kbd { "Esc" } " none."
            }
            @if !left_out.is_empty() {
                p .muted { "Left out, to keep this file small: " (left_out.join("; ")) "." }
            }
            div #tip hidden {}
        }
    }
}
