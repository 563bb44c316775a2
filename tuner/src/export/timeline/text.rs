//! Text inside the picture: escaping, numbers, and how wide it comes out.

/// `text` for an XML text node or a double-quoted attribute. Characters that XML 1.0 cannot hold
/// become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\0'..'\u{20}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A coordinate with at most two decimals and no trailing zeros.
pub(crate) fn num(x: f64) -> String {
    let mut text = format!("{x:.2}");
    text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    if text == "-0" { "0".to_owned() } else { text }
}

/// Upper estimate of a text's width, in pixels: fonts differ, and what is too wide would cover its
/// neighbour.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    let ems: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'j' | 'l' | 't' | 'f' | 'r' | ' ' | '.' | ',' | ':' | '|' | '·' | '(' | ')' => 0.36,
            'm' | 'w' | 'M' | 'W' | '%' | '…' => 0.95,
            'A'..='Z' => 0.7,
            c if c.is_ascii() => 0.6,
            'µ' | '–' | '×' => 0.6,
            _ => 1.0,
        })
        .sum();
    ems * size
}

/// `text`, or its beginning with an ellipsis, so that it fits.
pub(super) fn fit(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        kept.push(c);
        if width(&kept, size) + width("…", size) > room {
            kept.pop();
            break;
        }
    }
    kept + "…"
}
