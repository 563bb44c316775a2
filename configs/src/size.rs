//! Bytes and durations as people write them.
//!
//! ```
//! use optpipe_configs::size::{format_bytes, parse_bytes, parse_duration};
//!
//! assert_eq!(parse_bytes("1.5GiB").unwrap(), 3 << 29);
//! assert_eq!(parse_bytes("80GB").unwrap(), 80_000_000_000);
//! assert_eq!(format_bytes(3 << 29), "1.50 GiB");
//! assert_eq!(parse_duration("1m30s").unwrap().as_secs(), 90);
//! ```

use std::time::Duration;

/// Text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a size such as 512MiB, 1.5GiB, 80GB or 1073741824, found {found:?}{why}")]
pub struct NotASize {
    found: String,
    why: String,
}

/// Text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a duration such as 10s, 1m30s or 500ms, found {found:?}")]
pub struct NotADuration {
    found: String,
}

const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Bytes from a number with an optional fraction and unit: `B`, `kB MB GB TB` (powers of 1000), `KiB MiB
/// GiB TiB` (powers of 1024), in any case. A fraction of a byte is dropped; at most 2^53 bytes (8 PiB).
pub fn parse_bytes(text: &str) -> Result<u64, NotASize> {
    let not = |why: String| NotASize { found: text.to_owned(), why };
    let trimmed = text.trim();
    let at = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..at], trimmed[at..].trim_start().to_ascii_lowercase());
    let Some(scale) = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale) else {
        return Err(not(match unit.as_str() {
            "k" | "m" | "g" | "t" => {
                let letter = unit.to_ascii_uppercase();
                format!(": write {letter}iB for powers of 1024 or {letter}B for powers of 1000")
            }
            _ => String::new(),
        }));
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(not(String::new()));
    }
    // More than 15 digits after the point are less than a byte even in TiB.
    let fraction = &fraction[..fraction.len().min(15)];
    let digits: u128 = format!("0{whole}{fraction}").parse().map_err(|_| not(": more than 8 PiB".to_owned()))?;
    let bytes = digits.checked_mul(u128::from(scale)).map(|x| x / 10_u128.pow(fraction.len() as u32));
    match bytes.and_then(|b| u64::try_from(b).ok()) {
        Some(bytes) if bytes <= 1 << 53 => Ok(bytes),
        _ => Err(not(": more than 8 PiB".to_owned())),
    }
}

/// Bytes with three significant digits or more and a unit: `17 B`, `1.50 GiB`, `288 MiB`.
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        // 1023.5 would print as 1024.
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.0$} {unit}", decimals(value)) }
}

/// A duration from text such as `10s`, `1m30s`, `500ms`; above zero, at most 365 days.
pub fn parse_duration(text: &str) -> Result<Duration, NotADuration> {
    let not = || NotADuration { found: text.to_owned() };
    let duration = humantime::parse_duration(text.trim()).map_err(|_| not())?;
    if duration.is_zero() || duration > Duration::from_secs(365 * 24 * 3600) {
        return Err(not());
    }
    Ok(duration)
}

/// Nanoseconds with three significant digits or more and a unit: `950 ns`, `1.23 ms`, `45.6 s`.
pub fn format_ns(ns: u64) -> String {
    let mut value = ns as f64;
    let mut unit = "ns";
    for next in ["us", "ms", "s"] {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "ns" { format!("{ns} ns") } else { format!("{value:.0$} {unit}", decimals(value)) }
}

/// Digits after the point that leave three significant ones.
fn decimals(value: f64) -> usize {
    if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_in_every_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17 B", 17),
            ("1kB", 1000),
            ("1 KiB", 1024),
            ("300MiB", 314_572_800),
            ("0.5gib", 1 << 29),
            (".5GiB", 1 << 29),
            ("80GB", 80_000_000_000),
            ("2TiB", 2 << 40),
            ("1.0000000000000000001GB", 1_000_000_000),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_what_is() {
        for text in ["", ".", "MiB", "-5MiB", "1.2.3GB", "5 parsecs", "1e9", "99999999999TiB", "1_000", "²GiB"] {
            let message = parse_bytes(text).unwrap_err().to_string();
            assert!(message.contains("expected a size such as 512MiB") && message.contains(text), "{message}");
        }
        let message = parse_bytes("80G").unwrap_err().to_string();
        assert!(message.ends_with("write GiB for powers of 1024 or GB for powers of 1000"), "{message}");
    }

    #[test]
    fn what_is_no_duration_says_what_is() {
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        for text in ["", "10", "s", "-1s", "0s", "ten", "900000000y", "99999999999999999999s"] {
            let message = parse_duration(text).unwrap_err().to_string();
            assert!(message.contains("expected a duration such as 10s") && message.contains(text), "{message}");
        }
    }

    #[test]
    fn numbers_stay_short_at_the_edges_of_units() {
        assert_eq!(
            [1023, 1024, 10239, 1023 << 10, (1 << 20) - 1].map(format_bytes),
            ["1023 B", "1.00 KiB", "10.0 KiB", "1023 KiB", "1.00 MiB"]
        );
        assert_eq!(
            [999, 1000, 999_499, 999_600, 12_345_678_901].map(format_ns),
            ["999 ns", "1.00 us", "999 us", "1.00 ms", "12.3 s"]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn a_printed_size_reads_back_to_three_digits(bytes in 0_u64..(1 << 52)) {
            let back = parse_bytes(&format_bytes(bytes)).unwrap();
            prop_assert!(back.abs_diff(bytes) as f64 <= bytes as f64 * 0.0051);
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,12}") {
            let _ = (parse_bytes(&text), parse_duration(&text));
        }
    }
}
