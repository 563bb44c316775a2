//! The boxes of a row: one an op, or, where there are too many to draw, one a run of columns.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::OpKind;

use super::Scale;
use super::style::class;
use super::text::{num, width};
use crate::export::bars::Bar;
use crate::export::units;

/// How the boxes of a picture are drawn, by how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// One element an op, with a tooltip.
    Elements,
    /// One path a row and class, each op in it.
    Paths,
    /// The shares of time in so many columns of a row.
    Columns(usize),
}

/// Ops up to which each is an element of its own.
const MOST_ELEMENTS: usize = 2_500;

impl Detail {
    /// For `ops` ops in `rows` rows, and at most about `boxes` boxes.
    pub(super) fn of(ops: usize, rows: usize, boxes: usize) -> Detail {
        if ops <= MOST_ELEMENTS {
            Detail::Elements
        } else if ops <= boxes {
            Detail::Paths
        } else {
            Detail::Columns((boxes / rows.max(1)).clamp(50, 1000))
        }
    }
}

/// The rank of each stage among the stages of its device.
pub(crate) fn chunks(problem: &Problem) -> Vec<usize> {
    let mut seen = vec![0; problem.devices];
    problem
        .placement
        .iter()
        .map(|&device| {
            seen[device] += 1;
            seen[device] - 1
        })
        .collect()
}

/// A row's place and what is drawn in it.
pub(super) struct Row<'a> {
    pub(super) ops: &'a [Bar],
    /// Rank of each stage among those of its device.
    pub(super) chunks: &'a [usize],
    pub(super) top: f64,
    pub(super) height: f64,
    /// Font size of the microbatch numbers.
    pub(super) label_size: f64,
}

/// Colour and extent (pixels) of a box.
type Piece = ((OpKind, usize), f64, f64);

impl Row<'_> {
    pub(super) fn draw(&self, svg: &mut String, scale: &Scale, detail: Detail) {
        match detail {
            Detail::Elements => {
                for op in self.ops {
                    let (x, w) = visible(scale.x(op.start), scale.x(op.end));
                    let _ = writeln!(
                        svg,
                        r#"<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}: {} to {} ({})</title></rect>"#,
                        class(op.kind, self.chunks[op.stage]),
                        num(x),
                        num(self.top),
                        num(w),
                        num(self.height),
                        op.name(),
                        units::time(op.start),
                        units::time(op.end),
                        units::time(op.end - op.start),
                    );
                }
            }
            Detail::Paths => {
                let pieces = self.ops.iter().map(|op| {
                    let (x, w) = visible(scale.x(op.start), scale.x(op.end));
                    ((op.kind, self.chunks[op.stage]), x, x + w)
                });
                self.paths(svg, pieces);
            }
            Detail::Columns(columns) => self.stacked(svg, scale, columns),
        }
        self.labels(svg, scale);
    }

    /// One path a class: horizontal strokes as thick as the row is high.
    fn paths(&self, svg: &mut String, pieces: impl Iterator<Item = Piece>) {
        let mut paths: BTreeMap<(OpKind, usize), String> = BTreeMap::new();
        let middle = num(self.top + self.height / 2.0);
        for (colour, from, to) in pieces {
            let path = paths.entry(colour).or_default();
            let _ = write!(path, "M{} {middle}H{}", num(from), num(to));
        }
        for ((kind, chunk), path) in paths {
            let (class, thick) = (class(kind, chunk), num(self.height));
            let _ = writeln!(svg, r#"<path class="{class}" stroke-width="{thick}" d="{path}"/>"#);
        }
    }

    /// The row in columns of equal time: in each, the classes are stacked to the height of their
    /// share of it, and what is left is idle.
    fn stacked(&self, svg: &mut String, scale: &Scale, columns: usize) {
        let step = scale.span / columns as f64;
        let mut shares: BTreeMap<(OpKind, usize), Vec<f64>> = BTreeMap::new();
        for op in self.ops {
            let (start, end) = (op.start as f64, op.end as f64);
            let first = ((start / step) as usize).min(columns - 1);
            let last = ((end / step) as usize).min(columns - 1);
            let share = shares.entry((op.kind, self.chunks[op.stage])).or_insert_with(|| vec![0.0; columns]);
            for (column, share) in share.iter_mut().enumerate().take(last + 1).skip(first) {
                let (from, to) = (column as f64 * step, (column + 1) as f64 * step);
                *share += (end.min(to) - start.max(from)).max(0.0) / step;
            }
        }
        // Each class is drawn from the foot up to the sum so far, the highest sum first: what lies
        // below covers it.
        let mut sum = vec![0.0; columns];
        let mut layers = Vec::new();
        for (colour, share) in shares {
            for (sum, share) in sum.iter_mut().zip(share) {
                *sum += share;
            }
            layers.push((colour, sum.clone()));
        }
        let foot = self.top + self.height;
        for ((kind, chunk), sum) in layers.into_iter().rev() {
            let mut path = format!("M{} {}", num(scale.left), num(foot));
            let mut level = 0.0;
            for (column, share) in sum.into_iter().enumerate() {
                if share != level {
                    let x = scale.pixel(column as f64 * step);
                    let _ = write!(path, "H{}V{}", num(x), num(foot - self.height * share.min(1.0)));
                    level = share;
                }
            }
            let _ = write!(path, "H{}V{}Z", num(scale.pixel(scale.span)), num(foot));
            let _ = writeln!(svg, r#"<path class="{} area" d="{path}"/>"#, class(kind, chunk));
        }
    }

    /// Microbatch numbers, where they fit into their boxes.
    fn labels(&self, svg: &mut String, scale: &Scale) {
        let size = self.label_size;
        if self.height < size {
            return;
        }
        let baseline = num(self.top + self.height / 2.0 + 0.36 * size);
        let mut any = false;
        for op in self.ops {
            let (left, right) = (scale.x(op.start), scale.x(op.end));
            let label = op.microbatch.to_string();
            if !label_fits(&label, size, right - left) {
                continue;
            }
            if !any {
                let _ = writeln!(svg, r#"<g font-size="{}" text-anchor="middle" pointer-events="none">"#, num(size));
                any = true;
            }
            let class = class(op.kind, self.chunks[op.stage]);
            let x = num((left + right) / 2.0);
            let _ = writeln!(svg, r#"<text class="{class}" x="{x}" y="{baseline}">{label}</text>"#);
        }
        if any {
            svg.push_str("</g>\n");
        }
    }
}

/// Whether a number can stand in a box of this width.
pub(super) fn label_fits(label: &str, size: f64, box_width: f64) -> bool {
    width(label, size) + 1.0 <= box_width
}

/// Left edge and width of a box: a hair of background separates boxes that touch, where there is
/// room for it, and an op of no length is still seen.
fn visible(left: f64, right: f64) -> (f64, f64) {
    let wide = right - left;
    let gap = if wide > 4.0 {
        0.7
    } else if wide > 1.5 {
        0.3
    } else {
        0.0
    };
    (left, (wide - gap).max(0.3))
}
