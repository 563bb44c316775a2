//! The time axis.

use std::fmt::Write as _;

use super::Scale;
use super::text::num;
use crate::export::units::time_unit;

/// Font size of the numbers.
const SIZE: f64 = 10.5;

/// Distance of the ticks, ns: 1, 2 or 5 times a power of ten, so that there are at most `ticks`.
fn tick_step(span: f64, ticks: f64) -> i64 {
    let mut step: i64 = 1;
    loop {
        for factor in [1, 2, 5] {
            if span / (step * factor) as f64 <= ticks {
                return step * factor;
            }
        }
        step *= 10;
    }
}

/// Times of the ticks, ns.
pub(super) fn ticks(scale: &Scale) -> Vec<i64> {
    let step = tick_step(scale.span, (scale.width / 80.0).max(2.0));
    (0..).map(|i| i * step).take_while(|&t| t as f64 <= scale.span * (1.0 + 1e-9)).collect()
}

/// Vertical lines at the ticks.
pub(super) fn grid(svg: &mut String, scale: &Scale, top: f64, bottom: f64) {
    let mut path = String::new();
    for t in ticks(scale) {
        let _ = write!(path, "M{} {}V{}", num(scale.x(t)), num(top), num(bottom));
    }
    let _ = writeln!(svg, r#"<path class="grid" fill="none" d="{path}"/>"#);
}

/// The numbers under the ticks, the unit at the left.
pub(super) fn numbers(svg: &mut String, scale: &Scale, baseline: f64) {
    let (unit, name) = time_unit(scale.span as i64);
    let y = num(baseline);
    let _ = writeln!(svg, r#"<g font-size="{SIZE}" text-anchor="middle">"#);
    let _ = writeln!(
        svg,
        r#"<text class="muted" text-anchor="end" x="{}" y="{y}">time, {name}</text>"#,
        num(scale.left - 14.0)
    );
    for t in ticks(scale) {
        let _ = writeln!(svg, r#"<text class="muted" x="{}" y="{y}">{}</text>"#, num(scale.x(t)), t as f64 / unit);
    }
    svg.push_str("</g>\n");
}
