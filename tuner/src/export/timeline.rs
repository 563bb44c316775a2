//! `timeline.svg`: the picture of a schedule that a person reads.
//!
//! One row a device: its ops coloured by what they do, with microbatch numbers where they fit; below
//! them the copies to and from the host; below these what the device's memory holds, with the limit.
//! A measurement is drawn as a second panel on the same scale. The picture has no scripts and brings
//! a background of its own, light or dark as the viewer prefers.

use std::fmt::Write as _;

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;

use super::ExportError;
use super::bars::Bars;
use crate::measured::Measured;

mod axis;
mod boxes;
mod curve;
mod legend;
mod panel;
mod style;
pub(crate) mod text;

use boxes::Detail;
pub(crate) use boxes::chunks;
use panel::{Canvas, Look, Panel};
pub(crate) use style::colour;
use text::{escape, fit, num};

/// What the picture says about itself, and its size.
#[derive(Debug, Clone, PartialEq)]
pub struct TimelineOptions {
    /// The heading; any text.
    pub title: String,
    /// A line under the heading; any text, none if empty.
    pub subtitle: String,
    /// Width in pixels, at least 480; the height follows from the devices.
    pub width: f64,
    /// About so many boxes and points of curves are drawn; where there are more ops, columns show their shares of
    /// time.
    pub most_boxes: usize,
}

impl Default for TimelineOptions {
    fn default() -> Self {
        TimelineOptions {
            title: "Pipeline schedule".to_owned(),
            subtitle: String::new(),
            width: 1000.0,
            most_boxes: MOST_BOXES,
        }
    }
}

/// Boxes in a picture of at most about 2 MB.
const MOST_BOXES: usize = 70_000;
/// Distance of everything from the picture's edge.
const MARGIN: f64 = 16.0;
/// Room for the names left of the rows.
const LEFT: f64 = 138.0;
/// Room for the load right of the rows.
const RIGHT: f64 = 82.0;

/// From time to pixels.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Pixel of time 0.
    left: f64,
    /// Pixels of the whole span.
    width: f64,
    /// The time shown, ns; above 0.
    span: f64,
}

impl Scale {
    fn x(&self, time: i64) -> f64 {
        self.pixel(time as f64)
    }

    fn pixel(&self, time: f64) -> f64 {
        self.left + self.width * (time / self.span)
    }
}

/// The text of `timeline.svg`: the schedule, and below it on the same scale the measurement if there
/// is one. With the default options at most about 2 MB: where there are too many ops for that, columns show their shares
/// of time, and the picture says so.
///
/// # Errors
/// If the schedule or the measurement is not one of this problem. Whether the schedule is legal is not
/// looked at: one that exceeds a limit is drawn so.
pub fn timeline_svg(
    problem: &Problem,
    schedule: &Schedule,
    measured: Option<&Measured>,
    options: &TimelineOptions,
) -> Result<String, ExportError> {
    let predicted = Bars::predicted(problem, schedule)?;
    let mut panels = vec![Panel::predicted(problem, predicted, measured.is_some())];
    if let Some(measured) = measured {
        let bars = Bars::measured(problem, measured)?;
        panels.push(Panel::measured(problem, bars, measured, panels[0].makespan()));
    }
    Ok(draw(problem, &panels, options))
}

fn draw(problem: &Problem, panels: &[Panel], options: &TimelineOptions) -> String {
    let width = if options.width.is_finite() { options.width.max(480.0) } else { 1000.0 };
    let span = panels.iter().map(Panel::makespan).max().unwrap_or(0).max(1) as f64;
    let scale = Scale { left: LEFT, width: width - LEFT - RIGHT, span };
    let chunks = boxes::chunks(problem);
    let most_chunks = chunks.iter().max().map_or(1, |c| c + 1);
    let rows = panels.len() * problem.devices;
    let look = Look::of(problem, panels, &scale, rows, options.most_boxes);
    let lanes = if look.copies { 3 } else { 1 };
    let detail = Detail::of(panels.iter().map(Panel::ops).sum(), rows * lanes, options.most_boxes);

    let mut body = String::new();
    let room = width - 2.0 * MARGIN;
    let mut y = MARGIN + 16.0;
    let title = escape(&fit(&options.title, 17.0, room));
    let _ = writeln!(body, r#"<text class="strong" font-size="17" x="{MARGIN}" y="{}">{title}</text>"#, num(y));
    if !options.subtitle.is_empty() {
        y += 19.0;
        let subtitle = escape(&fit(&options.subtitle, 12.0, room));
        let _ = writeln!(body, r#"<text class="muted" font-size="12" x="{MARGIN}" y="{}">{subtitle}</text>"#, num(y));
    }
    y = legend::draw(&mut body, problem, panels, &look, most_chunks, width, y + 14.0);
    let canvas = Canvas { problem, chunks: &chunks, look: &look, scale: &scale, detail };
    for panel in panels {
        y = panel.draw(&mut body, &canvas, y + 10.0);
    }
    if let Detail::Columns(columns) = detail {
        y += 16.0;
        let share = super::units::time((span / columns as f64) as i64);
        let _ = writeln!(
            body,
            r#"<text class="muted" font-size="10.5" x="{MARGIN}" y="{}">Too many ops to draw each: columns of {share}, filled by the share of time that each kind of op takes.</text>"#,
            num(y)
        );
    }
    let height = num(y + MARGIN);
    let w = num(width);
    let description: Vec<String> = panels.iter().map(|panel| panel.describe(problem)).collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"optpipe\" role=\"img\" aria-labelledby=\"optpipe-title optpipe-desc\" \
         width=\"{w}\" height=\"{height}\" viewBox=\"0 0 {w} {height}\">\n\
         <title id=\"optpipe-title\">{}</title>\n<desc id=\"optpipe-desc\">{}</desc>\n<style>\n{}</style>\n\
         <rect class=\"bg\" width=\"{w}\" height=\"{height}\" rx=\"6\"/>\n{body}</svg>\n",
        escape(&options.title),
        escape(&description.join(" ")),
        style::sheet(most_chunks),
    )
}
