//! What a device holds over time, and what a channel carries: both can be asked about, and booked, in the
//! past as well as in the future.

/// Bytes held from each instant on. What changes at one instant does so in the order in which it was added,
/// so that what an op of no length allocates and frees again is seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Profile {
    steps: Vec<(i64, i64)>,
}

impl Profile {
    /// Nothing held, at any time.
    pub(super) fn clear(&mut self) {
        self.steps.clear();
        self.steps.push((i64::MIN, 0));
    }

    /// Holds so many bytes more, or less, from a time on.
    pub(super) fn add(&mut self, time: i64, bytes: i64) {
        if bytes == 0 {
            return;
        }
        let mut at = self.steps.len();
        while at > 0 && self.steps[at - 1].0 > time {
            at -= 1;
            self.steps[at].1 += bytes;
        }
        let before = at.checked_sub(1).map_or(0, |i| self.steps[i].1);
        self.steps.insert(at, (time, before + bytes));
    }

    /// The earliest time from `since` on from which no more than so many bytes are ever held; `None` where
    /// more are held in the end.
    pub(super) fn settles(&self, most: i64, since: i64) -> Option<i64> {
        let mut from = None;
        for &(time, held) in self.steps.iter().rev() {
            if held > most {
                break;
            }
            if time <= since {
                return Some(since);
            }
            from = Some(time);
        }
        from
    }
}

/// The copies of a channel, in the order of their starts.
#[derive(Debug, Clone, Default)]
pub(super) struct Timeline {
    booked: Vec<(i64, i64, u32)>,
}

impl Timeline {
    pub(super) fn clear(&mut self) {
        self.booked.clear();
    }

    /// The earliest start from `from` on of a copy so long.
    pub(super) fn earliest(&self, from: i64, length: i64) -> i64 {
        let first = self.booked.partition_point(|x| x.1 <= from);
        let mut start = from;
        for &(busy, end, _) in &self.booked[first..] {
            if start + length <= busy {
                break;
            }
            start = start.max(end);
        }
        start
    }

    /// The latest start of a copy so long that lies between `from` and `until` whole.
    pub(super) fn latest(&self, from: i64, until: i64, length: i64) -> Option<i64> {
        let mut end = until;
        let last = self.booked.partition_point(|x| x.0 < until);
        for &(busy, free, _) in self.booked[..last].iter().rev() {
            if end - length >= free.max(from) {
                break;
            }
            end = end.min(busy);
            if end - length < from {
                return None;
            }
        }
        (end - length >= from).then_some(end - length)
    }

    pub(super) fn book(&mut self, start: i64, length: i64, op: u32) {
        let at = self.booked.partition_point(|x| (x.0, x.1) <= (start, start + length));
        self.booked.insert(at, (start, start + length, op));
    }

    /// The copies in the order of their starts.
    pub(super) fn ops(&self) -> impl Iterator<Item = u32> + '_ {
        self.booked.iter().map(|x| x.2)
    }
}
