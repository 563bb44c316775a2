//! Which relaxations to solve, and for which horizons.

use std::collections::BTreeMap;
use std::time::Instant;

use super::certificate::Certificate;
use super::model::{Known, Model, Scope};
use super::solver::{self, Limits};
use crate::problem::Problem;

/// Largest relaxation that is tried, columns: beyond, one takes minutes.
const MOST_COLUMNS: usize = 60_000;
/// The same, times the stages of a device: the memory rows have a term for each.
const MOST_COLUMNS_OF_CHUNKS: usize = 600_000;
/// Terms of a relaxation whose time says something about that of others.
const SMALL_TERMS: f64 = 20_000.0;
/// Points of the coarsest grid.
const FEWEST_POINTS: i64 = 60;
/// By how much the next grid is finer, at most.
const FINER: i64 = 2;
/// Steps looked at in each range.
const STEPS_TRIED: i64 = 64;
/// After so many groups of devices that proved nothing in a row, no more are tried with the same step.
const MOST_MISSES: usize = 2;
/// Relaxations of one scope, at most.
const MOST_HORIZONS: usize = 10;
/// Horizons closer than this share of each other are not told apart, unless it proves an optimum.
const RESOLUTION: f64 = 0.0005;

/// The first horizon goes this fraction of the gap above the bound, and no farther than that of the bound.
const BOLD: i64 = 4;
const MOST_BOLD: i64 = 16;
/// How the time of a relaxation grows with the terms of its rows.
const GROWTH: f64 = 1.3;
/// Seconds for one relaxation, for each term to the power [`GROWTH`], before any is solved.
const PACE: f64 = 1e-6;

/// The search for a better bound.
pub(super) struct Search<'a> {
    known: Known<'a>,
    limits: &'a Limits<'a>,
    /// Schedules end at multiples of this, ns.
    grain: i64,
    bound: i64,
    makespan: &'a (dyn Fn() -> i64 + Sync),
    /// Seconds for one relaxation, for each term of a row to the power [`GROWTH`].
    pace: f64,
    /// Whether a relaxation has proven anything.
    raised: bool,
}

/// Devices and a step to try.
struct Attempt {
    columns: usize,
    step_ns: i64,
    devices: Vec<usize>,
    is_all: bool,
}

/// What a relaxation told of a horizon.
enum Verdict {
    /// No schedule ends by it; some resource would have to be exceeded by that share.
    Refuted(f64),
    /// It has a solution, or its proof failed.
    Open,
    /// It would take longer than there is time.
    TooLarge,
    /// Time is up.
    Stopped,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        problem: &'a Problem,
        bound: i64,
        makespan: &'a (dyn Fn() -> i64 + Sync),
        limits: &'a Limits<'a>,
    ) -> Self {
        let grain = super::super::grain(problem).max(1);
        Search { known: Known::new(problem), limits, grain, bound, makespan, pace: PACE, raised: false }
    }

    /// Runs until time is up or nothing is left; `report` returns whether to go on.
    pub(super) fn run(mut self, report: &mut dyn FnMut(i64) -> bool) {
        // How many scopes of each step failed in a row.
        let mut misses: BTreeMap<i64, usize> = BTreeMap::new();
        for scope in self.scopes() {
            let before = self.bound;
            let in_a_row = misses.entry(scope.step_ns).or_default();
            if *in_a_row >= MOST_MISSES && !scope.is_all {
                continue;
            }
            if !self.scope(&scope, report) {
                return;
            }
            *in_a_row = if self.bound > before { 0 } else { *in_a_row + 1 };
        }
    }

    /// What to try, by what it costs: groups of devices that share channels, and all devices. Of the
    /// groups the last goes first, then the first: they often prove the most.
    fn scopes(&self) -> Vec<Attempt> {
        let mut sets = self.groups();
        sets.reverse();
        if let Some(first) = sets.pop() {
            sets.insert(sets.len().min(1), first);
        }
        if sets.len() > 1 {
            sets.push(sets.concat());
        }
        let all = sets.len() - 1;
        let mut attempts = Vec::new();
        for (i, devices) in sets.into_iter().enumerate() {
            for step_ns in self.steps() {
                let scope = Scope { horizon_ns: self.bound, step_ns, devices: devices.clone() };
                let columns = Model::size(&self.known, &scope);
                if columns <= MOST_COLUMNS {
                    attempts.push(Attempt { columns, step_ns, devices: devices.clone(), is_all: i == all });
                }
            }
        }
        // All devices seldom prove more than the best group does with a finer step.
        attempts.sort_by_key(|x| if x.is_all { 2 * x.columns } else { x.columns });
        attempts
    }

    /// Devices whose copies share channels, directly or through others.
    fn groups(&self) -> Vec<Vec<usize>> {
        let p = self.known.problem;
        let mut groups: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        for d in (0..p.devices).filter(|&d| p.stages_of(d).next().is_some()) {
            let copies = p.stages_of(d).any(|s| p.bytes.offloadable[s] > 0);
            let channels = if copies { vec![p.offload_channel[d], p.reload_channel[d]] } else { Vec::new() };
            let (joined, others): (Vec<_>, Vec<_>) =
                groups.into_iter().partition(|group| group.1.iter().any(|x| channels.contains(x)));
            groups = others;
            let mut group = (Vec::new(), channels);
            for (devices, channels) in joined {
                group.0.extend(devices);
                group.1.extend(channels);
            }
            group.0.push(d);
            groups.push(group);
        }
        groups.into_iter().map(|x| x.0).collect()
    }

    /// Steps worth trying, ns: the coarsest for each loss. A step counts an op as the whole number of
    /// steps that fit in it.
    fn steps(&self) -> Vec<i64> {
        let p = self.known.problem;
        let t = &p.time_ns;
        let times = |x: &[&Vec<i64>]| x.iter().flat_map(|x| x.iter().copied()).filter(|&x| x > 0).collect::<Vec<_>>();
        let queues =
            [times(&[&t.forward, &t.backward_input, &t.backward_weight]), times(&[&t.offload]), times(&[&t.reload])];
        let longest = queues.iter().flatten().copied().max().unwrap_or(1);
        let loss = |step: i64| {
            let of = |queue: &Vec<i64>| {
                let whole: i128 = queue.iter().map(|&x| i128::from(x)).sum();
                let lost: i128 = queue.iter().map(|&x| i128::from(x % step)).sum();
                if whole > 0 { lost as f64 / whole as f64 } else { 0.0 }
            };
            queues.iter().map(of).fold(0.0, f64::max)
        };
        // From coarse to fine, in each range the step that fits best; a grid of more points than columns are
        // allowed helps nobody.
        let finest = self.grain.max(self.bound / MOST_COLUMNS as i64);
        let mut steps = Vec::new();
        let mut coarsest = longest.min(self.bound / FEWEST_POINTS).max(finest);
        loop {
            let parts = (0..STEPS_TRIED).map(|i| coarsest - (coarsest - coarsest / FINER) * i / STEPS_TRIED);
            let candidates = parts.map(|x| (x / self.grain * self.grain).max(self.grain));
            let best = candidates.min_by(|&x, &y| loss(x).total_cmp(&loss(y)).then(y.cmp(&x)));
            steps.extend(best);
            if coarsest / FINER < finest || best.is_some_and(|x| x == self.grain) {
                break;
            }
            coarsest /= FINER;
        }
        steps.dedup();
        steps
    }

    /// Raises the bound as far as relaxations of one scope allow. Returns whether to go on at all.
    fn scope(&mut self, scope: &Attempt, report: &mut dyn FnMut(i64) -> bool) -> bool {
        // The least horizon that was not refuted.
        let mut failed = i64::MAX;
        // The last two refuted, with what they exceed.
        let mut refuted: Vec<(i64, f64)> = Vec::new();
        for _ in 0..MOST_HORIZONS {
            let makespan = (self.makespan)();
            if self.bound >= makespan {
                return false;
            }
            let open = failed.min(makespan);
            let resolution = ((RESOLUTION * self.bound as f64) as i64).max(scope.step_ns / 2).max(self.grain);
            if failed < i64::MAX && open - self.bound < resolution {
                return true;
            }
            // The excess falls about in a line; at first its slope is a guess that fits most problems.
            let guess = match refuted[..] {
                // One relaxation that proves nothing at the bound itself ends the scope; before any has proven
                // something, a bolder horizon gains more.
                [] if failed == i64::MAX && !self.raised => {
                    self.bound + ((open - self.bound) / BOLD).min(self.bound / MOST_BOLD)
                }
                [] => self.bound,
                [(horizon, excess)] => horizon.saturating_add((excess * horizon as f64) as i64),
                [.., (h0, e0), (h1, e1)] => {
                    let line = 0.95 * e1 * (h1 - h0) as f64 / (e0 - e1).max(1e-9);
                    h1.saturating_add(line.min(1.3 * e1 * h1 as f64) as i64)
                }
            };
            let middle = self.bound + (open - self.bound) / 2;
            let guess = if failed < i64::MAX { guess.min(middle) } else { guess };
            let horizon_ns = (guess.min(open - self.grain) / self.grain * self.grain).max(self.bound);
            match self.refute(&Scope { horizon_ns, step_ns: scope.step_ns, devices: scope.devices.clone() }) {
                Verdict::Stopped => return false,
                Verdict::TooLarge => return true,
                Verdict::Open => failed = horizon_ns,
                Verdict::Refuted(excess) => {
                    refuted.push((horizon_ns, excess));
                    self.raised = true;
                    self.bound = horizon_ns / self.grain * self.grain + self.grain;
                    if !report(self.bound) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn refute(&mut self, scope: &Scope) -> Verdict {
        if self.limits.reached() {
            return Verdict::Stopped;
        }
        let begun = Instant::now();
        let left = self.limits.deadline.saturating_duration_since(begun).as_secs_f64();
        // A horizon far above the bound has more columns than the bound itself.
        let columns = Model::size(&self.known, scope);
        let p = self.known.problem;
        let chunks = scope.devices.iter().map(|&d| p.stages_of(d).count()).max().unwrap_or(0);
        if columns > MOST_COLUMNS * 3 / 2 || columns.saturating_mul(chunks) > MOST_COLUMNS_OF_CHUNKS {
            return Verdict::TooLarge;
        }
        let model = Model::build(&self.known, scope);
        let terms: usize = model.rows.iter().map(|x| x.terms.len()).sum();
        let size = (terms as f64).powf(GROWTH);
        if self.pace * size > left {
            return Verdict::TooLarge;
        }
        let Some((multipliers, excess)) = solver::multipliers(&model, self.limits) else {
            return if self.limits.reached() { Verdict::Stopped } else { Verdict::Open };
        };
        let proven = Certificate::round(&multipliers).proves(&model);
        if !self.limits.reached() {
            // The time of a small one says little: most of it may be others' use of the machine.
            self.pace = begun.elapsed().as_secs_f64() / size.max(SMALL_TERMS.powf(GROWTH));
        }
        if proven {
            Verdict::Refuted(excess)
        } else if self.limits.reached() {
            Verdict::Stopped
        } else {
            Verdict::Open
        }
    }
}
