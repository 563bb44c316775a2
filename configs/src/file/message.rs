//! The parsers' messages in the words of a user: no Rust types, the field named once.

use std::path::Path;

use super::FileError;

/// A parser's error as a [`FileError`]. `field` is the path down to it, `.` at the top.
pub(super) fn reworded(path: &Path, field: &str, message: &str, at: Option<(usize, usize)>) -> FileError {
    let field = if field == "." { "" } else { field };
    // Both parsers put the place at the end of the message, serde_yaml also the path at its front.
    let mut text = match message.rfind(" at line ") {
        Some(end) => &message[..end],
        None => message,
    };
    if let Some(rest) = text.strip_prefix(field).and_then(|t| t.strip_prefix(": ")) {
        text = rest;
    }
    let mut error = FileError {
        line: at.map(|at| at.0).filter(|&line| line > 0),
        column: at.map(|at| at.1).filter(|&column| column > 0),
        field: (!field.is_empty()).then(|| field.to_owned()),
        ..FileError::new(path, text)
    };
    let inside = |name: &str| {
        let parent = field.strip_suffix(name).map_or(field, |p| p.trim_end_matches('.'));
        if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
    };
    if let Some(name) = quoted_after(text, "unknown field ") {
        let known: Vec<&str> = text.split('`').skip(3).step_by(2).collect();
        error.field = Some(inside(name));
        error.message = if known.is_empty() {
            "unknown field".to_owned()
        } else {
            format!("unknown field; known are {}", known.join(", "))
        };
        error.hint = closest(name, &known).map(|k| format!("did you mean `{k}`?").into());
    } else if let Some(name) = quoted_after(text, "missing field ") {
        error.field = Some(inside(name));
        error.message = "missing; it has no default".to_owned();
    } else if let Some(name) = quoted_after(text, "duplicate field ") {
        error.field = Some(inside(name));
        error.message = "given twice".to_owned();
    } else if let Some(name) = quoted_after(text, "unknown variant ") {
        let known: Vec<&str> = text.split('`').skip(3).step_by(2).collect();
        error.message = format!("expected {}, found {name}", known.join(" or "));
        error.hint = closest(name, &known).map(|k| format!("did you mean `{k}`?").into());
    } else {
        error.message = plain(text);
    }
    error
}

fn quoted_after<'a>(text: &'a str, lead: &str) -> Option<&'a str> {
    text.strip_prefix(lead)?.strip_prefix('`')?.split('`').next()
}

fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|k| (strsim::damerau_levenshtein(name, k), *k));
    scored.filter(|(distance, k)| *distance <= 1 + k.len() / 4).min().map(|(_, k)| k)
}

/// `invalid type: string "x", expected usize` as `expected a whole number, 0 or more, found "x"`.
fn plain(text: &str) -> String {
    let rest = ["invalid type: ", "invalid value: ", "invalid length "].iter().find_map(|lead| text.strip_prefix(lead));
    let Some((found, expected)) = rest.and_then(|rest| rest.rsplit_once(", expected ")) else {
        return text.to_owned();
    };
    let found = match found.split_once(' ') {
        Some(("string", value)) => value.to_owned(),
        Some((_, value)) if value.starts_with('`') => value.trim_matches('`').to_owned(),
        _ => match found {
            "unit value" | "null" => "nothing".to_owned(),
            "map" => "keys and values".to_owned(),
            "sequence" => "a list".to_owned(),
            other => other.to_owned(),
        },
    };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "text",
        "a sequence" => "a list",
        "a map" => "keys and values",
        other if other.starts_with("struct ") => "keys and values",
        other => other,
    };
    format!("expected {expected}, found {found}")
}
