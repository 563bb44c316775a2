//! One panel: the rows of all devices, predicted or measured.

use std::fmt::Write as _;

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::OpKind;

use super::boxes::{Detail, Row, label_fits};
use super::curve::Band;
use super::text::{escape, fit, num, width as text_width};
use super::{LEFT, MARGIN, RIGHT, Scale, axis};
use crate::export::bars::{Bar, Bars};
use crate::export::memory::{Curve, memory_curves, peak};
use crate::export::units;
use crate::measured::Measured;

/// Heights and font sizes, alike for all rows of a picture.
pub(super) struct Look {
    compute: f64,
    lane: f64,
    memory: f64,
    gap: f64,
    /// Lines of text beside the memory band.
    memory_lines: usize,
    memory_size: f64,
    label_size: f64,
    /// Whether there are copies, which need lanes.
    pub(super) copies: bool,
    /// Whether boxes bear numbers.
    pub(super) numbered: bool,
    /// Points that a memory curve may have.
    points: usize,
}

impl Look {
    pub(super) fn of(problem: &Problem, panels: &[Panel], scale: &Scale, rows: usize, most_boxes: usize) -> Look {
        let (compute, lane, memory, gap, memory_lines, memory_size) = match rows {
            ..=10 => (26.0, 11.0, 36.0, 16.0, 3, 10.0),
            11..=20 => (20.0, 7.0, 24.0, 10.0, 2, 9.5),
            _ => (16.0, 4.0, 14.0, 7.0, 1, 9.5),
        };
        let every = || panels.iter().flat_map(|panel| panel.bars.devices.iter().flatten());
        let mut widths: Vec<f64> = every()
            .filter(|bar| bar.kind.is_compute() && bar.end > bar.start)
            .map(|bar| scale.x(bar.end) - scale.x(bar.start))
            .collect();
        widths.sort_unstable_by(f64::total_cmp);
        // Numbers of one size throughout, and small enough for all but the narrowest boxes.
        let narrow = widths.get(widths.len() / 20).copied().unwrap_or(0.0);
        let widest = widths.last().copied().unwrap_or(0.0);
        let longest = problem.microbatches.saturating_sub(1).to_string();
        let sizes = [12.0, 11.0, 10.0, 9.0, 8.0];
        let label_size = sizes.into_iter().find(|&size| label_fits(&longest, size, narrow)).unwrap_or(7.5);
        Look {
            compute,
            lane,
            memory,
            gap,
            memory_lines,
            memory_size,
            label_size,
            copies: every().any(|bar| !bar.kind.is_compute()),
            numbered: label_fits("0", label_size, widest),
            points: (3 * most_boxes / 7 / rows.max(1)).clamp(50, 2 * scale.width as usize),
        }
    }

    /// Height of a device's row, without the gap below.
    fn row(&self) -> f64 {
        self.compute + if self.copies { 2.0 * self.lane + 3.0 } else { 0.0 } + 3.0 + self.memory
    }
}

/// What all panels of a picture are drawn with.
#[derive(Clone, Copy)]
pub(super) struct Canvas<'a> {
    pub(super) problem: &'a Problem,
    /// Rank of each stage among those of its device.
    pub(super) chunks: &'a [usize],
    pub(super) look: &'a Look,
    pub(super) scale: &'a Scale,
    pub(super) detail: Detail,
}

/// A schedule or a measurement, ready to draw.
pub(super) struct Panel {
    /// What the header begins with, in bold.
    heading: String,
    /// More about it.
    facts: String,
    bars: Bars,
    curves: Vec<Curve>,
    /// The measured peak of each device, bytes; a prediction has none.
    measured_peaks: Option<Vec<i64>>,
}

impl Panel {
    pub(super) fn predicted(problem: &Problem, bars: Bars, with_measured: bool) -> Panel {
        let lead = if with_measured { "Predicted: makespan" } else { "Makespan" };
        let heading = format!("{lead} {}, bubble {}", units::time(bars.makespan), units::percent(bars.bubble()));
        Panel {
            heading,
            facts: facts(problem, &bars),
            curves: memory_curves(problem, &bars),
            bars,
            measured_peaks: None,
        }
    }

    pub(super) fn measured(problem: &Problem, bars: Bars, measured: &Measured, predicted_ns: i64) -> Panel {
        let step = measured.step.median_ns;
        let time = |ns: u64| units::time(i64::try_from(ns).unwrap_or(i64::MAX));
        let mut heading = format!("Measured: step {}", time(step));
        if predicted_ns > 0 {
            let _ = write!(heading, " ({:+.1} % on the prediction)", 100.0 * (step as f64 / predicted_ns as f64 - 1.0));
        }
        let _ = write!(heading, ", bubble {}", units::percent(bars.bubble()));
        let peaks = measured.peak_bytes.iter().map(|&bytes| i64::try_from(bytes).unwrap_or(i64::MAX)).collect();
        let facts = format!(
            "median of {}, ± {} (median deviation) · optimizer {} after it · {}",
            count(measured.step.count, "step"),
            time(measured.step.mad_ns),
            time(measured.optimizer.median_ns),
            measured.backend
        );
        Panel { heading, facts, curves: memory_curves(problem, &bars), bars, measured_peaks: Some(peaks) }
    }

    pub(super) fn makespan(&self) -> i64 {
        self.bars.makespan
    }

    pub(super) fn ops(&self) -> usize {
        self.bars.len()
    }

    pub(super) fn is_measured(&self) -> bool {
        self.measured_peaks.is_some()
    }

    fn peak(&self, device: usize) -> i64 {
        self.measured_peaks.as_ref().map_or_else(|| peak(&self.curves[device]), |peaks| peaks[device])
    }

    /// The panel in words, for those who do not see it.
    pub(super) fn describe(&self, problem: &Problem) -> String {
        const MOST_DEVICES: usize = 16;
        let mut text = format!("{}. {}.", self.heading, self.facts);
        for device in 0..problem.devices.min(MOST_DEVICES) {
            let _ = write!(
                text,
                " Device {device}: busy {}, peak memory {} of {}.",
                units::percent(self.busy(device)),
                units::bytes(self.peak(device)),
                units::bytes(problem.bytes.capacity[device])
            );
        }
        if problem.devices > MOST_DEVICES {
            let _ = write!(text, " And {} more devices.", problem.devices - MOST_DEVICES);
        }
        text
    }

    fn busy(&self, device: usize) -> f64 {
        self.bars.busy(device) as f64 / self.bars.makespan.max(1) as f64
    }

    /// Draws the panel below `top`; gives its bottom.
    pub(super) fn draw(&self, svg: &mut String, canvas: &Canvas, top: f64) -> f64 {
        let Canvas { problem, look, scale, .. } = *canvas;
        let (full, heading) = (scale.left + scale.width + RIGHT - MARGIN, escape(&self.heading));
        let baseline = num(top + 12.0);
        let _ = writeln!(svg, r#"<text class="strong" font-size="13" x="{MARGIN}" y="{baseline}">{heading}</text>"#);
        // Beside the heading, right-aligned, or below it where that is too narrow.
        let beside = full - MARGIN - 1.12 * text_width(&self.heading, 13.0) - 20.0;
        let mut first = top + 24.0;
        let (anchor, x, y, room) = if text_width(&self.facts, 12.0) <= beside {
            (" text-anchor=\"end\"", full, top + 12.0, beside)
        } else {
            first += 17.0;
            ("", MARGIN, top + 29.0, full - MARGIN)
        };
        let facts = escape(&fit(&self.facts, 12.0, room));
        let _ =
            writeln!(svg, r#"<text class="muted" font-size="12"{anchor} x="{}" y="{}">{facts}</text>"#, num(x), num(y));

        let pitch = look.row() + look.gap;
        let rows: Vec<f64> = (0..problem.devices).map(|device| first + pitch * device as f64).collect();
        let bottom = first + pitch * problem.devices as f64 - look.gap;
        for &y in &rows {
            self.tracks(svg, look, scale, y);
        }
        axis::grid(svg, scale, first - 3.0, bottom + 4.0);
        for (device, &y) in rows.iter().enumerate() {
            let _ = writeln!(svg, r#"<g class="device">"#);
            self.device(svg, canvas, device, y);
            svg.push_str("</g>\n");
        }
        let (x, from, to) = (num(scale.x(self.bars.makespan)), num(first - 3.0), num(bottom + 4.0));
        let _ = writeln!(svg, r#"<path class="end" fill="none" d="M{x} {from}V{to}"/>"#);
        axis::numbers(svg, scale, bottom + 17.0);
        bottom + 22.0
    }

    /// What shows where nothing runs.
    fn tracks(&self, svg: &mut String, look: &Look, scale: &Scale, y: f64) {
        let (left, wide) = (num(scale.left), num(scale.x(self.bars.makespan) - scale.left));
        let mut track = |class: &str, y: f64, height: f64| {
            let (y, height) = (num(y), num(height));
            let _ = writeln!(svg, r#"<rect class="{class}" x="{left}" y="{y}" width="{wide}" height="{height}"/>"#);
        };
        track("idle", y, look.compute);
        track("memory-track", y + look.row() - look.memory, look.memory);
    }

    fn device(&self, svg: &mut String, canvas: &Canvas, device: usize, y: f64) {
        let Canvas { problem, chunks, look, scale, detail } = *canvas;
        let ops = &self.bars.devices[device];
        let of = |wanted: &dyn Fn(&Bar) -> bool| ops.iter().copied().filter(|op| wanted(op)).collect::<Vec<Bar>>();
        let mut lanes = vec![(of(&|op| op.kind.is_compute()), y, look.compute, look.label_size)];
        if look.copies {
            let first = y + look.compute + 2.0;
            let size = look.label_size.min(9.0);
            lanes.push((of(&|op| op.kind == OpKind::O), first, look.lane, size));
            lanes.push((of(&|op| op.kind == OpKind::R), first + look.lane + 1.0, look.lane, size));
        }
        for (ops, top, height, label_size) in &lanes {
            Row { ops, chunks, top: *top, height: *height, label_size: *label_size }.draw(svg, scale, detail);
        }
        let top = y + look.row() - look.memory;
        let band = Band {
            curve: &self.curves[device],
            held: problem.bytes.r#static[device],
            capacity: problem.bytes.capacity[device],
            measured_peak: self.measured_peaks.as_ref().map(|peaks| peaks[device]),
            end: self.bars.makespan,
            top,
            height: look.memory,
        };
        band.draw(svg, scale, look.points);
        self.names(svg, canvas, device, y);
        self.memory_words(svg, &band, look, top);
    }

    /// The device's name and stages at the left, its load at the right.
    fn names(&self, svg: &mut String, canvas: &Canvas, device: usize, y: f64) {
        let Canvas { problem, look, scale, .. } = *canvas;
        let stages: Vec<String> = problem.stages_of(device).map(|s| s.to_string()).collect();
        let stages = match stages.len() {
            0 => "no stage".to_owned(),
            1 => format!("stage {}", stages[0]),
            _ => format!("stages {}", stages.join(", ")),
        };
        let name = format!("device {device}");
        let two_lines = look.compute >= 24.0;
        let baseline = if two_lines { y + 11.0 } else { y + look.compute / 2.0 + 4.0 };
        let _ =
            writeln!(svg, r#"<text class="strong" font-size="11.5" x="{MARGIN}" y="{}">{name}</text>"#, num(baseline));
        let (x, stages_y) =
            if two_lines { (MARGIN, y + 23.0) } else { (MARGIN + 1.1 * text_width(&name, 11.5) + 6.0, baseline) };
        let stages = fit(&stages, 10.0, LEFT - 4.0 - x);
        let _ =
            writeln!(svg, r#"<text class="muted" font-size="10" x="{}" y="{}">{stages}</text>"#, num(x), num(stages_y));
        let _ = writeln!(
            svg,
            r#"<text class="muted" font-size="10.5" x="{}" y="{}">busy {}</text>"#,
            num(scale.left + scale.width + 7.0),
            num(y + look.compute / 2.0 + 4.0),
            units::percent(self.busy(device))
        );
        if look.copies && look.lane >= 7.0 {
            let size = if look.lane >= 9.0 { 9.0 } else { 7.5 };
            for (i, what) in ["offload", "reload"].into_iter().enumerate() {
                let baseline = y + look.compute + 2.0 + (look.lane + 1.0) * i as f64 + look.lane / 2.0 + 3.0;
                let (x, baseline) = (num(scale.left - 5.0), num(baseline));
                let _ = writeln!(
                    svg,
                    r#"<text class="muted" font-size="{size}" text-anchor="end" x="{x}" y="{baseline}">{what}</text>"#
                );
            }
        }
    }

    /// Peak, limit and static memory in figures beside the band.
    fn memory_words(&self, svg: &mut String, band: &Band, look: &Look, top: f64) {
        let most = band.measured_peak.unwrap_or_else(|| peak(band.curve));
        let over = if most > band.capacity { "over" } else { "" };
        let peak_words = format!("peak {}", units::bytes(most));
        let mut limit = format!("limit {}", units::bytes(band.capacity));
        if band.ceiling().1 {
            limit.push_str(" ↑");
        }
        let held = if band.held > 0 { format!("static {}", units::bytes(band.held)) } else { String::new() };
        let lines: Vec<(&str, String)> = match look.memory_lines {
            1 => vec![(over, format!("{peak_words} of {}", units::bytes(band.capacity)))],
            2 => vec![(over, peak_words), ("muted", limit)],
            _ => vec![(over, peak_words), ("muted", limit), ("muted", held)],
        };
        let size = look.memory_size;
        let pitch = look.memory / lines.len() as f64;
        for (i, (class, words)) in lines.into_iter().enumerate().filter(|(_, (_, words))| !words.is_empty()) {
            let class = if class.is_empty() { String::new() } else { format!(r#" class="{class}""#) };
            let baseline = num(top + pitch * (i as f64 + 0.5) + 0.35 * size);
            let words = fit(&words, size, LEFT - MARGIN - 4.0);
            let _ = writeln!(svg, r#"<text{class} font-size="{size}" x="{MARGIN}" y="{baseline}">{words}</text>"#);
        }
    }
}

/// `1 step`, `3 steps`.
fn count(n: usize, what: &str) -> String {
    match (n, what.ends_with("ch")) {
        (1, _) => format!("1 {what}"),
        (_, true) => format!("{n} {what}es"),
        (_, false) => format!("{n} {what}s"),
    }
}

/// `2 devices · 2 stages · 3 microbatches · 4 of 6 activations offloaded (32 B)`.
fn facts(problem: &Problem, bars: &Bars) -> String {
    let mut facts = vec![
        count(problem.devices, "device"),
        count(problem.stages(), "stage"),
        count(problem.microbatches, "microbatch"),
    ];
    let offloaded: Vec<i64> = (bars.devices.iter().flatten())
        .filter(|bar| bar.kind == OpKind::O)
        .map(|bar| problem.bytes.offloadable[bar.stage])
        .collect();
    if offloaded.is_empty() {
        facts.push("nothing offloaded".to_owned());
    } else {
        let (n, all) = (offloaded.len(), problem.stages() * problem.microbatches);
        facts.push(format!("{n} of {all} activations offloaded ({})", units::bytes(offloaded.iter().sum())));
    }
    facts.join(" · ")
}
