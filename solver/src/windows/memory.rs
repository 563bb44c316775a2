//! Memory of a device that a window touches, as rows over what is absent.
//!
//! Memory is at its peak right after an allocation, the start of an F or R. There every other (stage,
//! microbatch) of the device holds its activation, unless its F is still to come, its B or W has ended, or
//! it is offloaded: its O has ended and its R is still to come. A row asks that the absent bytes make up for
//! what everything together exceeds the capacity by. What the window leaves alone is absent where it is so
//! in the reference, by a link that keeps it so; the rest are claims, each a binary.

use super::links::{Link, Links, after, is_optional};
use super::reference::Reference;
use super::window::Window;
use crate::schedule::OpKind;

/// That something is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Claim {
    /// One compute job runs before another.
    Before(u32, u32),
    /// The offload happens.
    Offloaded(usize),
    /// These links hold and, if it is open, the offload happens.
    When(Link, Option<Link>, Option<usize>),
}

/// At an allocation: the bytes of the claims that are true reach the need.
#[derive(Debug)]
pub(super) struct Row {
    /// The offload without which the allocation does not happen.
    pub(super) when: Option<usize>,
    pub(super) need: i64,
    pub(super) terms: Vec<(i64, Claim)>,
    /// Claims of one (stage, microbatch), of which one at most is true.
    pub(super) exclusive: Vec<[Option<Claim>; 3]>,
}

/// The rows of all devices.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) rows: Vec<Row>,
    /// Not both: "R is still to come" at an F, and "F is still to come" at that R.
    pub(super) ties: Vec<(Claim, Claim)>,
}

/// A claim that may be decided already.
#[derive(Debug, Clone, Copy)]
enum Absent {
    No,
    Yes,
    If(Claim),
}

/// Adds the rows of a device, and the links that they rely on.
pub(super) fn add(links: &mut Links, reference: &Reference<'_>, window: &Window, device: usize) {
    let graph = reference.graph;
    let problem = graph.problem;
    let units: Vec<u32> = problem
        .stages_of(device)
        .flat_map(|s| (0..graph.microbatches).map(move |j| (s * graph.microbatches + j) as u32))
        .collect();
    let all: i64 = units.iter().map(|&u| graph.bytes(graph.sibling(u, OpKind::F))).sum();
    let excess = all - graph.room[device];
    if excess <= 0 {
        return;
    }
    let mut allocations: Vec<u32> = reference.plan.sequences[device]
        .iter()
        .copied()
        .filter(|&op| matches!(graph.kind(op), OpKind::F | OpKind::R) && !is_optional(graph, window, op))
        .collect();
    allocations.extend(
        window.jobs.iter().copied().filter(|&job| {
            graph.kind(job) == OpKind::R && graph.device(job) == device && window.toggled[graph.pair(job)]
        }),
    );
    allocations.sort_by_key(|&op| (reference.start[op as usize], graph.kind(op) == OpKind::R, op));
    let mut device = Device { links, reference, window, units, conditional: Conditional::new(graph.pairs) };
    for &at in &allocations {
        device.row(at, excess);
    }
    device.conditional.finish(device.links, reference);
}

struct Device<'a, 'g> {
    links: &'a mut Links,
    reference: &'a Reference<'g>,
    window: &'a Window,
    units: Vec<u32>,
    conditional: Conditional,
}

/// What the row of one allocation relies on.
#[derive(Default)]
struct Relied {
    links: Vec<(Link, Option<usize>)>,
    /// The last offload and the last B or W, of those outside the window, that have ended.
    copied: Option<u32>,
    freed: Option<u32>,
    /// The first F outside the window that is still to come.
    next: Option<u32>,
}

impl Device<'_, '_> {
    fn row(&mut self, at: u32, excess: i64) {
        let (reference, window) = (self.reference, self.window);
        let graph = reference.graph;
        let own = graph.pair(at);
        let when = is_optional(graph, window, at).then_some(own);
        let mut row = Row { when, need: excess, terms: Vec::new(), exclusive: Vec::new() };
        let mut relied = Relied::default();
        for i in 0..self.units.len() {
            let unit = self.units[i];
            if unit as usize == own {
                continue;
            }
            let of = |kind| graph.sibling(unit, kind);
            let w = if reference.is_job(of(OpKind::W)) { of(OpKind::W) } else { of(OpKind::B) };
            let to_come = self.to_come(at, of(OpKind::F), &mut relied);
            let done = self.ended(at, of(OpKind::B), reference.frees_after(of(OpKind::B)), &mut relied);
            let weight_done = self.ended(at, w, reference.span[w as usize], &mut relied);
            let away = self.away(at, unit, &mut relied);
            let [f, b, wt, o] = [OpKind::F, OpKind::B, OpKind::W, OpKind::O].map(|kind| graph.bytes(of(kind)));
            let mut exclusive = [None; 3];
            for (k, (bytes, absent)) in [(f, to_come), (b, done), (o, away), (wt, weight_done)].into_iter().enumerate()
            {
                match absent {
                    Absent::No => {}
                    Absent::Yes => row.need -= bytes,
                    Absent::If(claim) => {
                        if bytes > 0 {
                            row.terms.push((bytes, claim));
                        }
                        if let Some(place) = exclusive.get_mut(k) {
                            *place = Some(claim);
                        }
                    }
                }
            }
            if exclusive.iter().flatten().count() > 1 {
                row.exclusive.push(exclusive);
            }
        }
        if row.terms.is_empty() && when.is_none() {
            self.as_before(at);
            return;
        }
        for (link, pair) in relied.links {
            match [when, pair] {
                [None, None] => self.links.firm.push(link),
                pairs => self.links.conditional.push((link, pairs)),
            }
        }
        let wait = |job: Option<u32>, links: &mut Links| {
            let Some(job) = job else { return };
            let link = after(reference, job, at);
            match when {
                None => links.firm.push(link),
                Some(_) => links.conditional.push((link, [when, None])),
            }
        };
        wait(relied.copied, self.links);
        if graph.kind(at) == OpKind::R {
            // All that ended before, in order: the last one's link is enough.
            wait(relied.freed, self.links);
            if let Some(f) = relied.next.filter(|_| window.inside[at as usize]) {
                let link = Link { from: at, to: f, delay_ns: 0 };
                match when {
                    None => self.links.firm.push(link),
                    Some(_) => self.links.conditional.push((link, [when, None])),
                }
            }
        }
        self.links.memory.rows.push(row);
    }

    /// An allocation for which nothing is open waits for what it has waited for.
    fn as_before(&mut self, at: u32) {
        let (reference, window) = (self.reference, self.window);
        let graph = reference.graph;
        let node = &reference.nodes[at as usize];
        let of_device = |job: &u32| graph.device(*job) == graph.device(at);
        if node.copy != graph.none() {
            // The window may change the order of those that it waits for.
            let queue = reference.copies(reference.queue(node.copy) - graph.problem.devices);
            let prefix = &queue[..=reference.place[node.copy as usize] as usize];
            let offload = |job: &u32| graph.kind(*job) == OpKind::O && of_device(job);
            for &job in prefix.iter().rev().filter(|job| offload(job) && !is_optional(graph, window, **job)) {
                self.links.wait(reference, at, job);
                if !window.inside[job as usize] {
                    break;
                }
            }
        }
        if graph.kind(at) == OpKind::R && node.freed != graph.none() {
            self.links.wait(reference, at, node.freed);
            let last = if reference.is_job(node.freed) { node.freed } else { graph.sibling(node.freed, OpKind::B) };
            let before = reference.compute(graph.device(at)).take(reference.place[last as usize] as usize);
            let frees = |job: u32| matches!(graph.kind(job), OpKind::B | OpKind::W);
            for job in before.filter(|&job| window.inside[job as usize] && frees(job)) {
                self.links.wait(reference, at, job);
            }
        }
    }

    fn rely(&self, relied: &mut Relied, link: Link, pair: Option<usize>) {
        relied.links.push((link, pair));
    }

    /// Whether an F is still to come when `at` starts.
    fn to_come(&self, at: u32, f: u32, relied: &mut Relied) -> Absent {
        let (reference, window) = (self.reference, self.window);
        let free = window.frees(reference, at, f);
        if reference.graph.kind(at) == OpKind::F {
            return match (free, reference.place[at as usize] < reference.place[f as usize]) {
                (true, _) => Absent::If(Claim::Before(at, f)),
                (false, true) => Absent::Yes,
                (false, false) => Absent::No,
            };
        }
        let link = Link { from: at, to: f, delay_ns: 0 };
        if free {
            return Absent::If(Claim::When(link, None, None));
        }
        let start = |job: u32| reference.start[job as usize];
        if start(f) <= start(at) {
            return Absent::No;
        }
        if window.inside[f as usize] {
            self.rely(relied, link, None);
        } else if relied.next.is_none_or(|next| start(f) < start(next)) {
            relied.next = Some(f);
        }
        Absent::Yes
    }

    /// Whether a B or W has freed, `after_ns` from its start, when `at` starts.
    fn ended(&self, at: u32, job: u32, after_ns: i64, relied: &mut Relied) -> Absent {
        let (reference, window) = (self.reference, self.window);
        let free = window.frees(reference, at, job);
        if reference.graph.kind(at) == OpKind::F {
            return match (free, reference.place[job as usize] < reference.place[at as usize]) {
                (true, _) => Absent::If(Claim::Before(job, at)),
                (false, true) => Absent::Yes,
                (false, false) => Absent::No,
            };
        }
        let link = Link { from: job, to: at, delay_ns: after_ns };
        if free {
            return Absent::If(Claim::When(link, None, None));
        }
        if reference.start[job as usize] + after_ns > reference.start[at as usize] {
            return Absent::No;
        }
        let whole = reference.end(job) <= reference.start[at as usize];
        if window.inside[job as usize] || !whole {
            self.rely(relied, link, None);
        } else if relied.freed.is_none_or(|last| reference.end(job) > reference.end(last)) {
            relied.freed = Some(job);
        }
        Absent::Yes
    }

    /// Whether a (stage, microbatch) is offloaded when `at` starts.
    fn away(&mut self, at: u32, unit: u32, relied: &mut Relied) -> Absent {
        let (reference, window) = (self.reference, self.window);
        let graph = reference.graph;
        let open = window.toggled[unit as usize];
        if !open && !reference.plan.offloaded[unit as usize] {
            return Absent::No;
        }
        let (o, r) = (graph.sibling(unit, OpKind::O), graph.sibling(unit, OpKind::R));
        let reload = graph.kind(at) == OpKind::R;
        let start = |job: u32| reference.start[job as usize];
        let (free_out, free_back) = (window.frees(reference, o, at), window.frees(reference, r, at));
        let out = reference.end(o) <= start(at);
        let back = start(at) < start(r)
            || start(at) == start(r) && (!reload || reference.place[at as usize] < reference.place[r as usize]);
        if (!free_out && !out) || (!free_back && !back) {
            return Absent::No;
        }
        let link_out = after(reference, o, at);
        let link_back = if reload { after(reference, at, r) } else { Link { from: at, to: r, delay_ns: 0 } };
        let pair = open.then_some(unit as usize);
        if !free_out {
            let inside = window.inside[o as usize] && !open || window.inside[at as usize];
            if inside {
                self.rely(relied, link_out, pair);
            } else if open {
                self.conditional.out(graph.kind(at), unit, at);
            } else if relied.copied.is_none_or(|last| reference.end(o) > reference.end(last)) {
                relied.copied = Some(o);
            }
        }
        if !free_back {
            let inside = window.inside[r as usize] && !open || window.inside[at as usize];
            if inside {
                self.rely(relied, link_back, pair);
            } else if open {
                self.conditional.back(graph.kind(at), unit, at);
            }
        }
        let claim = match (free_out, free_back) {
            (false, false) => return pair.map_or(Absent::Yes, |pair| Absent::If(Claim::Offloaded(pair))),
            (true, false) => Claim::When(link_out, None, pair),
            (false, true) => Claim::When(link_back, None, pair),
            (true, true) => Claim::When(link_out, Some(link_back), pair),
        };
        let f_at_reload = Claim::When(Link { from: r, to: at, delay_ns: 0 }, None, None);
        if !reload && free_back {
            self.links.memory.ties.push((claim, f_at_reload));
        }
        Absent::If(claim)
    }
}

/// For offloads that are open, the first allocations outside the window that rely on their end, and the
/// last ones that rely on their reload being still to come. The rest follows by the order of the queues.
struct Conditional {
    first: Vec<[Option<u32>; 2]>,
    last: Vec<[Option<u32>; 2]>,
}

impl Conditional {
    fn new(pairs: usize) -> Self {
        Conditional { first: vec![[None; 2]; pairs], last: vec![[None; 2]; pairs] }
    }

    fn out(&mut self, kind: OpKind, unit: u32, at: u32) {
        self.first[unit as usize][usize::from(kind == OpKind::R)].get_or_insert(at);
    }

    fn back(&mut self, kind: OpKind, unit: u32, at: u32) {
        self.last[unit as usize][usize::from(kind == OpKind::R)] = Some(at);
    }

    fn finish(&self, links: &mut Links, reference: &Reference<'_>) {
        let graph = reference.graph;
        for (unit, (first, last)) in self.first.iter().zip(&self.last).enumerate() {
            let pairs = [Some(unit), None];
            let (o, r) = (graph.sibling(unit as u32, OpKind::O), graph.sibling(unit as u32, OpKind::R));
            for &at in first.iter().flatten() {
                links.conditional.push((after(reference, o, at), pairs));
            }
            for &at in last.iter().flatten() {
                links.conditional.push((Link { from: at, to: r, delay_ns: 0 }, pairs));
            }
        }
    }
}
