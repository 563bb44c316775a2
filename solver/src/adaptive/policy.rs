//! What a constructed schedule depends on besides the problem.

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use super::periodic::Pattern;

/// Parameters of a construction. All are ratios or counts, so that one set fits problems of any size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Policy {
    /// Microbatches in flight at a stage, as a multiple of the number that keeps the pipeline busy:
    /// the time from F to the end of B over the time that the busiest device needs a microbatch.
    pub(crate) in_flight: f64,
    /// So many more in flight at every stage.
    pub(crate) extra: usize,
    /// Below this share of the microbatches in flight F goes before B, else B before F.
    pub(crate) forward_first: f64,
    /// Microbatches go through the chunks of a device in groups of this many.
    pub(crate) group: usize,
    /// W waiting on the device of the first stage before W goes first.
    pub(crate) weights_first: f64,
    /// The same on the device of the last stage; in between it goes linearly.
    pub(crate) weights_last: f64,
    /// No W starts if a B or F is known to arrive within this share of its time.
    pub(crate) weight_patience: f64,
    /// No F starts if a B is known to arrive within this share of its time.
    pub(crate) forward_patience: f64,
    /// Share of what could be offloaded that the compute order counts as resident: 1 plans without
    /// offloading, 0 as if everything were offloaded.
    pub(crate) resident: f64,
    /// Only this many first stages of each device count as less than resident: the ones whose activations
    /// live longest (selective offload, Wan et al. 2025, PipeOffload).
    pub(crate) chunks: usize,
    /// The pattern that the compute order repeats; without one, list scheduling makes it.
    pub(crate) pattern: Option<Pattern>,
    /// How copies are chosen; with a pattern, when the compute order is known.
    pub(crate) copying: Copying,
    /// With a timetable: so many reloads of a device are booked at a time.
    pub(crate) ahead: usize,
    /// With a timetable: reloads are booked as late as can be, else as early.
    pub(crate) late: bool,
    /// Factors of the microbatches in flight, for each quarter of a device's chunks.
    pub(crate) quarters: [f64; 4],
    /// F of later chunks go first, whatever their group.
    pub(crate) deep_first: bool,
    /// With a timetable: W goes before an F that would have to wait for an offload.
    pub(crate) weights_before: bool,
    /// With paced copies, so many of the last microbatches stay.
    pub(crate) kept: usize,
    /// Share of the memory kept free for reloading ahead of need.
    pub(crate) spare: f64,
    /// What lives longer than so many times its two copies is offloaded at once, needed or not.
    pub(crate) eager: f64,
    /// Reloads are moved ahead of their B by up to so many times their length.
    pub(crate) prefetch: f64,
    /// How a channel chooses among copies that are ready.
    pub(crate) copies: CopyRule,
}

/// When copies are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copying {
    /// When the compute order is known ([`super::evict`]).
    After,
    /// With the compute order, at the pace of the channels ([`super::copies`]).
    Paced,
    /// With the compute order, in a timetable that is open towards the past ([`super::timetable`]).
    Timetable,
}

/// How a channel chooses among copies that are ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyRule {
    /// The one that has been ready the longest.
    FirstReady,
    /// Reloads before offloads.
    ReloadFirst,
    /// Offloads before reloads.
    OffloadFirst,
    /// By the time at which the compute order alone would want it.
    Due,
}

impl Policy {
    /// One microbatch at a time, everything offloaded that must be.
    pub(crate) const SERIAL: Policy = Policy {
        in_flight: 0.0,
        extra: 0,
        forward_first: 0.0,
        group: 1,
        weights_first: 0.0,
        weights_last: 0.0,
        weight_patience: 0.0,
        forward_patience: 0.0,
        resident: 0.0,
        chunks: usize::MAX,
        pattern: None,
        copying: Copying::After,
        ahead: 1,
        late: false,
        weights_before: true,
        quarters: [1.0; 4],
        deep_first: false,
        kept: 0,
        spare: 0.0,
        eager: f64::INFINITY,
        prefetch: 1.0,
        copies: CopyRule::Due,
    };

    /// A fixed set that covers the kinds of schedule known to be good, the likeliest first.
    pub(crate) fn grid(devices: usize) -> Vec<Policy> {
        let base = Policy {
            in_flight: 1.5,
            extra: 1,
            forward_first: 0.0,
            group: devices,
            weights_first: 0.0,
            weights_last: 1e9,
            weight_patience: 0.0,
            forward_patience: 0.0,
            resident: 1.0,
            chunks: usize::MAX,
            pattern: None,
            copying: Copying::After,
            ahead: 1,
            late: false,
            weights_before: true,
            quarters: [1.0; 4],
            deep_first: false,
            kept: 1,
            spare: 0.0,
            eager: f64::INFINITY,
            prefetch: 2.0,
            copies: CopyRule::Due,
        };
        let mut grid = Vec::new();
        for (resident, chunks, copying) in [
            (1.0, usize::MAX, Copying::After),
            (0.5, usize::MAX, Copying::Paced),
            (0.0, 1, Copying::After),
            (1.0, usize::MAX, Copying::Timetable),
        ] {
            for in_flight in [1.5, 1.0, 2.5] {
                for (group, forward_first) in
                    [(devices, 0.0), (1, 0.0), (2, 0.0), (devices, 1.0), (4, 0.5), (2 * devices, 0.5)]
                {
                    grid.push(Policy { resident, chunks, copying, in_flight, group, forward_first, ..base });
                }
            }
        }
        // Interleave the kinds, so that the first few sets differ.
        let part = grid.len() / 4;
        (0..part).flat_map(|i| (0..4).map(move |k| k * part + i)).map(|i| grid[i]).collect()
    }

    /// The sets of PipeOffload (Wan et al., arXiv 2503.01328): group sizes, numbers of chunks that are
    /// offloaded whole as soon as their F ends, microbatches in flight.
    pub(crate) fn pipe_offload(devices: usize, chunks: usize) -> impl Iterator<Item = Policy> {
        let mut groups = vec![1, 2, devices.div_ceil(2), devices, 2 * devices];
        groups.sort_unstable();
        groups.dedup();
        groups.into_iter().flat_map(move |group| {
            (0..=chunks).flat_map(move |off| {
                [1.0, 1.5, 2.5].map(|in_flight| Policy {
                    in_flight,
                    extra: 1,
                    group,
                    weights_last: 1e9,
                    resident: 1.0,
                    chunks: off,
                    copying: if off > 0 { Copying::Paced } else { Copying::After },
                    eager: 0.0,
                    prefetch: 2.0,
                    ..Policy::SERIAL
                })
            })
        })
    }

    /// Sets that differ in how offloads are added to a given compute order.
    pub(crate) fn completions() -> impl Iterator<Item = Policy> {
        use CopyRule::{Due, FirstReady};
        [Due, FirstReady].into_iter().flat_map(|copies| {
            [(0.0, 1.0), (0.0, 2.0), (0.25, 2.0), (0.0, 4.0)].map(|(spare, prefetch)| Policy {
                copies,
                spare,
                prefetch,
                ..Policy::SERIAL
            })
        })
    }

    /// A random set.
    pub(crate) fn random(rng: &mut Pcg64Mcg, devices: usize) -> Policy {
        let weights = |rng: &mut Pcg64Mcg| match rng.random_range(0..4) {
            0 => 0.0,
            1 => 1e9,
            _ => rng.random::<f64>() * 2.0 * devices as f64,
        };
        let patience = |rng: &mut Pcg64Mcg| if rng.random::<bool>() { 0.0 } else { rng.random::<f64>() };
        let quarters = |rng: &mut Pcg64Mcg| {
            let tilt = rng.random::<f64>() - 0.5;
            match rng.random_range(0..4) {
                0 | 1 => [1.0; 4],
                2 => [1.0 + tilt, 1.0 + tilt / 3.0, 1.0 - tilt / 3.0, 1.0 - tilt],
                _ => [0; 4].map(|_| 0.5 + rng.random::<f64>()),
            }
        };
        let groups = [1, 2, 3, 4, devices, 2 * devices, devices.div_ceil(2)];
        Policy {
            in_flight: 0.3 + 2.7 * rng.random::<f64>(),
            extra: rng.random_range(0..3),
            forward_first: [0.0, 1.0, rng.random::<f64>()][rng.random_range(0..3)],
            group: if rng.random() {
                groups[rng.random_range(0..groups.len())]
            } else {
                rng.random_range(1..=2 * devices)
            },
            weights_first: weights(rng),
            weights_last: weights(rng),
            weight_patience: patience(rng),
            forward_patience: patience(rng),
            resident: [0.0, 1.0, rng.random::<f64>(), rng.random::<f64>()][rng.random_range(0..4)],
            chunks: if rng.random() { usize::MAX } else { rng.random_range(1..=4) },
            pattern: (rng.random_range(0..8) == 0).then(|| Pattern::random(rng, devices)),
            copying: Copying::random(rng),
            ahead: rng.random_range(1..5),
            late: rng.random(),
            weights_before: rng.random(),
            quarters: quarters(rng),
            deep_first: rng.random_range(0..4) == 0,
            kept: rng.random_range(0..2 + devices / 2),
            spare: if rng.random::<bool>() { 0.0 } else { 0.5 * rng.random::<f64>() },
            eager: if rng.random() { f64::INFINITY } else { 6.0 * rng.random::<f64>() },
            prefetch: 3.0 * rng.random::<f64>(),
            copies: CopyRule::random(rng),
        }
    }

    /// The same with a few parameters changed.
    pub(crate) fn mutate(mut self, rng: &mut Pcg64Mcg, devices: usize) -> Policy {
        if let Some(pattern) = self.pattern
            && rng.random()
        {
            self.pattern = Some(pattern.mutate(rng, devices));
            return self;
        }
        for _ in 0..rng.random_range(1..4) {
            let other = Policy::random(rng, devices);
            let scale = 0.7 + 0.6 * rng.random::<f64>();
            match rng.random_range(0..23) {
                0 => self.in_flight = (self.in_flight * scale).max(0.1),
                1 => self.extra = other.extra,
                2 => self.forward_first = other.forward_first,
                3 => self.group = other.group,
                4 => self.weights_first = other.weights_first,
                5 => self.weights_last = other.weights_last,
                6 => self.weight_patience = other.weight_patience,
                7 => self.forward_patience = other.forward_patience,
                8 => self.resident = (self.resident + 0.2 * (rng.random::<f64>() - 0.5)).clamp(0.0, 1.0),
                9 => self.spare = other.spare,
                10 => self.prefetch = other.prefetch,
                11 => self.chunks = other.chunks,
                12 => self.eager = other.eager,
                13 => self.copying = other.copying,
                18 => self.quarters = other.quarters,
                19 => self.quarters[rng.random_range(0..4)] *= scale,
                20 => self.deep_first = other.deep_first,
                15 => self.ahead = other.ahead,
                16 => self.late = other.late,
                17 => self.weights_before = other.weights_before,
                14 => self.kept = other.kept,
                21 => self.pattern = other.pattern,
                _ => self.copies = other.copies,
            }
        }
        self
    }
}

impl Copying {
    fn random(rng: &mut Pcg64Mcg) -> Copying {
        use Copying::{After, Paced, Timetable};
        [After, Paced, Timetable, Timetable][rng.random_range(0..4)]
    }
}

impl CopyRule {
    fn random(rng: &mut Pcg64Mcg) -> CopyRule {
        use CopyRule::{Due, FirstReady, OffloadFirst, ReloadFirst};
        [FirstReady, ReloadFirst, OffloadFirst, Due][rng.random_range(0..4)]
    }
}
