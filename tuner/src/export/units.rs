//! Times and sizes with units that fit them.

/// A unit of time: its length in ns and its sign.
pub fn time_unit(ns: i64) -> (f64, &'static str) {
    match ns {
        ..10_000 => (1.0, "ns"),
        10_000..10_000_000 => (1e3, "µs"),
        10_000_000..10_000_000_000 => (1e6, "ms"),
        _ => (1e9, "s"),
    }
}

/// `1010 ns`, `12.3 ms`: whole nanoseconds, else four significant digits.
pub fn time(ns: i64) -> String {
    let (unit, name) = time_unit(ns);
    format!("{} {name}", significant(ns as f64 / unit, 4))
}

/// `24 B`, `1.50 GiB`: whole bytes, else three significant digits, whole numbers as they are.
pub fn bytes(n: i64) -> String {
    const STEP: f64 = 1024.0;
    let mut value = n as f64;
    let mut name = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value.abs() < STEP {
            break;
        }
        value /= STEP;
        name = larger;
    }
    if name == "B" { format!("{n} B") } else { format!("{} {name}", significant(value, 3)) }
}

/// `12.3 %`.
pub fn percent(share: f64) -> String {
    // Adding 0 makes a zero of a negative zero.
    format!("{:.1} %", (1000.0 * share).round() / 10.0 + 0.0)
}

/// At least `digits` significant digits of a value of 1 or more; whole numbers as they are.
fn significant(value: f64, digits: usize) -> String {
    if value.fract() == 0.0 && value.abs() < 1e5 {
        return format!("{value}");
    }
    let before_point = match value.abs() {
        ..10.0 => 1,
        ..100.0 => 2,
        ..1000.0 => 3,
        _ => 4,
    };
    format!("{value:.*}", digits.saturating_sub(before_point))
}
