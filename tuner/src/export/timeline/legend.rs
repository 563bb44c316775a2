//! What the colours and lines mean.

use std::fmt::Write as _;

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::OpKind;

use super::MARGIN;
use super::panel::{Look, Panel};
use super::style::class;
use super::text::{num, width as text_width};

const SIZE: f64 = 11.5;
const LINE: f64 = 18.0;

/// What stands before an item's words.
enum Sign {
    /// The op's colours, one a chunk.
    Op(OpKind),
    /// A box of this class.
    Box(&'static str),
    /// A horizontal line of this class.
    Line(&'static str),
    None,
}

/// Draws the items from left to right, in as many lines as they need; gives the bottom.
pub(super) fn draw(
    svg: &mut String,
    problem: &Problem,
    panels: &[Panel],
    look: &Look,
    chunks: usize,
    width: f64,
    top: f64,
) -> f64 {
    let mut items = vec![
        (Sign::Op(OpKind::F), "forward"),
        (Sign::Op(OpKind::B), "backward_input"),
        (Sign::Op(OpKind::W), "backward_weight"),
    ];
    if look.copies {
        items.extend([(Sign::Op(OpKind::O), "offload to host"), (Sign::Op(OpKind::R), "reload")]);
    }
    items.push((Sign::Box("idle"), "idle"));
    let above_static = problem.bytes.r#static.iter().any(|&bytes| bytes > 0);
    items.push((Sign::Box("memory"), if above_static { "memory above static" } else { "memory held" }));
    items.push((Sign::Line("limit"), "memory limit"));
    if panels.iter().any(Panel::is_measured) {
        items.push((Sign::Line("peak"), "measured peak"));
    }
    if look.numbered {
        items.push((Sign::None, "numbers: microbatch"));
    }
    if chunks > 1 {
        items.push((Sign::None, "lighter: later stages of a device"));
    }
    let (mut x, mut y) = (MARGIN, top);
    let _ = writeln!(svg, r#"<g font-size="{SIZE}">"#);
    for (sign, words) in items {
        let sign_width = match sign {
            Sign::Op(_) if chunks == 1 => 15.0,
            Sign::Op(_) => 9.0 * chunks.min(4) as f64,
            Sign::Box(_) => 15.0,
            Sign::Line(_) => 21.0,
            Sign::None => 0.0,
        };
        let indent = if sign_width > 0.0 { sign_width + 4.0 } else { 0.0 };
        let item_width = indent + text_width(words, SIZE);
        if x + item_width > width - MARGIN && x > MARGIN {
            (x, y) = (MARGIN, y + LINE);
        }
        match sign {
            Sign::Op(kind) => {
                let shown = chunks.min(4);
                for i in 0..shown {
                    let chunk = if shown > 1 { i * (chunks - 1) / (shown - 1) } else { 0 };
                    let w = if shown == 1 { 15.0 } else { 9.0 };
                    let (class, x, y) = (class(kind, chunk), num(x + 9.0 * i as f64), num(y));
                    let _ = writeln!(svg, r#"<rect class="{class}" x="{x}" y="{y}" width="{w}" height="12"/>"#);
                }
            }
            Sign::Box(class) => {
                let (x, y) = (num(x), num(y));
                let _ = writeln!(svg, r#"<rect class="{class}" x="{x}" y="{y}" width="15" height="12"/>"#);
            }
            Sign::Line(class) => {
                let (x, right, y) = (num(x), num(x + 21.0), num(y + 6.0));
                let _ = writeln!(svg, r#"<path class="{class}" d="M{x} {y}H{right}"/>"#);
            }
            Sign::None => {}
        }
        let muted = if matches!(sign, Sign::None) { r#" class="muted""# } else { "" };
        let (at, baseline) = (num(x + indent), num(y + 10.0));
        let _ = writeln!(svg, r#"<text{muted} x="{at}" y="{baseline}">{words}</text>"#);
        x += item_width + 12.0;
    }
    svg.push_str("</g>\n");
    y + LINE
}
