//! The MILP: continuous starts of F, B, W, O and R, binaries for orders and offload decisions.
//!
//! Stated with good_lp, solved through highs (`engine`). Every binary but an offload decision stands for
//! one arc, "`to` starts no earlier than `delay` after the start of `from`", that holds when it is 1; an
//! order has an arc for 0 as well. The copies of a microbatch that stays have length 0 and lie anywhere
//! between its F and its B, bound to no queue. Memory is in `memory`, rows that only tighten in `cuts`.

use std::collections::HashMap;

use good_lp::{Constraint, Expression, ProblemVariables, Variable, variable};

use super::MilpSize;
use super::network::{Known, Network, Unit};
use crate::schedule::OpKind;

/// A 0/1 quantity: a constant, a binary, or the complement of one.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lit {
    Never,
    Always,
    Is(Variable),
    Not(Variable),
}

impl Lit {
    pub(super) fn not(self) -> Lit {
        match self {
            Lit::Never => Lit::Always,
            Lit::Always => Lit::Never,
            Lit::Is(v) => Lit::Not(v),
            Lit::Not(v) => Lit::Is(v),
        }
    }

    pub(super) fn is_open(self) -> bool {
        matches!(self, Lit::Is(_) | Lit::Not(_))
    }
}

/// `to` starts no earlier than `delay_ns` after the start of `from`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arc {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) delay_ns: i64,
}

/// What a column of the model stands for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Column {
    /// The makespan.
    Makespan,
    /// The start of a job.
    Start(usize),
    /// Whether a unit is offloaded.
    Offload(usize),
    /// 1: the arc; 0: the other one.
    Order(Arc, Arc),
    /// 1: the arcs, and all of their jobs exist; 0: nothing.
    When(Arc, Option<Arc>),
}

/// A row under construction: a sum that is at least something.
#[derive(Debug, Default)]
pub(super) struct Row {
    terms: Vec<(Variable, f64)>,
    constant: f64,
}

impl Row {
    pub(super) fn var(mut self, factor: f64, v: Variable) -> Row {
        self.terms.push((v, factor));
        self
    }

    pub(super) fn lit(mut self, factor: f64, lit: Lit) -> Row {
        match lit {
            Lit::Never => {}
            Lit::Always => self.constant += factor,
            Lit::Is(v) => self.terms.push((v, factor)),
            Lit::Not(v) => {
                self.constant += factor;
                self.terms.push((v, -factor));
            }
        }
        self
    }

    pub(super) fn add(mut self, constant: f64) -> Row {
        self.constant += constant;
        self
    }
}

/// What the solver gets.
pub(super) struct Statement {
    pub(super) variables: ProblemVariables,
    pub(super) rows: Vec<Constraint>,
    /// Variable to minimise.
    pub(super) makespan: Variable,
}

/// What the solver's columns mean.
pub(super) struct Legend<'a> {
    pub(super) network: &'a Network<'a>,
    pub(super) columns: Vec<Column>,
    /// Arcs that hold whatever the columns say; between copies, where both happen.
    pub(super) arcs: Vec<Arc>,
}

/// The model of a network, while it is put together.
pub(super) struct Program<'a> {
    pub(super) network: &'a Network<'a>,
    variables: ProblemVariables,
    columns: Vec<Column>,
    rows: Vec<Constraint>,
    pub(super) makespan: Variable,
    /// What the makespan is at least, in units.
    pub(super) at_least: i64,
    pub(super) start: Vec<Variable>,
    /// Whether each unit is offloaded.
    pub(super) offload: Vec<Lit>,
    pub(super) binaries: usize,
    /// What is fixed already breaks a row.
    pub(super) contradiction: bool,
    /// For pairs of copies on one channel, in both directions: the first is before the second and both
    /// exist.
    pub(super) copy_order: HashMap<(usize, usize), Lit>,
    arcs: Vec<Arc>,
    order: Vec<Vec<Lit>>,
}

impl<'a> Program<'a> {
    /// The whole model. `at_least` bounds the makespan from below, in units.
    pub(super) fn new(network: &'a Network<'a>, at_least: i64) -> Program<'a> {
        let mut variables = ProblemVariables::new();
        // Optima are whole numbers of units, so that branch and bound may round its bounds up.
        let makespan = variables.add(variable().integer().min(at_least as f64).max(network.horizon as f64));
        let mut program = Program {
            network,
            variables,
            columns: vec![Column::Makespan],
            rows: Vec::new(),
            makespan,
            at_least,
            start: Vec::with_capacity(network.jobs.len()),
            offload: vec![Lit::Never; network.units.len()],
            binaries: 0,
            contradiction: false,
            copy_order: HashMap::new(),
            arcs: Vec::new(),
            order: Vec::new(),
        };
        program.add_starts();
        program.add_orders();
        program.add_precedences();
        program.add_channels();
        super::memory::add_rows(&mut program);
        super::cuts::add_rows(&mut program);
        program
    }

    /// Columns, binaries and rows.
    pub(super) fn size(&self) -> MilpSize {
        MilpSize { variables: self.columns.len(), binaries: self.binaries, rows: self.rows.len() }
    }

    /// The finished model.
    pub(super) fn finish(self) -> (Statement, Legend<'a>) {
        let Program { network, variables, columns, rows, makespan, arcs, .. } = self;
        (Statement { variables, rows, makespan }, Legend { network, columns, arcs })
    }

    /// Adds the row `row >= 0`, unless it has no variable: then it is true, or nothing meets the model.
    pub(super) fn at_least_zero(&mut self, row: Row) {
        if row.terms.is_empty() {
            self.contradiction |= row.constant < -1e-6;
            return;
        }
        let mut sum = Expression::with_capacity(row.terms.len());
        for (v, factor) in row.terms {
            sum.add_mul(factor, v);
        }
        self.rows.push(sum.geq(-row.constant));
    }

    /// Whether compute job `a` is before `b`, both of one device.
    pub(super) fn before(&self, a: usize, b: usize) -> Lit {
        let jobs = &self.network.jobs;
        let (device, x, y) = (jobs[a].device, jobs[a].local, jobs[b].local);
        self.order[device][x * self.network.by_device[device].len() + y]
    }

    /// A new binary that makes an arc, or two, hold when it is 1; `Never` where the windows exclude one.
    pub(super) fn when(&mut self, arc: Arc, second: Option<Arc>) -> Lit {
        let network = self.network;
        let late = |arc: Arc| network.head[arc.from] + network.scale.units(arc.delay_ns) > network.latest(arc.to);
        if late(arc) || second.is_some_and(late) {
            return Lit::Never;
        }
        let lit = self.binary(Column::When(arc, second));
        self.arc(arc, lit);
        if let Some(arc) = second {
            self.arc(arc, lit);
        }
        lit
    }

    /// Start window of a job, wide enough for a copy that does not happen.
    pub(super) fn window(&self, job: usize) -> (i64, i64) {
        let network = self.network;
        let Job { kind, stage, microbatch } = Job::of(network, job);
        if kind.is_compute() {
            (network.head[job], network.latest(job))
        } else {
            let Unit { f, b, .. } = network.units[network.unit(stage, microbatch)];
            (network.head[f] + network.jobs[f].span, network.latest(b))
        }
    }

    fn binary(&mut self, column: Column) -> Lit {
        self.columns.push(column);
        self.binaries += 1;
        Lit::Is(self.variables.add(variable().binary()))
    }

    /// `to - from >= delay` when `lit`, by the smallest M that the windows allow.
    pub(super) fn arc(&mut self, arc: Arc, lit: Lit) {
        let row = self.arc_row(arc, &[lit.not()]);
        self.at_least_zero(row);
        if let Lit::Always = lit {
            self.arcs.push(arc);
        }
    }

    /// `to - from - delay`, with slack enough for each of `unless` that is 1; empty if always true.
    fn arc_row(&self, arc: Arc, unless: &[Lit]) -> Row {
        let delay = self.network.scale.units(arc.delay_ns);
        let slack = delay + self.window(arc.from).1 - self.window(arc.to).0;
        if slack <= 0 {
            return Row::default();
        }
        let row = Row::default().var(1.0, self.start[arc.to]).var(-1.0, self.start[arc.from]).add(-delay as f64);
        unless.iter().fold(row, |row, &lit| row.lit(slack as f64, lit))
    }

    fn add_starts(&mut self) {
        let network = self.network;
        for job in 0..network.jobs.len() {
            let (low, high) = self.window(job);
            self.start.push(self.variables.add(variable().min(low as f64).max(high as f64)));
            self.columns.push(Column::Start(job));
        }
        for job in 0..network.jobs.len() {
            if network.jobs[job].kind.is_compute() {
                let tail = network.tail[job] as f64;
                let row = Row::default().var(1.0, self.makespan).var(-1.0, self.start[job]).add(-tail);
                self.at_least_zero(row);
            }
        }
        for unit in 0..network.units.len() {
            if network.units[unit].copies.is_some() {
                self.offload[unit] = self.binary(Column::Offload(unit));
            }
        }
    }

    fn add_orders(&mut self) {
        let network = self.network;
        self.order = network.by_device.iter().map(|jobs| vec![Lit::Never; jobs.len() * jobs.len()]).collect();
        // The order of two B of a stage is that of their W.
        let mut shared: HashMap<(usize, usize), (usize, usize)> = HashMap::new();
        for jobs in &network.by_device {
            for (x, &a) in jobs.iter().enumerate() {
                for &b in &jobs[x + 1..] {
                    let (i, j) = (&network.jobs[a], &network.jobs[b]);
                    if i.kind == OpKind::B && j.kind == i.kind && i.stage == j.stage {
                        let w = |job: &super::network::Job| network.units[network.unit(job.stage, job.microbatch)].w;
                        if let (Some(wa), Some(wb)) = (w(i), w(j)) {
                            shared.insert((wa, wb), (a, b));
                        }
                    }
                }
            }
        }
        for device in 0..network.by_device.len() {
            let jobs = &network.by_device[device];
            // B have lower numbers than the W of their microbatch: the shared variable exists in time
            // only if pairs of B are done first.
            let mut pairs: Vec<(usize, usize)> =
                jobs.iter().enumerate().flat_map(|(x, &a)| jobs[x + 1..].iter().map(move |&b| (a, b))).collect();
            pairs.sort_by_key(|pair| shared.contains_key(pair));
            for (a, b) in pairs {
                let arcs = [self.queue_arc(a, b), self.queue_arc(b, a)];
                let lit = match (network.known(a, b), shared.get(&(a, b))) {
                    (Known::Before, _) => Lit::Always,
                    (Known::After, _) => Lit::Never,
                    (Known::Free, Some(&(c, d))) => self.before(c, d),
                    (Known::Free, None) => self.binary(Column::Order(arcs[0], arcs[1])),
                };
                let n = jobs.len();
                let (x, y) = (network.jobs[a].local, network.jobs[b].local);
                self.order[device][x * n + y] = lit;
                self.order[device][y * n + x] = lit.not();
                if lit.is_open() {
                    self.arc(arcs[0], lit);
                    self.arc(arcs[1], lit.not());
                }
            }
            // Of the forced orders only those that no other pair of forced orders implies.
            for &a in jobs {
                for &b in jobs {
                    let implied = |&c: &usize| {
                        c != a && c != b && network.known(a, c) == Known::Before && network.known(c, b) == Known::Before
                    };
                    if a != b && network.known(a, b) == Known::Before && !jobs.iter().any(implied) {
                        self.arc(self.queue_arc(a, b), Lit::Always);
                    }
                }
            }
        }
    }

    /// The arc that puts a job right after another on their queue at the earliest.
    fn queue_arc(&self, from: usize, to: usize) -> Arc {
        Arc { from, to, delay_ns: self.network.jobs[from].span_ns }
    }

    fn add_precedences(&mut self) {
        let network = self.network;
        let problem = network.problem;
        for unit in 0..network.units.len() {
            let (stage, microbatch) = (unit / problem.microbatches, unit % problem.microbatches);
            let Unit { f, b, copies, .. } = network.units[unit];
            if let Some((o, r)) = copies {
                self.arc(self.queue_arc(f, o), Lit::Always);
                for (from, to) in [(o, r), (r, b)] {
                    self.stretch(from, to, self.offload[unit]);
                }
            }
            if stage + 1 < problem.stages() {
                let next = network.units[network.unit(stage + 1, microbatch)];
                let forward = network.jobs[f].span_ns + problem.hop_forward(stage);
                let backward = network.jobs[next.b].span_ns + problem.hop_backward(stage);
                self.arc(Arc { from: f, to: next.f, delay_ns: forward }, Lit::Always);
                self.arc(Arc { from: next.b, to: b, delay_ns: backward }, Lit::Always);
            }
        }
    }

    /// `to` starts after the copy `from`, which takes no time unless it happens.
    fn stretch(&mut self, from: usize, to: usize, happens: Lit) {
        let arc = self.queue_arc(from, to);
        let span = self.network.jobs[from].span as f64;
        let row = Row::default().var(1.0, self.start[to]).var(-1.0, self.start[from]);
        self.at_least_zero(row.lit(-span, happens));
        self.arcs.push(arc);
    }

    /// Copies that share a channel, one at a time.
    fn add_channels(&mut self) {
        for channel in self.channels() {
            for (x, &a) in channel.iter().enumerate() {
                for &b in &channel[x + 1..] {
                    self.order_copies(a, b);
                }
            }
        }
    }

    /// The copies of each channel.
    pub(super) fn channels(&self) -> Vec<Vec<usize>> {
        let network = self.network;
        let problem = network.problem;
        let mut channels: std::collections::BTreeMap<usize, Vec<usize>> = std::collections::BTreeMap::new();
        for unit in &network.units {
            if let Some((o, r)) = unit.copies {
                let device = network.jobs[o].device;
                channels.entry(problem.offload_channel[device]).or_default().push(o);
                channels.entry(problem.reload_channel[device]).or_default().push(r);
            }
        }
        channels.into_values().collect()
    }

    fn order_copies(&mut self, a: usize, b: usize) {
        let network = self.network;
        let unit_of = |job: usize| network.unit(network.jobs[job].stage, network.jobs[job].microbatch);
        let (i, j) = (unit_of(a), unit_of(b));
        if i == j {
            return; // O before R is a precedence
        }
        let (x, y) = (self.offload[i], self.offload[j]);
        if self.copies_in_order(a, b) {
            // A copy that does not happen fits between its neighbours: it costs no slack.
            self.stretch(a, b, x);
            self.copy_order.insert((a, b), x);
            return;
        }
        if network.jobs[a].device == network.jobs[b].device {
            let (first, second) = (network.units[i], network.units[j]);
            if network.known(first.b, second.f) == Known::Before || network.known(second.b, first.f) == Known::Before {
                return; // all of one microbatch's ops are before those of the other
            }
        }
        let fits = |a: usize, b: usize| network.head[a] + network.jobs[a].span <= network.latest(b);
        let arcs = [self.queue_arc(a, b), self.queue_arc(b, a)];
        match (fits(a, b), fits(b, a)) {
            (true, true) => {
                let lits = [self.when(arcs[0], None), self.when(arcs[1], None)];
                // Of two copies that happen one is first; a copy that does not happen is in no order.
                self.at_least_zero(
                    Row::default().lit(1.0, lits[0]).lit(1.0, lits[1]).lit(-1.0, x).lit(-1.0, y).add(1.0),
                );
                for exists in [x, y] {
                    self.at_least_zero(Row::default().lit(1.0, exists).lit(-1.0, lits[0]).lit(-1.0, lits[1]));
                }
                self.copy_order.insert((a, b), lits[0]);
                self.copy_order.insert((b, a), lits[1]);
            }
            (true, false) | (false, true) => {
                let arc = if fits(a, b) { arcs[0] } else { arcs[1] };
                let row = self.arc_row(arc, &[x.not(), y.not()]);
                self.at_least_zero(row);
                self.arcs.push(arc);
            }
            (false, false) => self.at_least_zero(Row::default().lit(-1.0, x).lit(-1.0, y).add(1.0)),
        }
    }

    /// Whether two copies keep the order of their microbatches: of one stage and kind, where all stay
    /// in order. Then a copy that does not happen can be put between them, too.
    pub(super) fn copies_in_order(&self, a: usize, b: usize) -> bool {
        let (x, y) = (&self.network.jobs[a], &self.network.jobs[b]);
        self.network.in_order && x.kind == y.kind && x.stage == y.stage && x.microbatch < y.microbatch
    }
}

/// The op of a job.
struct Job {
    kind: OpKind,
    stage: usize,
    microbatch: usize,
}

impl Job {
    fn of(network: &Network, job: usize) -> Job {
        let super::network::Job { kind, stage, microbatch, .. } = network.jobs[job];
        Job { kind, stage, microbatch }
    }
}
