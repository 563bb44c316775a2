//! Timing something that can be repeated: warm-up until the times settle, then samples until their
//! median is known well enough, and an honest word on whether that worked.
//!
//! A [`Collector`] only sees numbers, so that what it decides can be tested on made-up series;
//! [`measure`] feeds it from a clock.
//!
//! Statistics are robust ones: a median and the median absolute deviation (MAD), which a few
//! interruptions by the system do not move (Rousseeuw and Croux, "Alternatives to the Median Absolute
//! Deviation", 1993). The uncertainty of a median of n samples is that of a normal sample,
//! 1.2533 sigma / sqrt(n), with sigma = 1.4826 MAD.

use std::fmt;
use std::time::{Duration, Instant};

use optpipe_configs::profile::Sample;

/// sigma / MAD of a normal distribution.
const SIGMA_PER_MAD: f64 = 1.4826;
/// Deviation of the median of n normal samples: this times sigma / sqrt(n).
const MEDIAN_DEVIATION: f64 = 1.2533;

/// When to stop measuring, and when to believe it.
#[derive(Debug, Clone, PartialEq)]
pub struct TimingOptions {
    /// Samples a window of the warm-up.
    pub window: usize,
    /// Warm-up is over when the medians of two windows in a row differ by no more than this part.
    pub warmup_tolerance: f64,
    /// Warm-up is over after so many samples in any case.
    pub max_warmup: usize,
    /// Samples after warm-up, at least.
    pub min_samples: usize,
    /// Samples after warm-up, at most.
    pub max_samples: usize,
    /// Measuring ends after this time (warm-up included) once there are `min_samples`.
    pub time_limit: Duration,
    /// Uncertainty of the median (one deviation, relative) that is good enough.
    pub uncertainty: f64,
    /// Medians of the first and the second half of the samples may differ by this part, beyond what
    /// their own uncertainty explains, before the measurement counts as drifting.
    pub drift_tolerance: f64,
    /// Differences below this many ns count for nothing: the resolution of clock and scheduler.
    pub floor_ns: u64,
}

impl Default for TimingOptions {
    fn default() -> Self {
        TimingOptions {
            window: 3,
            warmup_tolerance: 0.1,
            max_warmup: 15,
            min_samples: 9,
            max_samples: 101,
            time_limit: Duration::from_secs(2),
            uncertainty: 0.02,
            drift_tolerance: 0.05,
            floor_ns: 2_000,
        }
    }
}

/// What a measurement turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The median is known within the uncertainty asked for.
    Stable,
    /// Fewer samples than the minimum.
    TooFew,
    /// The spread leaves the median less certain than asked for.
    Noisy,
    /// Earlier samples differ from later ones.
    Drifting,
    /// There are two typical times, and a median would stand for one or for neither.
    Bimodal,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Stable => "stable",
            Verdict::TooFew => "too few samples",
            Verdict::Noisy => "noisy",
            Verdict::Drifting => "drifting",
            Verdict::Bimodal => "two typical times",
        })
    }
}

/// A finished measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// The statistics; `stable` if and only if the verdict is [`Verdict::Stable`].
    pub sample: Sample,
    /// Why it is stable or not.
    pub verdict: Verdict,
    /// Samples that the warm-up took and that do not count.
    pub warmup: usize,
}

/// Median, spread and percentiles of times in ns; all 0 for none.
pub fn summarise(times: &[u64], stable: bool) -> Sample {
    let sorted = sorted(times);
    let median_ns = quantile(&sorted, 0.5);
    Sample {
        median_ns,
        mad_ns: deviation(&sorted, median_ns),
        p05_ns: quantile(&sorted, 0.05),
        p95_ns: quantile(&sorted, 0.95),
        count: sorted.len(),
        stable,
    }
}

fn sorted(times: &[u64]) -> Vec<u64> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted
}

/// Between the order statistics, linearly: Hyndman and Fan's type 7. 0 for none.
fn quantile(sorted: &[u64], part: f64) -> u64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0 };
    let at = part * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + ((high - low) as f64 * at.fract()).round() as u64
}

fn median(times: &[u64]) -> u64 {
    quantile(&sorted(times), 0.5)
}

/// Median absolute deviation from `centre`.
fn deviation(times: &[u64], centre: u64) -> u64 {
    let distances: Vec<u64> = times.iter().map(|t| t.abs_diff(centre)).collect();
    median(&distances)
}

/// One deviation of the median, ns.
fn median_uncertainty(times: &[u64]) -> f64 {
    if times.is_empty() {
        return f64::INFINITY;
    }
    let mad = deviation(times, median(times)) as f64;
    MEDIAN_DEVIATION * SIGMA_PER_MAD * mad / (times.len() as f64).sqrt()
}

/// Judges samples in the order in which they were taken.
pub fn judge(times: &[u64], options: &TimingOptions) -> Verdict {
    if times.len() < options.min_samples.max(1) {
        return Verdict::TooFew;
    }
    let centre = median(times) as f64;
    let floor = options.floor_ns as f64;
    let (first, second) = times.split_at(times.len() / 2);
    if !first.is_empty() {
        let gap = median(first).abs_diff(median(second)) as f64;
        let explained = 3.0 * median_uncertainty(first).hypot(median_uncertainty(second));
        if gap > (options.drift_tolerance * centre + explained).max(floor) {
            return Verdict::Drifting;
        }
    }
    if is_bimodal(times, (options.drift_tolerance * centre).max(floor)) {
        return Verdict::Bimodal;
    }
    if median_uncertainty(times) > (options.uncertainty * centre).max(floor) {
        return Verdict::Noisy;
    }
    Verdict::Stable
}

/// Whether the times fall into two clusters, each of a fifth of them at least, whose gap is wider
/// than `gap_ns` and than three times what either cluster spreads. A tail of slow outliers is none.
fn is_bimodal(times: &[u64], gap_ns: f64) -> bool {
    let sorted = sorted(times);
    let least = (sorted.len() / 5).max(2);
    if sorted.len() < 2 * least {
        return false;
    }
    (least..=sorted.len() - least).any(|cut| {
        let gap = (sorted[cut] - sorted[cut - 1]) as f64;
        let spread = |part: &[u64]| quantile(part, 0.75) - quantile(part, 0.25);
        let (low, high) = sorted.split_at(cut);
        gap > gap_ns && gap > 3.0 * spread(low).max(spread(high)) as f64
    })
}

/// Takes one sample after another and says when there are enough.
#[derive(Debug, Clone)]
pub struct Collector {
    options: TimingOptions,
    warmup: Vec<u64>,
    warm: bool,
    samples: Vec<u64>,
    spent_ns: u64,
    settled: bool,
}

impl Collector {
    /// A collector without samples.
    pub fn new(options: &TimingOptions) -> Self {
        let options = TimingOptions {
            window: options.window.max(1),
            max_samples: options.max_samples.max(options.min_samples).max(1),
            ..options.clone()
        };
        let warm = options.max_warmup == 0;
        Collector { options, warmup: Vec::new(), warm, samples: Vec::new(), spent_ns: 0, settled: false }
    }

    /// Takes the time of one run, `ns`, whose measuring took `cost_ns` all in all.
    pub fn push(&mut self, ns: u64, cost_ns: u64) {
        self.spent_ns = self.spent_ns.saturating_add(cost_ns);
        if self.warm {
            self.samples.push(ns);
            // The tests sort everything: do not run them at each of many samples.
            let n = self.samples.len();
            if n >= self.options.min_samples && (n < 32 || n.is_multiple_of(8)) {
                self.settled = judge(&self.samples, &self.options) == Verdict::Stable;
            }
        } else {
            self.warmup.push(ns);
            self.warm = self.is_warm();
        }
    }

    fn is_warm(&self) -> bool {
        let (n, window) = (self.warmup.len(), self.options.window);
        // A third of the time at most goes into warming up.
        let out_of_time = u128::from(self.spent_ns) * 3 >= self.options.time_limit.as_nanos();
        if n >= self.options.max_warmup || out_of_time {
            return true;
        }
        if n < 2 * window || !n.is_multiple_of(window) {
            return false;
        }
        let (before, last) = (median(&self.warmup[n - 2 * window..n - window]), median(&self.warmup[n - window..]));
        let tolerance = (self.options.warmup_tolerance * last as f64).max(self.options.floor_ns as f64);
        before.abs_diff(last) as f64 <= tolerance
    }

    /// Whether there are enough samples: the median is known well enough, or a limit is reached.
    pub fn done(&self) -> bool {
        let n = self.samples.len();
        let out_of_time = u128::from(self.spent_ns) >= self.options.time_limit.as_nanos();
        n >= self.options.min_samples.max(1) && (self.settled || out_of_time || n >= self.options.max_samples)
    }

    /// The measurement as it stands.
    pub fn finish(&self) -> Timing {
        let verdict = judge(&self.samples, &self.options);
        let sample = summarise(&self.samples, verdict == Verdict::Stable);
        Timing { sample, verdict, warmup: self.warmup.len() }
    }
}

/// Times `operation` by the monotonic clock. Each run gets what `prepare` makes, outside of the time;
/// what the operation returns is dropped outside of the time, too.
///
/// # Errors
/// The first that preparing or running returns.
pub fn measure<I, O, E>(
    options: &TimingOptions,
    mut prepare: impl FnMut() -> Result<I, E>,
    mut operation: impl FnMut(I) -> Result<O, E>,
) -> Result<Timing, E> {
    let mut collector = Collector::new(options);
    while !collector.done() {
        let begin = Instant::now();
        let input = prepare()?;
        let start = Instant::now();
        let output = operation(input)?;
        let ns = nanoseconds(start.elapsed());
        drop(output);
        collector.push(ns, nanoseconds(begin.elapsed()));
    }
    Ok(collector.finish())
}

/// A duration in whole ns; what exceeds 584 years counts as that.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "timing_tests.rs"]
mod tests;
