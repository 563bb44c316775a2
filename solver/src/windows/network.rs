//! A window's jobs, with everything around them folded into heads, tails and distances.
//!
//! A job's head is the earliest time at which it can start, its tail what is left to the end of the step
//! from its start, both by longest paths over what is fixed. The distance from one job to another is the
//! longest path over jobs that the model does not need. Two jobs whose windows (from head to horizon less
//! tail) or distances allow one order only are ordered; that changes heads, tails and distances again.

use super::links::{Link, Links, is_optional};
use super::memory::Claim;
use super::reference::Reference;
use super::window::Window;
use crate::schedule::OpKind;

/// No path.
pub(super) const APART: i64 = i64::MIN / 4;
/// Rounds of deriving orders from windows and windows from orders.
const ROUNDS: usize = 20;

/// No schedule below the horizon has the order that the window keeps.
#[derive(Debug)]
pub(super) struct Refuted {
    /// Jobs of a path that is too long, where one is known.
    pub(super) path: Vec<u32>,
}

/// What is known of the order of two jobs of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Before,
    After,
    Open,
}

/// The jobs of a window's model.
pub(super) struct Network {
    pub(super) links: Links,
    pub(super) jobs: Vec<u32>,
    /// Number of each job among `jobs`, or none.
    index: Vec<u32>,
    /// Of each of `jobs`, ns.
    pub(super) head: Vec<i64>,
    pub(super) tail: Vec<i64>,
    /// From job to job, from start to start, ns; [`APART`] if there is no path.
    direct: Vec<i64>,
    /// Reachable over jobs of the model, too.
    reach: Vec<bool>,
    /// What is left from the start of a job to the end of each device, over jobs that the model does not
    /// need.
    pub(super) to_end: Vec<i64>,
    /// The end of each device, at the earliest.
    pub(super) least_end: Vec<i64>,
    pub(super) horizon: i64,
}

const NOBODY: u32 = u32::MAX;

impl Network {
    /// The network of a window below a horizon. With `ends` also what is needed to bound each device's end.
    pub(super) fn new(
        reference: &Reference<'_>,
        window: &Window,
        horizon: i64,
        ends: bool,
    ) -> Result<Network, Refuted> {
        let links = Links::new(reference, window);
        let whole = Whole::new(reference, &links);
        let (head, tail) = (whole.heads(reference), whole.tails(reference));
        if let Some(&job) = reference.sorted.iter().find(|&&job| head[job as usize] + tail[job as usize] > horizon) {
            return Err(Refuted { path: whole.path(reference, &head, &tail, job) });
        }
        let mut network = Network {
            jobs: Vec::new(),
            index: vec![NOBODY; reference.start.len()],
            head: Vec::new(),
            tail: Vec::new(),
            direct: Vec::new(),
            reach: Vec::new(),
            to_end: Vec::new(),
            least_end: Vec::new(),
            horizon,
            links,
        };
        network.collect(reference, window);
        network.fold(reference, window, &whole, &head, &tail, ends);
        network.tighten(reference, window)?;
        Ok(network)
    }

    /// Number of a job in the model.
    pub(super) fn at(&self, job: u32) -> Option<usize> {
        let at = self.index[job as usize];
        (at != NOBODY).then_some(at as usize)
    }

    /// Latest start, ns.
    pub(super) fn latest(&self, at: usize) -> i64 {
        self.horizon - self.tail[at]
    }

    /// Distance, ns.
    pub(super) fn distance(&self, a: usize, b: usize) -> i64 {
        self.direct[a * self.jobs.len() + b]
    }

    /// What is known of the order of two jobs of one queue.
    pub(super) fn known(&self, a: usize, b: usize) -> Known {
        let n = self.jobs.len();
        match (self.reach[a * n + b], self.reach[b * n + a]) {
            (true, _) => Known::Before,
            (_, true) => Known::After,
            _ => Known::Open,
        }
    }

    /// The jobs that the model needs.
    fn collect(&mut self, reference: &Reference<'_>, window: &Window) {
        let graph = reference.graph;
        let mut jobs: Vec<u32> = Vec::new();
        for &(a, b) in &self.links.open {
            jobs.extend([a, b]);
        }
        for (link, _) in &self.links.conditional {
            jobs.extend([link.from, link.to]);
        }
        for &job in window.jobs.iter().filter(|&&job| is_optional(graph, window, job)) {
            jobs.extend([job, graph.sibling(job, OpKind::F), graph.sibling(job, OpKind::B)]);
        }
        for (_, claim) in self.links.memory.rows.iter().flat_map(|row| &row.terms) {
            if let Claim::When(first, second, _) = claim {
                jobs.extend([first.from, first.to]);
                jobs.extend(second.iter().flat_map(|link| [link.from, link.to]));
            }
        }
        jobs.sort_unstable();
        jobs.dedup();
        for (i, &job) in jobs.iter().enumerate() {
            self.index[job as usize] = i as u32;
        }
        self.jobs = jobs;
    }

    /// Heads, tails and distances.
    fn fold(
        &mut self,
        reference: &Reference<'_>,
        window: &Window,
        whole: &Whole,
        head: &[i64],
        tail: &[i64],
        ends: bool,
    ) {
        let graph = reference.graph;
        let n = self.jobs.len();
        for &job in &self.jobs {
            let (mut h, mut t) = (head[job as usize], tail[job as usize]);
            if is_optional(graph, window, job) {
                // Also where the copy of length 0 can be that stands for one that is not made.
                let (f, b) = (graph.sibling(job, OpKind::F), graph.sibling(job, OpKind::B));
                h = head[f as usize] + reference.span[f as usize];
                t = tail[b as usize];
            }
            self.head.push(h);
            self.tail.push(t);
        }
        self.direct = vec![APART; n * n];
        let devices = graph.problem.devices;
        if ends {
            self.to_end = vec![APART; n * devices];
            self.least_end = vec![0; devices];
            for &job in reference.sorted.iter().filter(|&&job| reference.queue(job) < devices) {
                let end = &mut self.least_end[graph.device(job)];
                *end = (*end).max(head[job as usize] + reference.span[job as usize]);
            }
        }
        let last = self.jobs.iter().map(|&job| whole.position[job as usize]).filter(|&x| x != NOBODY).max();
        let last = if ends { reference.sorted.len() } else { last.map_or(0, |x| x as usize + 1) };
        let mut far = vec![APART; reference.start.len()];
        let mut seen: Vec<u32> = Vec::new();
        for (i, &from) in self.jobs.iter().enumerate() {
            if is_optional(graph, window, from) {
                continue;
            }
            far[from as usize] = 0;
            seen.push(from);
            for &job in &reference.sorted[whole.position[from as usize] as usize..last] {
                let distance = far[job as usize];
                if distance == APART {
                    continue;
                }
                if job != from && self.index[job as usize] != NOBODY {
                    self.direct[i * n + self.index[job as usize] as usize] = distance;
                    continue;
                }
                if ends && reference.queue(job) < devices {
                    let end = &mut self.to_end[i * devices + graph.device(job)];
                    *end = (*end).max(distance + reference.span[job as usize]);
                }
                for &(to, delay) in whole.out(job) {
                    if far[to as usize] == APART {
                        seen.push(to);
                    }
                    far[to as usize] = far[to as usize].max(distance + delay);
                }
            }
            for job in seen.drain(..) {
                far[job as usize] = APART;
            }
        }
        // Around optional copies there is their own chain only.
        for (i, &job) in self.jobs.iter().enumerate().filter(|&(_, &job)| is_optional(graph, window, job)) {
            let (f, b) = (graph.sibling(job, OpKind::F), graph.sibling(job, OpKind::B));
            if let (Some(f_at), Some(b_at)) = (self.at(f), self.at(b)) {
                self.direct[f_at * n + i] = reference.span[f as usize];
                self.direct[i * n + b_at] = 0;
            }
            if let (OpKind::O, Some(r)) = (graph.kind(job), self.at(graph.sibling(job, OpKind::R))) {
                self.direct[i * n + r] = 0;
            }
        }
    }

    /// Orders that windows and distances leave no choice about, to a fixed point.
    fn tighten(&mut self, reference: &Reference<'_>, window: &Window) -> Result<(), Refuted> {
        let n = self.jobs.len();
        let optional = |job: u32| is_optional(reference.graph, window, job);
        let open: Vec<(usize, usize, i64, i64)> = (self.links.open.iter())
            .filter(|&&(a, b)| !optional(a) && !optional(b))
            .filter_map(|&(a, b)| {
                let span = |job: u32| reference.span[job as usize];
                Some((self.at(a)?, self.at(b)?, span(a), span(b)))
            })
            .collect();
        self.close();
        for _ in 0..ROUNDS {
            let mut changed = false;
            for &(a, b, span_a, span_b) in &open {
                let fits = |x: usize, span: i64, y: usize| self.head[x] + span <= self.latest(y);
                let (first, second, span) = match self.known(a, b) {
                    Known::Before => (a, b, span_a),
                    Known::After => (b, a, span_b),
                    Known::Open => match (fits(a, span_a, b), fits(b, span_b, a)) {
                        (true, true) => continue,
                        (true, false) => (a, b, span_a),
                        (false, true) => (b, a, span_b),
                        (false, false) => return Err(Refuted { path: vec![self.jobs[a], self.jobs[b]] }),
                    },
                };
                if self.direct[first * n + second] < span {
                    self.direct[first * n + second] = span;
                    changed = true;
                }
            }
            if !changed {
                return Ok(());
            }
            self.close();
            self.propagate()?;
        }
        Ok(())
    }

    /// Which jobs are known to come after which.
    fn close(&mut self) {
        let n = self.jobs.len();
        let words = n.div_ceil(64);
        let mut after = vec![0_u64; n * words];
        for a in 0..n {
            for b in 0..n {
                if self.direct[a * n + b] != APART {
                    after[a * words + b / 64] |= 1 << (b % 64);
                }
            }
        }
        for middle in 0..n {
            let beyond = after[middle * words..(middle + 1) * words].to_vec();
            for a in 0..n {
                if after[a * words + middle / 64] >> (middle % 64) & 1 == 1 {
                    for (word, more) in after[a * words..(a + 1) * words].iter_mut().zip(&beyond) {
                        *word |= more;
                    }
                }
            }
        }
        self.reach = (0..n * n).map(|x| after[x / n * words + x % n / 64] >> (x % n % 64) & 1 == 1).collect();
    }

    /// Heads and tails along distances.
    fn propagate(&mut self) -> Result<(), Refuted> {
        let n = self.jobs.len();
        loop {
            let mut changed = false;
            for a in 0..n {
                for b in 0..n {
                    let distance = self.direct[a * n + b];
                    if distance == APART {
                        continue;
                    }
                    if self.head[b] < self.head[a] + distance {
                        self.head[b] = self.head[a] + distance;
                        changed = true;
                    }
                    if self.tail[a] < self.tail[b] + distance {
                        self.tail[a] = self.tail[b] + distance;
                        changed = true;
                    }
                }
            }
            if let Some(at) = (0..n).find(|&at| self.head[at] + self.tail[at] > self.horizon) {
                return Err(Refuted { path: vec![self.jobs[at]] });
            }
            if !changed {
                return Ok(());
            }
        }
    }
}

/// The firm links of the whole schedule, by their first job.
struct Whole {
    begin: Vec<u32>,
    out: Vec<(u32, i64)>,
    /// Place of each job among the sorted ones, or none.
    position: Vec<u32>,
}

impl Whole {
    fn new(reference: &Reference<'_>, links: &Links) -> Whole {
        let count = reference.start.len();
        let mut begin = vec![0_u32; count + 1];
        for Link { from, .. } in &links.firm {
            begin[*from as usize + 1] += 1;
        }
        for i in 0..count {
            begin[i + 1] += begin[i];
        }
        let mut next = begin.clone();
        let mut out = vec![(0, 0); links.firm.len()];
        for &Link { from, to, delay_ns } in &links.firm {
            out[next[from as usize] as usize] = (to, delay_ns);
            next[from as usize] += 1;
        }
        let mut position = vec![NOBODY; count];
        for (i, &job) in reference.sorted.iter().enumerate() {
            position[job as usize] = i as u32;
        }
        Whole { begin, out, position }
    }

    fn out(&self, job: u32) -> &[(u32, i64)] {
        &self.out[self.begin[job as usize] as usize..self.begin[job as usize + 1] as usize]
    }

    fn heads(&self, reference: &Reference<'_>) -> Vec<i64> {
        let mut head = vec![0; reference.start.len()];
        for &job in &reference.sorted {
            for &(to, delay) in self.out(job) {
                head[to as usize] = head[to as usize].max(head[job as usize] + delay);
            }
        }
        head
    }

    fn tails(&self, reference: &Reference<'_>) -> Vec<i64> {
        let mut tail = reference.span.clone();
        for &job in reference.sorted.iter().rev() {
            for &(to, delay) in self.out(job) {
                tail[job as usize] = tail[job as usize].max(tail[to as usize] + delay);
            }
        }
        tail
    }

    /// A longest path through a job.
    fn path(&self, reference: &Reference<'_>, head: &[i64], tail: &[i64], through: u32) -> Vec<u32> {
        let mut path = vec![through];
        let mut job = through;
        while let Some(&(to, _)) =
            self.out(job).iter().find(|&&(to, delay)| tail[job as usize] == tail[to as usize] + delay)
        {
            path.push(to);
            job = to;
            if path.len() > reference.sorted.len() {
                break;
            }
        }
        // Backwards over the sorted jobs: who pushed this one to its head?
        let mut job = through;
        let at = self.position[through as usize] as usize;
        for &from in reference.sorted[..at].iter().rev() {
            if self.out(from).iter().any(|&(to, delay)| to == job && head[from as usize] + delay == head[job as usize])
            {
                path.push(from);
                job = from;
            }
        }
        path
    }
}
