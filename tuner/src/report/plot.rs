//! Small plots as SVG: lines, steps and points over two axes, coloured by the page's style sheet.

use maud::{Markup, html};

use crate::export::timeline::text::{num, width as text_width};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
const SIZE: f64 = 12.0;

/// How an axis maps values to places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    /// Values above 0; ticks at powers of 10.
    Log,
    /// Values above 0; ticks at powers of 16: sizes in bytes.
    LogBytes,
}

/// An axis; its range follows from the values.
pub(super) struct Axis {
    pub(super) label: String,
    pub(super) scale: Scale,
    /// A number as its tick shows it.
    pub(super) show: fn(f64) -> String,
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Line,
    /// Constant until the next point.
    Steps,
    Points,
    LineAndPoints,
}

/// One colour's values.
pub(super) struct Series {
    pub(super) name: String,
    /// Number of the colour in the style sheet.
    pub(super) colour: usize,
    pub(super) style: Style,
    pub(super) points: Vec<(f64, f64)>,
    /// From below to above each point, where that is known.
    pub(super) spread: Vec<(f64, f64)>,
    /// A name beside each point, where there are any.
    pub(super) labels: Vec<String>,
}

impl Series {
    pub(super) fn new(name: impl Into<String>, colour: usize, style: Style, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.into(), colour, style, points, spread: Vec::new(), labels: Vec::new() }
    }
}

/// A plot.
pub(super) struct Plot {
    /// What it shows, for those who do not see it.
    pub(super) description: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// A vertical line with its name.
    pub(super) mark: Option<(f64, String)>,
}

/// An axis with its range and pixels.
struct Placed<'a> {
    axis: &'a Axis,
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Placed<'_> {
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, start: f64, end: f64) -> Placed<'_> {
        let log = axis.scale != Scale::Linear;
        let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite() && (!log || *v > 0.0)) {
            (from, to) = (from.min(value), to.max(value));
        }
        if from > to {
            (from, to) = if log { (1.0, 10.0) } else { (0.0, 1.0) };
        }
        if log {
            (from, to) = (from / 1.3, to * 1.3);
        } else {
            let room = if to > from { 0.06 * (to - from) } else { 0.05 * to.abs().max(1e-9) };
            // Values near 0 get an axis that begins there.
            from = if from >= 0.0 && from < 0.3 * to { 0.0 } else { from - room };
            to += room;
        }
        Placed { axis, from, to, start, end }
    }

    fn at(&self, value: f64) -> f64 {
        let share = match self.axis.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Log | Scale::LogBytes => {
                (value.max(f64::MIN_POSITIVE) / self.from).ln() / (self.to / self.from).ln()
            }
        };
        self.start + (self.end - self.start) * share.clamp(-0.05, 1.05)
    }

    fn ticks(&self, most: f64) -> Vec<f64> {
        match self.axis.scale {
            Scale::Linear => {
                let rough = (self.to - self.from) / most;
                let power = 10_f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|x| x * power).into_iter().find(|s| *s >= rough).unwrap_or(power);
                let first = (self.from / step).ceil() as i64;
                let last = (self.to / step).floor() as i64;
                (first..=last.min(first + 50)).map(|i| i as f64 * step).collect()
            }
            Scale::Log | Scale::LogBytes => {
                let base: f64 = if self.axis.scale == Scale::Log { 10.0 } else { 16.0 };
                let every = ((self.to / self.from).log(base) / most).ceil().max(1.0) as i32;
                let first = self.from.log(base).ceil() as i32;
                let last = self.to.log(base).floor() as i32;
                (first..=last).step_by(every.unsigned_abs() as usize).map(|i| base.powi(i)).collect()
            }
        }
    }
}

impl Plot {
    /// The picture with its legend.
    pub(super) fn draw(&self) -> Markup {
        let points = || self.series.iter().flat_map(|s| s.points.iter().copied());
        let spread = self.series.iter().flat_map(|s| s.spread.iter().flat_map(|&(low, high)| [low, high]));
        let mark = self.mark.iter().map(|(at, _)| *at);
        let x = Placed::new(&self.x, points().map(|p| p.0).chain(mark), LEFT, WIDTH - RIGHT);
        let y = Placed::new(&self.y, points().map(|p| p.1).chain(spread), HEIGHT - BOTTOM, TOP);
        let foot = num(HEIGHT - BOTTOM);
        html! {
            figure .plot {
                ul .legend {
                    @for series in &self.series {
                        li { span class={ "swatch c" (series.colour) } {} (series.name) }
                    }
                }
                svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (num(WIDTH)) " " (num(HEIGHT)) } role="img"
                    aria-label=(self.description) {
                    @for tick in y.ticks(5.0) {
                        @let at = num(y.at(tick));
                        path .grid d={ "M" (num(LEFT)) " " (at) "H" (num(WIDTH - RIGHT)) } {}
                        text .tick x=(num(LEFT - 8.0)) y=(num(y.at(tick) + 4.0)) text-anchor="end" { ((self.y.show)(tick)) }
                    }
                    @for tick in x.ticks(7.0) {
                        @let at = num(x.at(tick));
                        path .grid d={ "M" (at) " " (foot) "v5" } {}
                        text .tick x=(at) y=(num(HEIGHT - BOTTOM + 18.0)) text-anchor="middle" { ((self.x.show)(tick)) }
                    }
                    path .axis d={ "M" (num(LEFT)) " " (num(TOP)) "V" (foot) "H" (num(WIDTH - RIGHT)) } {}
                    text .label x=(num((LEFT + WIDTH - RIGHT) / 2.0)) y=(num(HEIGHT - 8.0)) text-anchor="middle" { (self.x.label) }
                    text .label x="0" y="0" text-anchor="middle"
                        transform={ "translate(10 " (num((TOP + HEIGHT - BOTTOM) / 2.0)) ") rotate(-90)" } { (self.y.label) }
                    @if let Some((at, name)) = &self.mark {
                        @let right = x.at(*at) + text_width(name, SIZE) + 8.0 < WIDTH - RIGHT;
                        path .mark d={ "M" (num(x.at(*at))) " " (num(TOP)) "V" (foot) } {}
                        text .tick x=(num(x.at(*at) + if right { 5.0 } else { -5.0 })) y=(num(TOP + 10.0))
                            text-anchor=(if right { "start" } else { "end" }) { (name) }
                    }
                    @for series in &self.series { (draw(series, &x, &y)) }
                    (names(&self.series, &x, &y))
                }
            }
        }
    }
}

fn draw(series: &Series, x: &Placed, y: &Placed) -> Markup {
    let mut path = String::new();
    for (i, &(px, py)) in series.points.iter().enumerate() {
        let (px, py) = (num(x.at(px)), num(y.at(py)));
        path += &match (i, series.style) {
            (0, _) => format!("M{px} {py}"),
            (_, Style::Steps) => format!("H{px}V{py}"),
            _ => format!("L{px} {py}"),
        };
    }
    let dots = matches!(series.style, Style::Points | Style::LineAndPoints);
    html! {
        @if series.style != Style::Points {
            path class={ "line c" (series.colour) } d=(path) {}
        }
        @for (&(at, _), &(low, high)) in series.points.iter().zip(&series.spread) {
            path class={ "spread c" (series.colour) } d={ "M" (num(x.at(at))) " " (num(y.at(low))) "V" (num(y.at(high))) } {}
        }
        @if dots {
            @for (i, &(px, py)) in series.points.iter().enumerate() {
                circle class={ "dot c" (series.colour) } cx=(num(x.at(px))) cy=(num(y.at(py))) r="4" {
                    title {
                        @if let Some(label) = series.labels.get(i) { (label) ": " }
                        ((x.axis.show)(px)) ", " ((y.axis.show)(py))
                    }
                }
            }
        }
    }
}

/// The labels of points, those of one place together, and none over another.
fn names(all: &[Series], x: &Placed, y: &Placed) -> Markup {
    let mut labels: Vec<(f64, f64, String)> = Vec::new();
    for series in all {
        for (&(px, py), name) in series.points.iter().zip(&series.labels) {
            let (px, py) = (x.at(px), y.at(py));
            match labels.iter_mut().find(|(lx, ly, _)| (lx - px).abs() < 6.0 && (ly - py).abs() < 6.0) {
                Some((_, _, names)) => *names = format!("{names}, {name}"),
                None => labels.push((px, py, name.clone())),
            }
        }
    }
    labels.sort_by(|a, b| a.1.total_cmp(&b.1));
    // Left and right edge, and baseline.
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    let placed: Vec<(f64, f64, bool, String)> = labels
        .into_iter()
        .map(|(px, py, name)| {
            let wide = text_width(&name, SIZE);
            let right = px + 8.0 + wide < WIDTH - RIGHT;
            let (from, to) = if right { (px + 8.0, px + 8.0 + wide) } else { (px - 8.0 - wide, px - 8.0) };
            let mut base = py + 4.0;
            while taken.iter().any(|&(a, b, other)| from < b && a < to && (base - other).abs() < SIZE + 2.0) {
                base += 2.0;
            }
            taken.push((from, to, base));
            (if right { from } else { to }, base, right, name)
        })
        .collect();
    html! {
        @for (at, base, right, name) in placed {
            text .name x=(num(at)) y=(num(base)) text-anchor=(if right { "start" } else { "end" }) { (name) }
        }
    }
}
