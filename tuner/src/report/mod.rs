//! `report.html`: what a tune found, on one page that needs nothing else.
//!
//! ```text
//! folder ── Run ──┬── verdict, tables, plots ── HTML
//!                 ├── timeline.svg ──────────── the picture, for readers without scripts
//!                 └── packed schedules ──────── a script draws the timeline to explore
//! ```
//!
//! The page loads nothing: style sheet, script, data and pictures are inside. All text of a run (names of models,
//! devices, parts) is escaped.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::parts::measured_time;
use crate::error::Result;
use crate::{table as tables, text};

mod history;
mod pack;
mod parts;
mod plot;
pub mod run;
mod shown;
#[cfg(test)]
mod tests;
mod timeline;
mod verdict;
mod why;

pub use run::Run;

const STYLE: &str = include_str!("assets/report.css");
/// The script, in the order in which its parts need one another.
const SCRIPT: [&str; 3] =
    [include_str!("assets/data.js"), include_str!("assets/draw.js"), include_str!("assets/report.js")];

/// The page.
///
/// # Errors
/// Bad input: a schedule or a measurement that is not one of its problem.
pub fn html(run: &Run) -> Result<String> {
    let shown = shown::all(run)?;
    let (data, left_out) = timeline::data(&shown);
    let ours = &shown[0];
    let compared: Vec<&shown::Shown<'_>> = shown[1..].iter().filter(|shown| shown.problem == ours.problem).collect();
    let verdict = verdict::Verdict::of(run);
    let (heading, rows) = tables::comparison_cells(&run.summary);
    let notes = run.summary.textbook.iter().filter_map(|x| Some((tables::title(&x.name), x.note.as_deref()?)));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="description" content=(verdict.plain());
                title { (run.summary.model) " · OptPipe" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (run.summary.model) }
                    p .muted { (describe(run)) }
                }
                main {
                    section aria-label="Verdict" {
                        (verdict.html())
                        @if let Some(failure) = &run.summary.failure { p .failure { "The tune did not end well: " (failure) } }
                        (verdict::figures(run))
                    }
                    section aria-labelledby="timeline-heading" {
                        h2 #timeline-heading { "Timeline" }
                        (timeline::picture(run)?)
                        (timeline::controls(&left_out))
                    }
                    (section("comparison", "Against textbook schedules", html! {
                        (parts::table(&heading, rows))
                        @for (name, note) in notes { p .muted { (name) ": " (note) } }
                    }))
                    (section("why", "Why this schedule", html! {
                        (why::idle_section(ours, &compared))
                        (why::copies_section(ours))
                        (why::sensitivity_section(run.sensitivity.as_ref()))
                    }))
                    (section("rounds", "Rounds", history::rounds(run)))
                    (section("solver", "Solver", history::solver(run)))
                    (section("memory", "Memory and stages", history::memory(run)))
                    (section("profile", "Profile and calibration", history::profile(run)))
                }
                footer .muted { p { (provenance(run)) } }
                script type="application/json" #data { (PreEscaped(data)) }
                script { (PreEscaped(SCRIPT.join("\n"))) }
            }
        }
    };
    Ok(page.into_string())
}

fn section(id: &str, heading: &str, content: Markup) -> Markup {
    let labelled = format!("{id}-heading");
    html! { section #(id) aria-labelledby=(labelled) { h2 #(labelled) { (heading) } (content) } }
}

fn describe(run: &Run) -> String {
    let summary = &run.summary;
    format!(
        "{} parameters, {} on {}; {} devices, {} microbatches, {} tokens a step",
        text::count(summary.parameters),
        summary.precision,
        summary.backend,
        summary.devices,
        summary.microbatches,
        text::count(summary.tokens_per_step)
    )
}

fn provenance(run: &Run) -> String {
    let cost = &run.summary.cost;
    let mut names: Vec<&str> = run.hardware.devices.iter().map(|device| device.name.as_str()).collect();
    names.dedup();
    format!(
        "OptPipe {}. Devices: {}. Time spent: calibration {}, profiling {}, solving {}, running {}.",
        run.summary.optpipe,
        text::list(names, str::to_owned),
        measured_time(cost.calibrate_ns),
        measured_time(cost.profile_ns),
        measured_time(cost.solve_ns),
        measured_time(cost.run_ns)
    )
}
