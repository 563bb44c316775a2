//! Points and sweeps: one piece of work, alone or beside other work, at one size or over sizes, within a
//! share of the time that there is.
//!
//! A point is measured as nvbandwidth does it: some copies to warm up, then samples of several copies
//! between two events, all queued before the first one starts; the median over samples counts. What runs
//! beside it is queued for longer than the timed work takes, and a sample during which it ended early is
//! taken again with more of it. Where time is short a sample has fewer copies, and the largest sizes are
//! left out last of all by what they would take.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_configs::hardware::details::{Test, TestStatus};
use optpipe_configs::hardware::{CopyPoint, Link};
use optpipe_kernels::rig::{Lane, Lap, Rig, RigError, Work};

use super::GpuOptions;
use crate::calibrate::{CalibrateError, Result, check, fit};
use crate::timing::{Collector, Timing, TimingOptions, Verdict, nanoseconds};

/// Pieces queued beside a timed lane, at most.
const MOST_BESIDE: usize = 400;
/// How much longer than was guessed first work beside a timed lane may become: it takes its time, too.
const MOST_LONGER: usize = 16;
/// Samples of a point taken again because what ran beside ended early, at most.
const MOST_AGAIN: usize = 8;
/// How often work is queued again because the host was too slow, at most.
const MOST_STALLS: usize = 2;

pub(super) struct Meter<'a> {
    pub(super) rig: &'a mut dyn Rig,
    pub(super) options: &'a GpuOptions,
    pub(super) tests: Vec<Test>,
    progress: &'a mut dyn FnMut(&str),
    cancel: &'a AtomicBool,
    /// Time of one piece alone, ns.
    alone: HashMap<(Work, usize), f64>,
    /// What is still to be measured, in weights: they share the time that is left.
    pending: f64,
}

/// What a point turned out to be.
struct Point {
    timing: Timing,
    /// Whether what was to run beside it did so in every sample.
    covered: bool,
}

impl<'a> Meter<'a> {
    pub(super) fn new(
        rig: &'a mut dyn Rig,
        options: &'a GpuOptions,
        pending: f64,
        progress: &'a mut dyn FnMut(&str),
        cancel: &'a AtomicBool,
    ) -> Self {
        Meter { rig, options, tests: Vec::new(), progress, cancel, alone: HashMap::new(), pending }
    }

    /// The part of the time left that work of this weight may take.
    fn share(&mut self, weight: f64) -> Duration {
        let left = self.options.budget.saturating_sub(self.rig.elapsed());
        let part = (weight / self.pending.max(weight)).min(1.0);
        self.pending = (self.pending - weight).max(0.0);
        left.mul_f64(part)
    }

    /// A link over sizes; `None`, with a test that says why, where the work cannot be timed.
    pub(super) fn sweep(&mut self, timed: Work, beside: &[Work], sizes: &[usize], weight: f64) -> Result<Option<Link>> {
        let name = name(timed, beside);
        (self.progress)(&format!("calibrating: {name}"));
        let share = self.share(weight);
        let began = self.rig.elapsed();
        let mut points = Vec::new();
        let mut unstable = None;
        let mut damaged = None;
        for (index, &bytes) in sizes.iter().enumerate() {
            let left = share.saturating_sub(self.rig.elapsed().saturating_sub(began));
            let ahead: usize = sizes[index..].iter().sum();
            let limit = left.mul_f64(bytes as f64 / ahead.max(1) as f64);
            let expected = points
                .last()
                .map(|last: &CopyPoint| last.time.median_ns as f64 * (bytes as f64 / last.bytes as f64).max(1.0));
            // A warm-up and the samples, of one copy each.
            let runs = (1 + self.options.timing.min_samples) as f64;
            let least = expected.map_or(0.0, |ns| runs * ns * (1 + beside.len()) as f64);
            if points.len() >= self.options.least_points && least > 2.0 * limit.as_nanos() as f64 {
                break;
            }
            let point = match self.verified(timed, beside, bytes, limit, expected, &mut damaged) {
                Ok(point) => point,
                Err(CalibrateError::Rig { error, .. }) => {
                    self.tests.push(failed(name, &error));
                    return Ok(None);
                }
                Err(other) => return Err(other),
            };
            if point.timing.verdict != Verdict::Stable {
                unstable = Some(format!("{} at {} KiB", point.timing.verdict, bytes >> 10));
            }
            if !point.covered {
                unstable = Some(format!("the work beside it ended early at {} KiB", bytes >> 10));
            }
            points.push(CopyPoint { bytes: bytes as u64, time: point.timing.sample });
        }
        let largest = points.last();
        let mut test = Test {
            name,
            status: TestStatus::Passed,
            reason: None,
            bytes_per_second: largest.map(|p| p.bytes as f64 / p.time.median_ns.max(1) as f64 * 1e9),
            spread: largest.map(|p| p.time.mad_ns as f64 / p.time.median_ns.max(1) as f64),
        };
        if let Some(reason) = damaged {
            (test.status, test.reason) = (TestStatus::Failed, Some(reason));
        } else if let Some(reason) = unstable {
            (test.status, test.reason) = (TestStatus::Unstable, Some(reason));
        }
        self.tests.push(test);
        Ok(Some(fit::fit(points)))
    }

    /// A point, with the data compared where nothing runs beside it.
    fn verified(
        &mut self,
        timed: Work,
        beside: &[Work],
        bytes: usize,
        limit: Duration,
        expected: Option<f64>,
        damaged: &mut Option<String>,
    ) -> Result<Point> {
        let at = |error| CalibrateError::Rig { work: timed, error };
        let compare = beside.is_empty();
        if compare {
            self.rig.scrub(timed, bytes).map_err(at)?;
        }
        let point = self.point(timed, beside, bytes, limit, expected)?;
        if compare && let Some(offset) = self.rig.verify(timed, bytes).map_err(at)? {
            let told = || format!("the data of copies of {} KiB arrived damaged, first at byte {offset}", bytes >> 10);
            damaged.get_or_insert_with(told);
        }
        Ok(point)
    }

    /// The time of one piece of work, ns, and how it went.
    fn point(
        &mut self,
        timed: Work,
        beside: &[Work],
        bytes: usize,
        limit: Duration,
        expected: Option<f64>,
    ) -> Result<Point> {
        let timing = TimingOptions { time_limit: limit, ..self.options.timing.clone() };
        let limit_ns = limit.as_nanos() as f64;
        let fitting = |ns: f64, most: usize, samples: f64| {
            ((limit_ns / (ns.max(1.0) * samples * (1 + beside.len()) as f64)) as usize).clamp(1, most)
        };
        let warmup = expected.map_or(self.options.warmup, |ns| fitting(ns, self.options.warmup, 5.0));
        let mut lanes = self.lanes(timed, beside, bytes, warmup, expected.unwrap_or(0.0));
        let first = self.race(lanes.0, &lanes.1)?;
        let mut each = first.ns as f64 / warmup as f64;
        // The samples, and some for what queueing takes.
        let samples = timing.min_samples as f64 + 0.5;
        lanes = self.lanes(timed, beside, bytes, fitting(each, self.options.copies, samples), each);
        let most: Vec<usize> = lanes.1.iter().map(|lane| (MOST_LONGER * lane.repeats).min(MOST_BESIDE)).collect();
        let mut collector = Collector::new(&timing);
        let (mut again, mut covered) = (0, true);
        while !collector.done() {
            check(self.cancel)?;
            let began = self.rig.elapsed();
            let lap = self.race(lanes.0, &lanes.1)?;
            if !lap.covered && again < MOST_AGAIN {
                again += 1;
                for (lane, &most) in lanes.1.iter_mut().zip(&most) {
                    lane.repeats = (2 * lane.repeats).min(most);
                }
                // Once the longest queue is not enough, the timed lane must be shorter.
                if lanes.1.iter().zip(&most).any(|(lane, &most)| lane.repeats == most) {
                    lanes.0.repeats = (lanes.0.repeats / 2).max(1);
                }
                continue;
            }
            covered &= lap.covered;
            each = lap.ns as f64 / lanes.0.repeats as f64;
            collector.push(each.round() as u64, nanoseconds(self.rig.elapsed().saturating_sub(began)));
        }
        let timing = collector.finish();
        if beside.is_empty() {
            self.alone.insert((timed, bytes), timing.sample.median_ns as f64);
        }
        Ok(Point { timing, covered })
    }

    fn lanes(&self, timed: Work, beside: &[Work], bytes: usize, repeats: usize, each: f64) -> (Lane, Vec<Lane>) {
        let lane = |work, repeats| Lane { work, bytes, repeats };
        let span = each * (repeats + 1) as f64;
        let enough = |&work: &Work| {
            let piece = self.alone.get(&(work, bytes)).copied().unwrap_or(each).max(1.0);
            // Half as much again, and two for the start.
            lane(work, ((1.5 * span / piece).ceil() as usize + 2).clamp(2, MOST_BESIDE))
        };
        (lane(timed, repeats), beside.iter().map(enough).collect())
    }

    fn race(&mut self, timed: Lane, beside: &[Lane]) -> Result<Lap> {
        let mut stalled = 0;
        loop {
            check(self.cancel)?;
            match self.rig.race(timed, beside) {
                Ok(lap) => return Ok(lap),
                // The first use of something may load it while the devices wait.
                Err(RigError::Stalled(_)) if stalled < MOST_STALLS => stalled += 1,
                Err(error) => return Err(CalibrateError::Rig { work: timed.work, error }),
            }
        }
    }

    /// Keeps a device busy without timing it: clocks and links that rest run slower, and take a while to wake.
    pub(super) fn wake(&mut self, work: Work, bytes: usize, time: Duration) -> Result<()> {
        let until = self.rig.elapsed() + time;
        while self.rig.elapsed() < until {
            self.race(Lane { work, bytes, repeats: 1 }, &[])?;
        }
        Ok(())
    }

    /// One point as a test of its own: time of one piece, ns, with its statistics.
    pub(super) fn single(&mut self, timed: Work, beside: &[Work], bytes: usize, weight: f64) -> Result<Option<Timing>> {
        let name = name(timed, beside);
        (self.progress)(&format!("calibrating: {name}"));
        let limit = self.share(weight);
        let point = match self.point(timed, beside, bytes, limit, self.alone.get(&(timed, bytes)).copied()) {
            Ok(point) => point,
            Err(CalibrateError::Rig { error, .. }) => {
                self.tests.push(failed(name, &error));
                return Ok(None);
            }
            Err(other) => return Err(other),
        };
        let sample = &point.timing.sample;
        let is_copy = !matches!(timed, Work::Product { .. });
        let reason = match point.timing.verdict {
            _ if !point.covered => Some("the work beside it ended early".to_owned()),
            Verdict::Stable => None,
            other => Some(other.to_string()),
        };
        self.tests.push(Test {
            name,
            status: if reason.is_none() { TestStatus::Passed } else { TestStatus::Unstable },
            reason,
            bytes_per_second: is_copy.then(|| bytes as f64 / sample.median_ns.max(1) as f64 * 1e9),
            spread: Some(sample.mad_ns as f64 / sample.median_ns.max(1) as f64),
        });
        Ok(Some(point.timing))
    }

    /// The time of one piece alone as it was measured, ns.
    pub(super) fn alone_ns(&self, work: Work, bytes: usize) -> Option<f64> {
        self.alone.get(&(work, bytes)).copied()
    }

    /// Gives up time that was set aside for work of this weight.
    pub(super) fn forgo(&mut self, weight: f64) {
        self.pending = (self.pending - weight).max(0.0);
    }
}

/// A test that could not be done.
pub(super) fn failed(name: String, error: &RigError) -> Test {
    let status = if matches!(error, RigError::Missing(_)) { TestStatus::Skipped } else { TestStatus::Failed };
    Test { name, status, reason: Some(error.to_string()), bytes_per_second: None, spread: None }
}

/// `offload of device 0 beside reload of device 0`.
pub(super) fn name(timed: Work, beside: &[Work]) -> String {
    if beside.is_empty() {
        return timed.to_string();
    }
    let beside: Vec<String> = beside.iter().map(ToString::to_string).collect();
    format!("{timed} beside {}", beside.join(" and "))
}
