//! The parsers' messages in the words of a user: no Rust types, the field named once.

use std::path::Path;

use super::FileError;

/// A parser's error as a [`FileError`]. `field` is the path down to it, `.` at the top.
pub(super) fn reworded(path: &Path, field: &str, message: &str, at: Option<(usize, usize)>) -> FileError {
    // `?` stands for what the parser had not read yet.
    let field = field.trim_end_matches('?').trim_end_matches('.');
    // Both parsers put the place into the message, serde_yaml also the path at its front.
    let place = at.map(|(line, column)| format!(" at line {line} column {column}")).unwrap_or_default();
    let text = message.replacen(&place, "", 1);
    let mut text = text.as_str();
    let parent = field.rsplit_once(['.', '[']).map_or("", |(parent, _)| parent);
    for path in [field, parent] {
        if let Some(rest) = text.strip_prefix(path).and_then(|t| t.strip_prefix(": ")) {
            text = rest;
            break;
        }
    }
    let mut error = FileError {
        line: at.map(|at| at.0).filter(|&line| line > 0),
        column: at.map(|at| at.1).filter(|&column| column > 0),
        field: (!field.is_empty()).then(|| field.to_owned()),
        ..FileError::new(path, text)
    };
    let inside = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
    // Of a key that is wrong itself the path may or may not have the key already.
    let ending = |name: &str| match field == name || field.ends_with(&format!(".{name}")) {
        true => field.to_owned(),
        false => inside(name),
    };
    if let Some(name) = quoted_after(text, "unknown field ") {
        let known: Vec<&str> = text.split('`').skip(3).step_by(2).collect();
        error.field = Some(ending(name));
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
        error.field = Some(ending(name));
        error.message = "given twice".to_owned();
    } else if let Some(name) = quoted_after(text, "unknown variant ") {
        let known: Vec<&str> = text.split('`').skip(3).step_by(2).collect();
        error.message = format!("expected {}, found {name}", known.join(" or "));
        error.hint = closest(name, &known).map(|k| format!("did you mean `{k}`?").into());
    } else {
        (error.message, error.hint) = plain(text);
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

/// `invalid type: string "x", expected usize` as `expected a whole number, 0 or more, found "x"`, and a
/// word that was likely meant.
fn plain(text: &str) -> (String, Option<Box<str>>) {
    let rest = ["invalid type: ", "invalid value: ", "invalid length "].iter().find_map(|lead| text.strip_prefix(lead));
    let Some((found, expected)) = rest.and_then(|rest| rest.rsplit_once(", expected ")) else {
        return (text.to_owned(), None);
    };
    let found = match found.split_once(' ') {
        Some(("string", value)) => value,
        Some((_, value)) if value.ends_with('`') => value.split('`').nth(1).unwrap_or(value),
        _ => match found {
            "unit value" | "null" => "nothing",
            "map" => "keys and values",
            "sequence" => "a list",
            other => other,
        },
    };
    let of_type = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => Some("a whole number, 0 or more"),
        "i8" | "i16" | "i32" | "i64" | "isize" => Some("a whole number"),
        "f32" | "f64" => Some("a number"),
        "a boolean" => Some("true or false"),
        "a string" | "path string" => Some("text"),
        "a sequence" => Some("a list"),
        "a map" => Some("keys and values"),
        other if other.starts_with("struct ") => Some("keys and values"),
        _ => None,
    };
    let words: Vec<&str> = match of_type {
        Some(_) => Vec::new(),
        None => expected.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 3).collect(),
    };
    let hint = closest(found.trim_matches('"'), &words).map(|word| format!("did you mean `{word}`?").into());
    (format!("expected {}, found {found}", of_type.unwrap_or(expected)), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(field: &str, message: &str, at: (usize, usize)) -> String {
        reworded(Path::new("f"), field, message, Some(at)).to_string()
    }

    #[test]
    fn rust_types_become_words() {
        assert_eq!(
            shown("a.b", "a.b: invalid type: string \"x, expected y\", expected usize at line 3 column 5", (3, 5)),
            "f:3:5: a.b: expected a whole number, 0 or more, found \"x, expected y\""
        );
        assert_eq!(
            shown("a", "a: invalid value: integer `-3`, expected u32 at line 1 column 2", (1, 2)),
            "f:1:2: a: expected a whole number, 0 or more, found -3"
        );
        assert_eq!(
            shown(".", "invalid type: sequence, expected struct Job at line 1 column 1", (1, 1)),
            "f:1:1: expected keys and values, found a list"
        );
    }

    #[test]
    fn a_typing_error_gets_the_word_that_was_meant() {
        assert_eq!(
            shown("a.modle", "a: unknown field `modle`, expected `model` or `batch` at line 2 column 3", (2, 3)),
            "f:2:3: a.modle: unknown field; known are model, batch\n  hint: did you mean `model`?"
        );
        assert_eq!(
            shown(".", "unknown field `x`, expected `model` or `batch` at line 2 column 3", (2, 3)),
            "f:2:3: x: unknown field; known are model, batch"
        );
    }

    #[test]
    fn a_missing_field_is_named_under_its_parent() {
        assert_eq!(shown("x.send", "x.send: missing field `send` at line 2 column 3", (2, 3)), {
            "f:2:3: x.send.send: missing; it has no default"
        });
        assert_eq!(shown("?", "missing field `send`", (2, 3)), "f:2:3: send: missing; it has no default");
    }

    #[test]
    fn the_context_of_a_syntax_error_stays() {
        assert_eq!(
            shown(".", "did not find ']' at line 3 column 1, while parsing a list at line 2 column 4", (3, 1)),
            "f:3:1: did not find ']', while parsing a list at line 2 column 4"
        );
    }
}
