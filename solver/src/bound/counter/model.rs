//! The rows: counts of started ops on a grid of times.

use std::collections::BTreeMap;

use super::super::heads::Heads;
use super::counts::{Count, Counter};
use crate::problem::Problem;
use crate::schedule::OpKind;

/// What is known about a problem before any horizon is tried.
pub(super) struct Known<'a> {
    pub(super) problem: &'a Problem,
    pub(super) heads: Heads,
    pub(super) tails: Heads,
    /// Time of B, with W where they are fused.
    block: Vec<i64>,
}

impl<'a> Known<'a> {
    pub(super) fn new(problem: &'a Problem) -> Self {
        let t = &problem.time_ns;
        let w = |s: usize| if problem.split_backward { 0 } else { t.backward_weight[s] };
        Known {
            problem,
            heads: Heads::forwards(problem),
            tails: Heads::backwards(problem),
            block: (0..problem.stages()).map(|s| t.backward_input[s] + w(s)).collect(),
        }
    }

    /// Least time from the end of F(from) to the start of F(to).
    fn way_down(&self, from: usize, to: usize) -> i64 {
        let p = self.problem;
        (from..to).map(|x| p.hop_forward(x) + if x > from { p.time_ns.forward[x] } else { 0 }).sum()
    }

    /// Least time from the end of B(from), W where they are fused, to the start of B(to).
    fn way_up(&self, from: usize, to: usize) -> i64 {
        let p = self.problem;
        (to..from).map(|x| p.hop_backward(x) + if x > to { self.block[x] } else { 0 }).sum()
    }

    /// Least time from the end of F(s) to the start of B(s).
    fn way_back(&self, s: usize) -> i64 {
        let last = self.problem.stages() - 1;
        if s == last {
            return 0;
        }
        self.way_down(s, last) + self.problem.time_ns.forward[last] + self.block[last] + self.way_up(last, s)
    }
}

/// Which relaxation: the horizon, how fine its grid is, and what of the problem is in it.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// The makespan to refute, ns.
    pub(super) horizon_ns: i64,
    /// Distance of grid points, ns; at least 1.
    pub(super) step_ns: i64,
    /// The devices whose queues, channels and memories count; the stages of others are delays.
    pub(super) devices: Vec<usize>,
}

/// The counters of a stage.
struct Stage {
    stage: usize,
    f: Counter,
    b: Counter,
    /// None where W is fused to B.
    w: Option<Counter>,
    copies: Option<Copies>,
}

struct Copies {
    o: Counter,
    r: Counter,
    /// Forwards of microbatches that are never offloaded, on the grid of F.
    kept: Counter,
}

/// `Σ coefficient · column <= most`.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) terms: Vec<(usize, i64)>,
    pub(super) most: i64,
    /// What it is divided by for floating point.
    pub(super) norm: i64,
    /// The limit of a resource, by shares of which it may be exceeded in the search for a contradiction;
    /// 0 for other rows.
    pub(super) limit: i64,
}

impl Row {
    fn order(most: i64) -> Row {
        Row { terms: Vec::new(), most, norm: 1, limit: 0 }
    }
}

/// What a column counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Ops of a kind at a stage that have started by a time, ns.
    Started(OpKind, usize, i64),
    /// Those F at a stage whose microbatch is not offloaded there.
    Kept(usize, i64),
    /// Microbatches that are offloaded at a stage.
    Offloaded(usize),
    /// Microbatches that are not.
    Resident(usize),
    /// Time for which a queue has stood idle between two times, ns.
    Idle(Queue, i64, i64),
}

/// A queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// The compute queue of a device.
    Compute(usize),
    /// A channel.
    Channel(usize),
}

/// The relaxation: integer columns within bounds, and rows. Every legal schedule within the horizon gives
/// a solution.
pub(super) struct Model {
    /// Least and most of each column.
    pub(super) columns: Vec<(i64, i64)>,
    /// What a column's values are counted in for floating point.
    pub(super) units: Vec<i64>,
    /// By which tests hold schedules against the rows.
    #[cfg(test)]
    pub(super) meanings: Vec<Meaning>,
    pub(super) rows: Vec<Row>,
}

impl Model {
    pub(super) fn build(known: &Known<'_>, scope: &Scope) -> Model {
        let mut build = Build {
            known,
            scope,
            columns: Vec::new(),
            units: Vec::new(),
            #[cfg(test)]
            meanings: Vec::new(),
            rows: Vec::new(),
        };
        let stages = build.counters();
        build.order(&stages);
        build.queues(&stages);
        build.memory(&stages);
        Model {
            columns: build.columns,
            units: build.units,
            #[cfg(test)]
            meanings: build.meanings,
            rows: build.rows,
        }
    }

    /// Columns of a scope, without building it: an estimate from above.
    pub(super) fn size(known: &Known<'_>, scope: &Scope) -> usize {
        let p = known.problem;
        let kinds = |s: usize| 2 + usize::from(p.split_backward) + 2 * usize::from(p.bytes.offloadable[s] > 0);
        let stages: usize = scope.devices.iter().flat_map(|&d| p.stages_of(d)).map(kinds).sum();
        stages * (scope.horizon_ns / scope.step_ns + 1) as usize
    }
}

struct Build<'a> {
    known: &'a Known<'a>,
    scope: &'a Scope,
    columns: Vec<(i64, i64)>,
    units: Vec<i64>,
    #[cfg(test)]
    meanings: Vec<Meaning>,
    rows: Vec<Row>,
}

/// A counter to be made: when its ops can start.
struct Times<'a> {
    /// Length of the op, ns.
    time: i64,
    /// Earliest start of the k-th op, ascending with k, ns.
    head: &'a dyn Fn(usize) -> i64,
    /// Latest start of the k-th op from the last, descending with k, ns.
    late: &'a dyn Fn(usize) -> i64,
    /// The count in the end.
    all: Count,
}

impl Build<'_> {
    /// Adds a row of a kind, `Σ coefficient · count <= most`.
    fn row(&mut self, counts: impl IntoIterator<Item = (Count, i64)>, kind: Row) {
        let mut most = i128::from(kind.most);
        let mut terms: Vec<(usize, i64)> = Vec::new();
        for (count, coefficient) in counts {
            match count {
                Count::Fixed(value) => most -= i128::from(value) * i128::from(coefficient),
                Count::Column(column) => terms.push((column, coefficient)),
            }
        }
        terms.sort_unstable();
        terms.dedup_by(|x, kept| {
            let same = x.0 == kept.0;
            if same {
                kept.1 += x.1;
            }
            same
        });
        terms.retain(|x| x.1 != 0);
        let reach = |&(column, c): &(usize, i64)| {
            let (low, high) = self.columns[column];
            i128::from(c) * i128::from(if c > 0 { high } else { low })
        };
        // What the bounds of the columns imply needs no row; what is too large for one is left out.
        if terms.iter().map(reach).sum::<i128>() > most
            && let Ok(most) = i64::try_from(most)
        {
            self.rows.push(Row { terms, most, ..kind });
        }
    }

    fn column(&mut self, low: i64, high: i64, meaning: Meaning) -> usize {
        self.columns.push((low, high));
        self.units.push(if matches!(meaning, Meaning::Idle(..)) { self.scope.step_ns } else { 1 });
        #[cfg(test)]
        self.meanings.push(meaning);
        self.columns.len() - 1
    }

    fn counter(&mut self, times: Times<'_>, meaning: &dyn Fn(i64) -> Meaning) -> Counter {
        let Times { time, head, late, all } = times;
        let m = self.known.problem.microbatches;
        let (first, last, step) = (head(0), late(0), self.scope.step_ns);
        let start = self.columns.len();
        let (mut low, mut high) = (0, 0);
        let mut t = first;
        while t < last {
            while high < m && head(high) <= t {
                high += 1;
            }
            // All but those, counted from the last, that may start later.
            while low < m && late(m - 1 - low) <= t {
                low += 1;
            }
            let least = if matches!(all, Count::Fixed(_)) { low as i64 } else { 0 };
            self.column(least, high as i64, meaning(t));
            t += step;
        }
        let counter = Counter { first, last, step, columns: start..self.columns.len(), all, time };
        // Counts do not fall.
        let columns: Vec<usize> = counter.columns.clone().collect();
        for pair in columns.windows(2) {
            self.row([(Count::Column(pair[0]), 1), (Count::Column(pair[1]), -1)], Row::order(0));
        }
        if let (Some(&column), Count::Column(_)) = (columns.last(), all) {
            self.row([(Count::Column(column), 1), (all, -1)], Row::order(0));
        }
        counter
    }

    fn counters(&mut self) -> Vec<Stage> {
        let known = self.known;
        let (p, heads, tails) = (known.problem, &known.heads, &known.tails);
        let (m, t, horizon) = (p.microbatches, &p.time_ns, self.scope.horizon_ns);
        let whole = Count::Fixed(m as i64);
        let mut stages = Vec::new();
        for s in (0..p.stages()).filter(|&s| self.scope.devices.contains(&p.placement[s])) {
            let at = |k: usize| s * m + k;
            let (f, b, w) = (t.forward[s], t.backward_input[s], t.backward_weight[s]);
            let started = |kind: OpKind| move |t: i64| Meaning::Started(kind, s, t);
            let (head_f, head_b, head_w) =
                (|k: usize| heads.f[at(k)], |k: usize| heads.b[at(k)], |k: usize| heads.w[at(k)]);
            let late_f = |k: usize| horizon - tails.f[at(k)] - f;
            let late_w = |k: usize| horizon - tails.w[at(k)] - w;
            let late_b = |k: usize| {
                let late = horizon - tails.b[at(k)] - b;
                if p.split_backward { late } else { late.min(late_w(k) - b) }
            };
            let times = Times { time: f, head: &head_f, late: &late_f, all: whole };
            let f_counter = self.counter(times, &started(OpKind::F));
            let times = Times { time: known.block[s], head: &head_b, late: &late_b, all: whole };
            let b_counter = self.counter(times, &started(OpKind::B));
            let w_counter = p.split_backward.then(|| {
                let times = Times { time: w, head: &head_w, late: &late_w, all: whole };
                self.counter(times, &started(OpKind::W))
            });
            let copies = (p.bytes.offloadable[s] > 0).then(|| {
                let all = Count::Column(self.column(0, m as i64, Meaning::Offloaded(s)));
                let resident = Count::Column(self.column(0, m as i64, Meaning::Resident(s)));
                self.row([(all, 1), (resident, 1)], Row::order(m as i64));
                let (o, r) = (t.offload[s], t.reload[s]);
                let times = Times { time: f, head: &head_f, late: &late_f, all: resident };
                let kept = self.counter(times, &|t| Meaning::Kept(s, t));
                let (head, late) = (|k: usize| head_f(k) + f, |k: usize| late_b(k) - r - o);
                let o_counter = self.counter(Times { time: o, head: &head, late: &late, all }, &started(OpKind::O));
                let (head, late) = (|k: usize| head_f(k) + f + o, |k: usize| late_b(k) - r);
                let r_counter = self.counter(Times { time: r, head: &head, late: &late, all }, &started(OpKind::R));
                Copies { o: o_counter, r: r_counter, kept }
            });
            stages.push(Stage { stage: s, f: f_counter, b: b_counter, w: w_counter, copies });
        }
        stages
    }

    /// The k-th `after` starts no earlier than `lag` past the end of the k-th `before`.
    fn follows(&mut self, before: &Counter, after: &Counter, lag: i64) {
        for (t, column) in after.times() {
            self.row([(Count::Column(column), 1), (before.upto(t - before.time - lag), -1)], Row::order(0));
        }
    }

    fn order(&mut self, stages: &[Stage]) {
        let known = self.known;
        for pair in stages.windows(2) {
            let (x, y) = (&pair[0], &pair[1]);
            self.follows(&x.f, &y.f, known.way_down(x.stage, y.stage));
            self.follows(&y.b, &x.b, known.way_up(y.stage, x.stage));
        }
        for x in stages {
            self.follows(&x.f, &x.b, known.way_back(x.stage));
            if let Some(w) = &x.w {
                self.follows(&x.b, w, 0);
            }
            if let Some(copies) = &x.copies {
                self.offloads(x, copies);
            }
        }
    }

    /// What ties copies to the forwards and backwards of their stage.
    fn offloads(&mut self, x: &Stage, copies: &Copies) {
        let (f, Copies { o, r, kept }) = (&x.f, copies);
        // The F of those that are offloaded, N_F - X, do not fall in number.
        let columns = f.times().zip(kept.times()).map(|((_, f), (_, kept))| (Count::Column(f), Count::Column(kept)));
        let counts: Vec<(Count, Count)> = columns.chain([(f.all, kept.all)]).collect();
        let mut before = (Count::Fixed(0), Count::Fixed(0));
        for &(f, kept) in &counts {
            self.row([(before.0, 1), (before.1, -1), (f, -1), (kept, 1)], Row::order(0));
            before = (f, kept);
        }
        for (t, column) in o.times() {
            let ready = t - f.time;
            self.row([(Count::Column(column), 1), (f.upto(ready), -1), (kept.upto(ready), 1)], Row::order(0));
        }
        self.follows(o, r, 0);
        let way = f.time + self.known.way_back(x.stage);
        for (t, column) in x.b.times() {
            let counts = [(Count::Column(column), 1), (r.upto(t - r.time), -1), (kept.upto(t - way), -1)];
            self.row(counts, Row::order(0));
        }
        self.row([(x.b.all, 1), (r.all, -1), (kept.all, -1)], Row::order(0));
    }

    /// One op at a time.
    fn queue(&mut self, queue: Queue, counters: &[&Counter]) {
        let counters: Vec<&Counter> = counters.iter().copied().filter(|x| x.time > 0).collect();
        let mut times: Vec<i64> = counters.iter().flat_map(|x| x.times().map(|x| x.0)).collect();
        times.sort_unstable();
        times.dedup();
        for &t in &times {
            self.row(
                counters.iter().flat_map(|x| [(x.by(t), 1), (x.upto(t - x.time), -1)]),
                Row { norm: 1, limit: 1, ..Row::order(1) },
            );
        }
        let step = self.scope.step_ns;
        let Some(first) = counters.iter().map(|x| x.first).min() else { return };
        if counters.iter().any(|x| x.time % step > 0 || (x.first - first) % step > 0) {
            self.idle(queue, &counters, first);
        }
    }

    /// The time for which a queue has stood idle: that, and the work done, make the time gone. Where
    /// lengths are not multiples of the step, this keeps what the rows above lose from adding up.
    fn idle(&mut self, queue: Queue, counters: &[&Counter], first: i64) {
        let end = counters.iter().map(|x| x.last + x.time).max().unwrap_or(first);
        let certain: i64 = counters
            .iter()
            .map(|x| match x.all {
                Count::Fixed(all) => all * x.time,
                Count::Column(_) => 0,
            })
            .sum();
        let mut before = None;
        let mut t = first + self.scope.step_ns;
        while t < end {
            let most = (t - first).min(end - first - certain).max(0);
            let column = Count::Column(self.column(0, most, Meaning::Idle(queue, first, t)));
            if let Some(before) = before {
                self.row([(before, 1), (column, -1)], Row::order(0));
            }
            let kind = || Row { norm: self.scope.step_ns, limit: t - first, ..Row::order(0) };
            let least = counters.iter().flat_map(|x| x.work(t, false, 1));
            self.row(least.chain([(column, 1)]), Row { most: t - first, ..kind() });
            let most = counters.iter().flat_map(|x| x.work(t, true, -1));
            self.row(most.chain([(column, -1)]), Row { most: first - t, ..kind() });
            before = Some(column);
            t += self.scope.step_ns;
        }
    }

    fn queues(&mut self, stages: &[Stage]) {
        let p = self.known.problem;
        let mut channels: BTreeMap<usize, Vec<&Counter>> = BTreeMap::new();
        for &d in &self.scope.devices {
            let own = || stages.iter().filter(|x| p.placement[x.stage] == d);
            let counters: Vec<&Counter> = own().flat_map(|x| [&x.f, &x.b].into_iter().chain(&x.w)).collect();
            self.queue(Queue::Compute(d), &counters);
            for copies in own().filter_map(|x| x.copies.as_ref()) {
                channels.entry(p.offload_channel[d]).or_default().push(&copies.o);
                channels.entry(p.reload_channel[d]).or_default().push(&copies.r);
            }
        }
        for (&channel, counters) in &channels {
            self.queue(Queue::Channel(channel), counters);
        }
    }

    fn memory(&mut self, stages: &[Stage]) {
        for &d in &self.scope.devices {
            let own: Vec<&Stage> = stages.iter().filter(|x| self.known.problem.placement[x.stage] == d).collect();
            let mut times: Vec<i64> = Vec::new();
            for x in &own {
                times.extend(x.f.times().map(|x| x.0));
                times.extend(x.copies.iter().flat_map(|x| x.r.times().map(|x| x.0)));
            }
            times.sort_unstable();
            times.dedup();
            for unit in units(self.known.problem, d) {
                for &t in &times {
                    self.memory_row(&own, d, unit, t);
                }
            }
        }
    }

    /// What the device holds at a time, after its frees and allocations, in units rounded down.
    fn memory_row(&mut self, own: &[&Stage], device: usize, unit: i64, t: i64) {
        let p = self.known.problem;
        let room = (p.bytes.capacity[device] - p.bytes.r#static[device]) / unit;
        let mut counts = Vec::new();
        for x in own {
            let [full, rest, context] = states(p, x.stage).map(|size| size / unit);
            let b_end = t - p.time_ns.backward_input[x.stage];
            let w_end = match &x.w {
                Some(w) => w.upto(t - w.time),
                None => x.b.upto(t - x.b.time),
            };
            counts.extend([(x.f.by(t), full), (x.b.upto(b_end), context - full), (w_end, -context)]);
            if let Some(copies) = &x.copies {
                counts.push((copies.o.upto(t - copies.o.time), rest - full));
                counts.push((copies.r.by(t), full - rest));
            }
        }
        self.row(counts, Row { norm: room.max(1), limit: room.max(1), ..Row::order(room) });
    }
}

/// What a microbatch holds at a stage: between F and B, offloaded, and between B and W, bytes.
fn states(p: &Problem, s: usize) -> [i64; 3] {
    let full = p.bytes.activation[s];
    [full, full - p.bytes.offloadable[s], p.bytes.weight_context[s]]
}

/// Largest room of a device in units: keeps the coefficients small enough for floating point, at a loss
/// of one part in this many.
const MOST_UNITS: i64 = 1 << 16;

/// Units in which a device's memory is counted. Things that fit in the room also fit if every size, and
/// then the room, is rounded down to a multiple of any unit.
fn units(p: &Problem, device: usize) -> Vec<i64> {
    let room = p.bytes.capacity[device] - p.bytes.r#static[device];
    let mut sizes: Vec<i64> = p.stages_of(device).flat_map(|s| states(p, s)).filter(|&x| x > 0).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let divisor = sizes.iter().copied().fold(0, super::super::gcd);
    if divisor == 0 {
        return Vec::new();
    }
    let fine = divisor.max(room / MOST_UNITS);
    let mut units = vec![fine];
    let share = |size: i64, unit: i64| (i128::from(size / unit), i128::from((room / unit).max(1)));
    for unit in sizes.iter().copied().chain((2..9).map(|k| room / k + 1)) {
        // Of use only if some size takes a greater share of the room than in the units before.
        let greater = |&size: &i64| {
            let (x, room_x) = share(size, unit);
            units.iter().all(|&other| {
                let (y, room_y) = share(size, other);
                x * room_y > y * room_x
            })
        };
        if room / unit > 0 && sizes.iter().any(greater) {
            units.push(unit);
        }
    }
    units
}
