//! The MILP of a window: starts of its jobs, binaries for what is open.

use std::collections::HashMap;

use highs::{Col, Model, RowProblem, Sense};

use super::links::{Link, after, is_optional};
use super::memory::Claim;
use super::network::{APART, Known, Network};
use super::reference::Reference;
use super::sum::{Lit, Sum};
use super::window::Window;
use crate::milp::scale::gcd;
use crate::schedule::OpKind;

/// Most binaries for which all triangles of open orders are added.
const MOST_BINARIES_FOR_TRIANGLES: usize = 300;

/// What to minimise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The makespan.
    Makespan,
    /// The sum of the ends of the devices, which is to be at most this, ns.
    Ends(i64),
}

/// What the binaries of a model mean for the order.
#[derive(Debug, Default)]
pub(super) struct Legend {
    /// The first link if the value is 1, else the second.
    pub(super) orders: Vec<(Link, Link, Lit)>,
    /// The links if the value is 1.
    pub(super) claims: Vec<(Link, Lit)>,
    /// Whether the offloads of pairs happen.
    pub(super) offloads: Vec<(usize, Lit)>,
}

/// The model of a window.
pub(super) struct Program<'a> {
    reference: &'a Reference<'a>,
    window: &'a Window,
    network: &'a Network,
    problem: RowProblem,
    legend: Legend,
    pub(super) binaries: usize,
    /// What is fixed already breaks a row.
    pub(super) contradiction: bool,
    start: Vec<Col>,
    makespan: Option<Col>,
    order: HashMap<(u32, u32), Lit>,
    claims: HashMap<Claim, Lit>,
    offload: HashMap<usize, Lit>,
    /// ns in a unit of the model's time.
    unit: f64,
    /// Time 0 of the model, ns.
    base: i64,
}

impl<'a> Program<'a> {
    /// The model; `unit_ns` is its unit of time.
    pub(super) fn new(
        reference: &'a Reference<'a>,
        window: &'a Window,
        network: &'a Network,
        goal: Goal,
        unit_ns: f64,
    ) -> Program<'a> {
        let base = network.head.iter().copied().min().unwrap_or(0);
        let mut program = Program {
            reference,
            window,
            network,
            problem: RowProblem::default(),
            legend: Legend::default(),
            binaries: 0,
            contradiction: false,
            start: Vec::new(),
            makespan: None,
            order: HashMap::new(),
            claims: HashMap::new(),
            offload: HashMap::new(),
            unit: unit_ns,
            base,
        };
        program.add_starts(goal);
        program.add_distances();
        program.add_orders();
        program.add_conditional();
        program.add_memory();
        program.add_loads();
        program.add_triangles();
        program
    }

    /// The model for HiGHS.
    pub(super) fn into_model(self) -> (Option<Model>, Legend) {
        (self.problem.try_optimise(Sense::Minimise).ok(), self.legend)
    }

    fn units(&self, ns: i64) -> f64 {
        ns as f64 / self.unit
    }

    /// Adds the row `sum >= 0`. HiGHS wants each column once.
    fn at_least_zero(&mut self, mut sum: Sum) {
        sum.terms.sort_unstable_by_key(|x| x.0.index());
        sum.terms.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
        sum.terms.retain(|x| x.1 != 0.0);
        if sum.terms.is_empty() {
            self.contradiction |= sum.constant < -1e-6;
        } else {
            self.problem.add_row(-sum.constant.., sum.terms);
        }
    }

    fn binary(&mut self) -> Lit {
        self.binaries += 1;
        Lit::Is(self.problem.add_integer_column(0.0, 0.0..=1.0))
    }

    fn add_starts(&mut self, goal: Goal) {
        let network = self.network;
        for at in 0..network.jobs.len() {
            let low = self.units(network.head[at] - self.base);
            let high = self.units(network.latest(at) - self.base).max(low);
            self.start.push(self.problem.add_column(0.0, low..=high));
        }
        match goal {
            Goal::Makespan => {
                let high = self.units(network.horizon - self.base);
                let makespan = self.problem.add_column(1.0, ..=high);
                self.makespan = Some(makespan);
                for at in 0..network.jobs.len() {
                    let tail = self.units(network.tail[at]);
                    self.at_least_zero(Sum::default().col(1.0, makespan).col(-1.0, self.start[at]).add(-tail));
                }
            }
            Goal::Ends(most) => self.add_ends(most),
        }
        let graph = self.reference.graph;
        for &job in self.window.jobs.iter().filter(|&&job| graph.kind(job) == OpKind::O) {
            let pair = graph.pair(job);
            if self.window.toggled[pair] {
                let lit = self.binary();
                self.offload.insert(pair, lit);
                self.legend.offloads.push((pair, lit));
            }
        }
    }

    fn add_ends(&mut self, most: i64) {
        let network = self.network;
        let devices = network.least_end.len();
        let mut whole = Sum::default();
        for device in 0..devices {
            let least = network.least_end[device];
            let rows: Vec<(usize, i64)> = (0..network.jobs.len())
                .map(|at| (at, network.to_end[at * devices + device]))
                .filter(|&(at, to_end)| to_end != APART && network.latest(at) + to_end > least)
                .collect();
            if rows.is_empty() {
                whole = whole.add(-self.units(least - self.base));
                continue;
            }
            let end = self.problem.add_column(1.0, self.units(least - self.base)..);
            whole = whole.col(-1.0, end);
            for (at, to_end) in rows {
                let to_end = self.units(to_end);
                self.at_least_zero(Sum::default().col(1.0, end).col(-1.0, self.start[at]).add(-to_end));
            }
        }
        let most = self.units(most - devices as i64 * self.base);
        self.at_least_zero(whole.add(most));
    }

    /// Distances that windows and other distances do not imply.
    fn add_distances(&mut self) {
        let network = self.network;
        let n = network.jobs.len();
        for a in 0..n {
            for b in 0..n {
                let distance = network.distance(a, b);
                if a == b || distance == APART || network.latest(a) + distance <= network.head[b] {
                    continue;
                }
                let implied = |c: usize| {
                    let (x, y) = (network.distance(a, c), network.distance(c, b));
                    c != a && c != b && x != APART && y != APART && x + y >= distance && (x > 0 || y > 0)
                };
                if !(0..n).any(implied) {
                    let link = Link { from: network.jobs[a], to: network.jobs[b], delay_ns: distance };
                    self.link(link, &[]);
                }
            }
        }
    }

    /// A link, with slack enough for each of `unless` that is 1.
    fn link(&mut self, link: Link, unless: &[Lit]) {
        let network = self.network;
        let (Some(a), Some(b)) = (network.at(link.from), network.at(link.to)) else { return };
        let slack = link.delay_ns + network.latest(a) - network.head[b];
        if slack <= 0 {
            return;
        }
        let slack = self.units(slack);
        let sum = Sum::default().col(1.0, self.start[b]).col(-1.0, self.start[a]).add(-self.units(link.delay_ns));
        let sum = unless.iter().fold(sum, |sum, &lit| sum.lit(slack, lit));
        self.at_least_zero(sum);
    }

    fn add_orders(&mut self) {
        let (reference, network) = (self.reference, self.network);
        let graph = reference.graph;
        let optional = |job: u32| is_optional(graph, self.window, job).then(|| graph.pair(job));
        let is_w = |job: u32| graph.kind(job) == OpKind::W;
        let mut open: Vec<(u32, u32)> = network.links.open.clone();
        // W of a stage take the order of their B, which must come first.
        open.sort_by_key(|&(a, b)| is_w(a) && is_w(b) && graph.stage(a) == graph.stage(b));
        for (a, b) in open {
            let (Some(x), Some(y)) = (network.at(a), network.at(b)) else { continue };
            let exist: Vec<Lit> = [optional(a), optional(b)]
                .into_iter()
                .flatten()
                .map(|pair| self.offload.get(&pair).map_or(Lit::Never, |lit| lit.not()))
                .collect();
            let links = [after(reference, a, b), after(reference, b, a)];
            let of_b = |job: u32| graph.sibling(job, OpKind::B);
            let shared = (is_w(a) && is_w(b) && graph.stage(a) == graph.stage(b))
                .then(|| self.order.get(&(of_b(a), of_b(b))).copied())
                .flatten();
            let known = if exist.is_empty() { network.known(x, y) } else { Known::Open };
            let lit = match (known, shared) {
                (Known::Before, _) => Lit::Always,
                (Known::After, _) => Lit::Never,
                (Known::Open, Some(lit)) => lit,
                (Known::Open, None) => self.binary(),
            };
            self.order.insert((a, b), lit);
            self.order.insert((b, a), lit.not());
            self.legend.orders.push((links[0], links[1], lit));
            for (link, lit) in links.into_iter().zip([lit, lit.not()]) {
                if lit != Lit::Never && (lit.is_open() || !exist.is_empty()) {
                    let unless: Vec<Lit> = std::iter::once(lit.not()).chain(exist.iter().copied()).collect();
                    self.link(link, &unless);
                }
            }
        }
    }

    /// Links that hold for offloads that happen.
    fn add_conditional(&mut self) {
        let (reference, network) = (self.reference, self.network);
        let graph = reference.graph;
        for (link, pairs) in &network.links.conditional {
            let unless: Vec<Lit> =
                pairs.iter().flatten().map(|pair| self.offload.get(pair).map_or(Lit::Always, |x| x.not())).collect();
            self.link(*link, &unless);
        }
        let mut made: Vec<(usize, Lit)> = self.offload.iter().map(|(&pair, &lit)| (pair, lit)).collect();
        made.sort_unstable_by_key(|x| x.0);
        for (pair, lit) in made {
            let of = |kind| graph.sibling(pair as u32, kind);
            for (from, to) in [(OpKind::O, OpKind::R), (OpKind::R, OpKind::B)] {
                let link = after(reference, of(from), of(to));
                self.link(link, &[lit.not()]);
            }
        }
    }

    /// The value of a claim, by a binary if need be.
    fn claim(&mut self, claim: Claim) -> Lit {
        if let Some(&lit) = self.claims.get(&claim) {
            return lit;
        }
        let lit = match claim {
            Claim::Offloaded(pair) => self.offload.get(&pair).copied().unwrap_or(Lit::Never),
            Claim::Before(a, b) => match self.order.get(&(a, b)) {
                Some(&lit) => lit,
                None if self.reference.place[a as usize] < self.reference.place[b as usize] => Lit::Always,
                None => Lit::Never,
            },
            Claim::When(first, second, pair) => self.when(first, second, pair),
        };
        self.claims.insert(claim, lit);
        lit
    }

    fn when(&mut self, first: Link, second: Option<Link>, pair: Option<usize>) -> Lit {
        let network = self.network;
        let offloaded = pair.map_or(Lit::Always, |pair| self.offload.get(&pair).copied().unwrap_or(Lit::Never));
        let mut open = Vec::new();
        for link in [Some(first), second].into_iter().flatten() {
            let (Some(a), Some(b)) = (network.at(link.from), network.at(link.to)) else { return Lit::Never };
            if network.head[a] + link.delay_ns > network.latest(b) {
                return Lit::Never;
            }
            let distance = network.distance(a, b);
            if distance < link.delay_ns && network.latest(a) + link.delay_ns > network.head[b] {
                open.push(link);
            }
        }
        if open.is_empty() {
            return offloaded;
        }
        let lit = self.binary();
        for link in open {
            self.legend.claims.push((link, lit));
            self.link(link, &[lit.not()]);
            if let Some(&order) = self.order.get(&(link.from, link.to)) {
                self.imply(lit, order);
            }
        }
        self.imply(lit, offloaded);
        lit
    }

    /// `a` is at most `b`.
    fn imply(&mut self, a: Lit, b: Lit) {
        if b != Lit::Always {
            self.at_least_zero(Sum::default().lit(1.0, b).lit(-1.0, a));
        }
    }

    fn add_memory(&mut self) {
        let network = self.network;
        for row in &network.links.memory.rows {
            let when = row.when.map_or(Lit::Always, |pair| self.offload.get(&pair).copied().unwrap_or(Lit::Never));
            let mut need = row.need;
            let mut terms = Vec::new();
            for &(bytes, claim) in &row.terms {
                match self.claim(claim) {
                    Lit::Never => {}
                    Lit::Always => need -= bytes,
                    lit => terms.push((bytes, lit)),
                }
            }
            if need <= 0 {
                continue;
            }
            // Sizes over their greatest common divisor, the need rounded up, then to the magnitude of 1.
            let divisor = terms.iter().fold(0, |d, &(bytes, _)| gcd(d, bytes)).max(1);
            let need = (need + divisor - 1) / divisor;
            let mut sum = Sum::default().lit(-1.0, when).add(1e-9);
            for (bytes, lit) in terms {
                sum = sum.lit((bytes / divisor).min(need) as f64 / need as f64, lit);
            }
            self.at_least_zero(sum);
            for claims in &row.exclusive {
                let lits: Vec<Lit> = claims.iter().flatten().map(|&claim| self.claim(claim)).collect();
                if lits.iter().filter(|lit| lit.is_open()).count() > 1 {
                    self.at_least_zero(lits.into_iter().fold(Sum::default().add(1.0), |sum, lit| sum.lit(-1.0, lit)));
                }
            }
        }
        for &(a, b) in &network.links.memory.ties {
            let (Some(&a), Some(&b)) = (self.claims.get(&a), self.claims.get(&b)) else { continue };
            if a.is_open() && b.is_open() {
                self.at_least_zero(Sum::default().add(1.0).lit(-1.0, a).lit(-1.0, b));
            }
        }
    }

    /// The order of two compute jobs, as far as the model knows it.
    fn before(&self, a: usize, b: usize) -> Option<Lit> {
        let network = self.network;
        match network.known(a, b) {
            Known::Before => Some(Lit::Always),
            Known::After => Some(Lit::Never),
            Known::Open => self.order.get(&(network.jobs[a], network.jobs[b])).copied(),
        }
    }

    /// A job starts no earlier than the first of those that run before it, plus all that do; and ends so
    /// much before the end of the step as those that run after it take.
    fn add_loads(&mut self) {
        let (reference, network) = (self.reference, self.network);
        let graph = reference.graph;
        let n = network.jobs.len();
        let span = |at: usize| reference.span[network.jobs[at] as usize];
        let rest = |at: usize| network.tail[at] - span(at);
        for i in 0..n {
            let queue = reference.queue(network.jobs[i]);
            if queue >= graph.problem.devices {
                continue;
            }
            let others: Vec<(usize, Lit)> = (0..n)
                .filter(|&a| a != i && reference.queue(network.jobs[a]) == queue)
                .filter_map(|a| Some((a, self.before(a, i)?)))
                .collect();
            let open = || others.iter().filter(|x| x.1.is_open()).map(|x| x.0);
            if open().count() < 2 {
                continue;
            }
            let first = open().map(|a| network.head[a]).min().unwrap_or(0).min(network.head[i]);
            let last = open().map(rest).min().unwrap_or(0).min(rest(i));
            let mut before = Sum::default().col(1.0, self.start[i]).add(-self.units(first - self.base));
            let mut behind = self.makespan.map(|makespan| {
                Sum::default().col(1.0, makespan).col(-1.0, self.start[i]).add(-self.units(span(i) + last))
            });
            for &(a, lit) in &others {
                let own = self.units(span(a));
                if network.head[a] >= first {
                    before = before.lit(-own, lit);
                }
                if rest(a) >= last {
                    behind = behind.map(|sum| sum.lit(-own, lit.not()));
                }
            }
            self.at_least_zero(before);
            if let Some(sum) = behind {
                self.at_least_zero(sum);
            }
        }
    }

    /// The orders of three jobs of a device form no cycle.
    fn add_triangles(&mut self) {
        if self.binaries > MOST_BINARIES_FOR_TRIANGLES {
            return;
        }
        let (reference, network) = (self.reference, self.network);
        let n = network.jobs.len();
        let queue = |at: usize| reference.queue(network.jobs[at]);
        for a in 0..n {
            for b in (a + 1..n).filter(|&b| queue(b) == queue(a)) {
                let Some(ab) = self.before(a, b) else { continue };
                for c in (b + 1..n).filter(|&c| queue(c) == queue(a)) {
                    let (Some(bc), Some(ca)) = (self.before(b, c), self.before(c, a)) else { continue };
                    let lits = [ab, bc, ca];
                    if lits.iter().filter(|lit| lit.is_open()).count() < 2 {
                        continue;
                    }
                    let sum = |sign: f64| lits.iter().fold(Sum::default(), |sum, &lit| sum.lit(sign, lit));
                    if !lits.contains(&Lit::Never) {
                        self.at_least_zero(sum(-1.0).add(2.0));
                    }
                    if !lits.contains(&Lit::Always) {
                        self.at_least_zero(sum(1.0).add(-1.0));
                    }
                }
            }
        }
    }
}
