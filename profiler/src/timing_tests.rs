#![allow(clippy::unwrap_used)]
use std::convert::Infallible;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::*;

const MICROSECOND: u64 = 1_000;

/// Feeds a series until the collector has enough; the rest of it is not needed.
fn collect(options: &TimingOptions, series: impl IntoIterator<Item = u64>) -> Timing {
    let mut collector = Collector::new(options);
    for ns in series {
        if collector.done() {
            break;
        }
        collector.push(ns, ns);
    }
    collector.finish()
}

/// Around `centre` with this relative half-width.
fn around(centre: u64, width: f64, seed: u64) -> impl Iterator<Item = u64> {
    let mut rng = Pcg64::seed_from_u64(seed);
    std::iter::repeat_with(move || (centre as f64 * (1.0 + width * (2.0 * rng.random::<f64>() - 1.0))) as u64)
}

#[test]
fn statistics_of_a_known_series() {
    let sample = summarise(&[50, 10, 20, 40, 30], true);
    let expected = Sample { median_ns: 30, mad_ns: 10, p05_ns: 12, p95_ns: 48, count: 5, stable: true };
    assert_eq!(sample, expected);
    assert_eq!(summarise(&[7, 8], true).median_ns, 8);
    assert_eq!(summarise(&[], false).count, 0);
}

#[test]
fn a_quiet_series_ends_early() {
    let timing = collect(&TimingOptions::default(), around(500 * MICROSECOND, 0.01, 1));
    assert_eq!(timing.verdict, Verdict::Stable);
    assert_eq!(timing.sample.count, TimingOptions::default().min_samples);
    assert!(timing.sample.median_ns.abs_diff(500 * MICROSECOND) < 5 * MICROSECOND);
}

#[test]
fn a_slow_start_is_warm_up() {
    let start = [9000, 5000, 3000, 1500, 900, 700].map(|us| us * MICROSECOND);
    let timing = collect(&TimingOptions::default(), start.into_iter().chain(around(500 * MICROSECOND, 0.02, 2)));
    assert_eq!(timing.verdict, Verdict::Stable);
    assert!(timing.warmup > start.len());
    assert!(timing.sample.median_ns.abs_diff(500 * MICROSECOND) < 20 * MICROSECOND, "{timing:?}");
}

#[test]
fn a_few_interruptions_do_not_matter() {
    let mut n = 0;
    let series = around(500 * MICROSECOND, 0.02, 3).map(move |ns| {
        n += 1;
        if n % 9 == 0 { 20 * ns } else { ns }
    });
    let timing = collect(&TimingOptions::default(), series);
    assert_eq!(timing.verdict, Verdict::Stable);
    assert!(timing.sample.median_ns.abs_diff(500 * MICROSECOND) < 20 * MICROSECOND);
}

#[test]
fn drift_is_told() {
    let options = TimingOptions { min_samples: 60, ..TimingOptions::default() };
    let series = around(500 * MICROSECOND, 0.01, 4).enumerate().map(|(i, ns)| ns + i as u64 * 3 * MICROSECOND);
    let timing = collect(&options, series);
    assert_eq!(timing.verdict, Verdict::Drifting);
    assert!(!timing.sample.stable);
}

#[test]
fn two_typical_times_are_told() {
    let (mut fast, mut slow) = (around(400 * MICROSECOND, 0.01, 5), around(600 * MICROSECOND, 0.01, 6));
    let mut rng = Pcg64::seed_from_u64(7);
    let series = std::iter::repeat_with(|| if rng.random::<bool>() { fast.next() } else { slow.next() }.unwrap());
    let options = TimingOptions { max_samples: 400, ..TimingOptions::default() };
    let timing = collect(&options, series);
    assert_eq!(timing.verdict, Verdict::Bimodal);
    assert_eq!((timing.sample.stable, timing.sample.count), (false, 400));
}

#[test]
fn noise_is_told_unless_there_is_time_to_average() {
    let few = TimingOptions { max_samples: 20, ..TimingOptions::default() };
    let timing = collect(&few, around(500 * MICROSECOND, 0.9, 8));
    assert_ne!(timing.verdict, Verdict::Stable);
    let limit = Duration::from_secs(3600);
    let many = TimingOptions { max_samples: 20_000, min_samples: 2_000, time_limit: limit, ..few };
    let timing = collect(&many, around(500 * MICROSECOND, 0.9, 8));
    assert_eq!(timing.verdict, Verdict::Stable);
}

#[test]
fn what_is_below_the_resolution_is_stable() {
    let series = [0, 100, 900, 100, 400].into_iter().cycle();
    let timing = collect(&TimingOptions::default(), series);
    assert_eq!(timing.verdict, Verdict::Stable);
}

#[test]
fn time_is_limited_but_the_fewest_samples_are_taken() {
    let options = TimingOptions { time_limit: Duration::from_millis(1), ..TimingOptions::default() };
    let timing = collect(&options, around(500 * MICROSECOND, 0.5, 9));
    assert_eq!(timing.sample.count, options.min_samples);
    assert!(timing.warmup <= 1);
}

#[test]
fn measure_prepares_each_run_and_reports_errors() {
    let options = TimingOptions { min_samples: 5, max_samples: 5, max_warmup: 2, ..TimingOptions::default() };
    let mut prepared = 0;
    let timing = measure(
        &options,
        || {
            prepared += 1;
            Ok::<_, Infallible>(prepared)
        },
        Ok,
    );
    assert_eq!(timing.unwrap().sample.count, 5);
    assert_eq!(prepared, 7);
    let error = measure(&options, || Ok(()), |()| Err::<(), _>("no memory")).unwrap_err();
    assert_eq!(error, "no memory");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes: percentiles are in order and within the samples, the collector ends within its
    /// limits, and stable is what the verdict says.
    #[test]
    fn any_series_ends_with_sound_statistics(series in proptest::collection::vec(0u64..1 << 40, 1..60)) {
        let options = TimingOptions { max_samples: 30, ..TimingOptions::default() };
        let timing = collect(&options, series.iter().copied().cycle().take(200));
        let Sample { median_ns, p05_ns, p95_ns, count, stable, .. } = timing.sample;
        prop_assert!(p05_ns <= median_ns && median_ns <= p95_ns);
        prop_assert!(series.iter().min().unwrap() <= &p05_ns && &p95_ns <= series.iter().max().unwrap());
        prop_assert!(count >= options.min_samples && count <= options.max_samples);
        prop_assert_eq!(stable, timing.verdict == Verdict::Stable);
    }
}
