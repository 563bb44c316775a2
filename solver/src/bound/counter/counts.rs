//! Counts of started ops on a grid of times.

use std::ops::Range;

/// A count at a time: a number or a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    Fixed(i64),
    Column(usize),
}

/// How many ops of one kind at one stage have started, by time.
#[derive(Debug, Clone)]
pub(super) struct Counter {
    /// Before this, none, ns.
    pub(super) first: i64,
    /// From this on, all, ns.
    pub(super) last: i64,
    pub(super) step: i64,
    pub(super) columns: Range<usize>,
    pub(super) all: Count,
    /// Length of the op, ns.
    pub(super) time: i64,
}

impl Counter {
    /// At most the count at time `t`: that of the last grid point.
    pub(super) fn by(&self, t: i64) -> Count {
        if t < self.first {
            Count::Fixed(0)
        } else if t >= self.last {
            self.all
        } else {
            Count::Column(self.columns.start + ((t - self.first) / self.step) as usize)
        }
    }

    /// At least the count at time `t`: that of the next grid point.
    pub(super) fn upto(&self, t: i64) -> Count {
        if t < self.first {
            return Count::Fixed(0);
        }
        let i = ((t - self.first + self.step - 1) / self.step) as usize;
        if t >= self.last || i >= self.columns.len() { self.all } else { Count::Column(self.columns.start + i) }
    }

    /// Work done by time `t`, a bound from below or above: an op started at x has done as much as the time
    /// between t - p and t that is not before x, so that it is the count's integral over those.
    pub(super) fn work(&self, t: i64, above: bool, sign: i64) -> impl Iterator<Item = (Count, i64)> + '_ {
        let mut from = t - self.time;
        std::iter::from_fn(move || {
            if from >= t {
                return None;
            }
            let next = if from < self.first {
                self.first
            } else if from >= self.last {
                t
            } else {
                (from + self.step - (from - self.first) % self.step).min(self.last)
            };
            let count = if above && from >= self.first { self.upto(from + 1) } else { self.by(from) };
            let length = next.min(t) - from;
            from += length;
            Some((count, sign * length))
        })
    }

    pub(super) fn times(&self) -> impl Iterator<Item = (i64, usize)> + '_ {
        self.columns.clone().enumerate().map(|(i, column)| (self.first + i as i64 * self.step, column))
    }
}
