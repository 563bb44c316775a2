//! The memory curve of a device, from `static` at its foot, with the limit.

use std::fmt::Write as _;

use super::Scale;
use super::text::num;
use crate::export::memory::{Curve, peak};

/// Share of the band left free above the limit.
const HEADROOM: f64 = 0.1;

/// What a memory band shows.
pub(super) struct Band<'a> {
    pub(super) curve: &'a Curve,
    /// The foot of the band, bytes.
    pub(super) held: i64,
    /// The limit, bytes.
    pub(super) capacity: i64,
    /// The largest number measured, bytes.
    pub(super) measured_peak: Option<i64>,
    /// Latest end, ns: where the curve ends.
    pub(super) end: i64,
    pub(super) top: f64,
    pub(super) height: f64,
}

impl Band<'_> {
    /// The bytes at the band's top, and whether the limit lies above it: a limit far above the peak
    /// would flatten the curve.
    pub(super) fn ceiling(&self) -> (i64, bool) {
        let most = peak(self.curve).max(self.measured_peak.unwrap_or(0));
        let (used, room) = ((most - self.held).max(0), (self.capacity - self.held).max(0));
        if used > 0 && room / 4 > used {
            (self.held + used + used / 4, true)
        } else {
            (self.held + used.max(room), false)
        }
    }

    fn y(&self, bytes: i64) -> f64 {
        let (ceiling, _) = self.ceiling();
        let span = (ceiling - self.held).max(1) as f64;
        let share = ((bytes - self.held) as f64 / span).clamp(0.0, 1.0);
        self.top + self.height * (1.0 - (1.0 - HEADROOM) * share)
    }

    /// `columns`: the most points that may be drawn; a longer curve is drawn as the largest value in
    /// each of so many columns.
    pub(super) fn draw(&self, svg: &mut String, scale: &Scale, columns: usize) {
        let foot = num(self.top + self.height);
        let mut path = format!("M{} {foot}", num(scale.x(0)));
        let points = if self.curve.len() > columns { self.largest(scale, columns) } else { self.points(scale) };
        for (x, y) in points {
            let _ = write!(path, "H{}V{}", num(x), num(y));
        }
        let _ = write!(path, "H{}V{foot}Z", num(scale.x(self.end)));
        let _ = writeln!(svg, r#"<path class="memory" d="{path}"/>"#);
        let line = |svg: &mut String, class: &str, bytes: i64| {
            let (left, right, y) = (num(scale.x(0)), num(scale.x(self.end)), num(self.y(bytes)));
            let _ = writeln!(svg, r#"<path class="{class}" d="M{left} {y}H{right}"/>"#);
        };
        if !self.ceiling().1 {
            line(svg, "limit", self.capacity);
        }
        if let Some(bytes) = self.measured_peak {
            line(svg, "peak", bytes);
        }
    }

    fn points(&self, scale: &Scale) -> Vec<(f64, f64)> {
        self.curve.iter().map(|&(time, bytes)| (scale.x(time), self.y(bytes))).collect()
    }

    fn largest(&self, scale: &Scale, columns: usize) -> Vec<(f64, f64)> {
        let step = (self.end.max(1) as f64) / columns as f64;
        let mut most: Vec<Option<i64>> = vec![None; columns];
        let mut held = self.held;
        let mut next = 0;
        for &(time, bytes) in self.curve {
            let column = ((time as f64 / step) as usize).min(columns - 1);
            // What was held until now counts in every column up to this one.
            for most in &mut most[next..=column] {
                *most = (*most).max(Some(held));
            }
            most[column] = most[column].max(Some(bytes));
            (held, next) = (bytes, column);
        }
        most.iter()
            .enumerate()
            .map(|(column, most)| (scale.pixel(column as f64 * step), self.y(most.unwrap_or(held))))
            .collect()
    }
}
