use crate::export::units::{bytes, percent, time};

#[test]
fn times_and_sizes_come_with_units_that_fit() {
    let times = [
        (0, "0 ns"),
        (1010, "1010 ns"),
        (12_345, "12.35 µs"),
        (9_999_999, "10000 µs"),
        (12_345_678, "12.35 ms"),
        (1_234_567_890, "1235 ms"),
        (90_000_000_000, "90 s"),
    ];
    for (ns, words) in times {
        assert_eq!(time(ns), words);
    }
    let sizes = [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.50 KiB"),
        (314_159_265, "300 MiB"),
        (1 << 50, "1 PiB"),
    ];
    for (n, words) in sizes {
        assert_eq!(bytes(n), words);
    }
    assert_eq!(percent(0.10891), "10.9 %");
    assert_eq!(percent(-1e-9), "0.0 %");
}
