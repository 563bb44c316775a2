//! Numbers as a person reads them.

pub use optpipe_configs::size::format_bytes as bytes;

/// `1.23 s`, `45.6 ms`, `12 ns`, also below zero.
pub fn duration(ns: i64) -> String {
    let text = optpipe_configs::size::format_ns(ns.unsigned_abs());
    if ns < 0 { format!("-{text}") } else { text }
}

/// How long something may yet take, rounded up to what one can make use of: `8 s`, `3 min`, `2 h 5 min`.
pub fn waiting(left: std::time::Duration) -> String {
    // A moment has passed since it was said how long: 30 s are not to be 31.
    let seconds = (left.as_secs_f64() - 0.01).ceil().max(1.0) as u64;
    match (seconds, seconds.div_ceil(60)) {
        (..100, _) => format!("{seconds} s"),
        (_, minutes @ ..100) => format!("{minutes} min"),
        (_, minutes) => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

/// `1.25 GB/s`: bandwidths count in powers of ten.
pub fn rate(bytes_per_second: f64) -> String {
    let (scale, unit) = if bytes_per_second >= 1e9 { (1e9, "GB/s") } else { (1e6, "MB/s") };
    format!("{:.2} {unit}", bytes_per_second / scale)
}

/// A share as `12.3 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A count with its thousands apart: `12 345 678`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// A gap to a bound: `optimal` at 0, else `1.2 %`.
pub fn gap(gap: f64) -> String {
    if gap <= 0.0 {
        "optimal".to_owned()
    } else if gap < 0.0005 {
        "< 0.1 %".to_owned()
    } else {
        percent(gap)
    }
}

/// Several things with something between them.
pub fn joined<T: std::fmt::Display>(items: &[T], between: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(between)
}

/// Lines that are wider than a terminal broken between words, each continued below where its text begins: behind
/// spaces, a dash, or a label that stands before two spaces or more.
pub fn wrapped(text: &str, width: Option<usize>) -> String {
    let Some(width) = width else { return text.to_owned() };
    let line = |line: &str| {
        if line.chars().count() <= width {
            return line.to_owned();
        }
        let indent = indent(line).min(width / 2);
        let options = textwrap::Options::new(width).subsequent_indent(&SPACES[..indent.min(SPACES.len())]);
        textwrap::fill(line, options)
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

const SPACES: &str = "                    ";

/// Where the text of a line begins.
fn indent(line: &str) -> usize {
    let spaces = line.len() - line.trim_start().len();
    let rest = &line[spaces..];
    if rest.starts_with("- ") {
        return spaces + 2;
    }
    let label = rest.find("  ").filter(|&end| end < SPACES.len() && rest.is_char_boundary(end));
    label.map_or(spaces, |end| spaces + end + rest[end..].len() - rest[end..].trim_start().len())
}

/// A list as a sentence has it: `12 MiB, 13 MiB`.
pub fn list<T>(items: impl IntoIterator<Item = T>, show: impl Fn(T) -> String) -> String {
    items.into_iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units_and_three_digits() {
        assert_eq!(duration(-45_600_000), "-45.6 ms");
        assert_eq!(percent(0.1234), "12.3 %");
        assert_eq!(count(1_234_567), "1 234 567");
        assert_eq!(count(12), "12");
        assert_eq!(gap(0.0), "optimal");
        assert_eq!(rate(1.25e9), "1.25 GB/s");
    }

    #[test]
    fn long_lines_go_on_where_their_text_begins() {
        let text = "short\nDevice 0 holds stage 0. It begins.\npeak       device 0: 12 MiB\n- a verdict in words";
        let expected = "short\nDevice 0 holds stage\n0. It begins.\npeak       device 0:\n          12 MiB\n\
                        - a verdict in words";
        assert_eq!(wrapped(text, Some(20)), expected, "no further in than half of the width");
        assert_eq!(wrapped(text, None), text);
        assert_eq!(wrapped("- one two three", Some(9)), "- one two\n  three");
    }

    #[test]
    fn waiting_is_rounded_up() {
        let seconds = |seconds: f64| waiting(std::time::Duration::from_secs_f64(seconds));
        assert_eq!([seconds(0.2), seconds(29.2), seconds(30.0)], ["1 s", "30 s", "30 s"]);
        assert_eq!([seconds(100.0), seconds(121.0), seconds(7500.0)], ["2 min", "3 min", "2 h 5 min"]);
    }
}
