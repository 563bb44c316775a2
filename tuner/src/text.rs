//! Numbers as a person reads them.

pub use optpipe_configs::size::format_bytes as bytes;

/// `1.23 s`, `45.6 ms`, `12 ns`, also below zero.
pub fn duration(ns: i64) -> String {
    let text = optpipe_configs::size::format_ns(ns.unsigned_abs());
    if ns < 0 { format!("-{text}") } else { text }
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
}
