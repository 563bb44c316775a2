//! Colours, for a light and a dark background.

use std::fmt::Write as _;

use optpipe_solver::schedule::OpKind;

/// The base colours of the ops, from the palette of Okabe and Ito, which people with any common
/// colour blindness can tell apart; they also differ in lightness.
/// <https://jfly.uni-koeln.de/color/>.
fn base(kind: OpKind) -> [u8; 3] {
    match kind {
        OpKind::F => [0x00, 0x72, 0xb2],
        OpKind::B => [0xe6, 0x9f, 0x00],
        OpKind::W => [0x00, 0x9e, 0x73],
        OpKind::O => [0xcc, 0x79, 0xa7],
        OpKind::R => [0x8f, 0x4d, 0x9e],
    }
}

/// The colour of an op of the `chunk`th of a device's `chunks` stages: later chunks are lighter.
fn shade(kind: OpKind, chunk: usize, chunks: usize) -> [u8; 3] {
    let lightness = match chunks {
        0..=2 => 0.45 * chunk as f64,
        _ => 0.65 * chunk as f64 / (chunks - 1) as f64,
    };
    base(kind).map(|c| (f64::from(c) + (255.0 - f64::from(c)) * lightness).round() as u8)
}

/// Relative luminance, <https://www.w3.org/TR/WCAG21/#dfn-relative-luminance>.
fn luminance(rgb: [u8; 3]) -> f64 {
    let [r, g, b] = rgb.map(|c| {
        let c = f64::from(c) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    });
    0.2126 * r + 0.7152 * g + 0.0722 * b
}

/// Black or white, whichever contrasts more.
fn ink(rgb: [u8; 3]) -> &'static str {
    let l = luminance(rgb);
    if (l + 0.05) / 0.05 > 1.05 / (l + 0.05) { "#000" } else { "#fff" }
}

/// The colour of an op of the `chunk`th of a device's `chunks` stages, and that of text on it.
pub(crate) fn colour(kind: OpKind, chunk: usize, chunks: usize) -> [String; 2] {
    let rgb = shade(kind, chunk, chunks);
    let [r, g, b] = rgb;
    [format!("#{r:02x}{g:02x}{b:02x}"), ink(rgb).to_owned()]
}

/// The class of an op: `F0` for the forward of a device's first stage.
pub(super) fn class(kind: OpKind, chunk: usize) -> String {
    format!("{}{chunk}", kind.letter())
}

/// What is drawn in another colour on a dark background: selector, property, light, dark.
const THEMED: [(&str, &str, &str, &str); 12] = [
    (".bg", "fill", "#ffffff", "#0d1117"),
    ("text", "fill", "#1f2328", "#e6edf3"),
    (".muted", "fill", "#59636e", "#9198a1"),
    (".over", "fill", "#cf222e", "#ff7b72"),
    (".idle", "fill", "#e9ecf0", "#21262d"),
    (".memory-track", "fill", "#f6f8fa", "#161b22"),
    (".grid", "stroke", "#d1d9e0", "#3d444d"),
    (".memory", "fill", "#c3cad3", "#4c5664"),
    (".memory", "stroke", "#6e7781", "#9198a1"),
    (".limit", "stroke", "#cf222e", "#ff7b72"),
    (".peak", "stroke", "#1f2328", "#e6edf3"),
    (".end", "stroke", "#1f2328", "#e6edf3"),
];

/// The style sheet. Every rule is below `.optpipe`, so that the picture can also stand inside a page.
/// No custom properties: not every renderer has them.
pub(super) fn sheet(chunks: usize) -> String {
    let mut css = String::from(
        ".optpipe text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif}\n\
         .optpipe .strong{font-weight:600}\n\
         .optpipe .end{stroke-width:1}\n\
         .optpipe .grid{stroke-width:1}\n\
         .optpipe .memory{stroke-width:.8}\n\
         .optpipe .limit{stroke-width:1.2;stroke-dasharray:5 3;fill:none}\n\
         .optpipe .peak{stroke-width:1;stroke-dasharray:1.5 2.5;fill:none}\n",
    );
    for (selector, property, light, _) in THEMED {
        let _ = writeln!(css, ".optpipe {selector}{{{property}:{light}}}");
    }
    css.push_str("@media (prefers-color-scheme:dark){\n");
    for (selector, property, _, dark) in THEMED {
        let _ = writeln!(css, ".optpipe {selector}{{{property}:{dark}}}");
    }
    css.push_str("}\n");
    for kind in [OpKind::F, OpKind::B, OpKind::W, OpKind::O, OpKind::R] {
        for chunk in 0..chunks.max(1) {
            let (class, [fill, ink]) = (class(kind, chunk), colour(kind, chunk, chunks));
            let _ = writeln!(css, ".optpipe rect.{class}{{fill:{fill}}}");
            let _ = writeln!(css, ".optpipe path.{class}{{stroke:{fill};fill:none}}");
            let _ = writeln!(css, ".optpipe path.{class}.area{{fill:{fill};stroke:none}}");
            let _ = writeln!(css, ".optpipe text.{class}{{fill:{ink}}}");
        }
    }
    css
}
