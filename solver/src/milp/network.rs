//! What is known before any variable exists: jobs, precedences, windows and forced orders.
//!
//! Every job gets a head (it cannot start earlier) and a tail (so much time is needed from its start to
//! the end of the step). With a horizon H, one unit below the best known makespan, a job's start lies in
//! `head..=H - tail`. Two jobs of one queue whose windows allow one order only are ordered; orders are
//! closed transitively; and the jobs that must come before (after) another on a device raise its head
//! (tail) to the earliest time by which the device can have run them. This repeats until nothing changes.

use super::scale::Scale;
use crate::problem::Problem;
use crate::schedule::OpKind;

/// No schedule reaches the horizon.
#[derive(Debug)]
pub(super) struct Empty;

/// A piece of work on one queue. A W that is glued to its B (fused backward, or length 0) is part of
/// the job of that B.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) kind: OpKind,
    pub(super) stage: usize,
    pub(super) microbatch: usize,
    pub(super) device: usize,
    /// Length in units.
    pub(super) span: i64,
    /// Length in ns.
    pub(super) span_ns: i64,
    /// Place in its device's list, of a compute job.
    pub(super) local: usize,
}

/// What is known of the order of two compute jobs of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Free,
    Before,
    After,
}

/// The jobs of one (stage, microbatch).
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub(super) f: usize,
    pub(super) b: usize,
    /// None: part of `b`.
    pub(super) w: Option<usize>,
    /// O and R, where offloading is possible at all.
    pub(super) copies: Option<(usize, usize)>,
}

/// Jobs, precedences, windows and forced orders of a problem below a horizon.
pub(super) struct Network<'a> {
    pub(super) problem: &'a Problem,
    pub(super) scale: Scale,
    /// Latest end, in units.
    pub(super) horizon: i64,
    /// Whether microbatches stay in order at every stage.
    pub(super) in_order: bool,
    pub(super) jobs: Vec<Job>,
    /// By stage times microbatches plus microbatch.
    pub(super) units: Vec<Unit>,
    /// Compute jobs of each device.
    pub(super) by_device: Vec<Vec<usize>>,
    /// Whether memory can ever run out on a device.
    pub(super) tight: Vec<bool>,
    pub(super) head: Vec<i64>,
    pub(super) tail: Vec<i64>,
    known: Vec<Vec<Known>>,
    arcs: Vec<(usize, usize, i64)>,
}

impl<'a> Network<'a> {
    /// Jobs and precedences, then everything that follows from the horizon. With `in_order` the
    /// microbatches keep their order at every stage, F, B, W and copies alike: exact where nothing can
    /// be offloaded, a restriction otherwise. `forced` are orders of compute jobs to add, as pairs of
    /// (before, after).
    pub(super) fn new(
        problem: &'a Problem,
        scale: Scale,
        horizon: i64,
        in_order: bool,
        forced: impl FnOnce(&Network) -> Vec<(usize, usize)>,
    ) -> Result<Network<'a>, Empty> {
        let tight = (0..problem.devices).map(|d| can_run_out(problem, d)).collect();
        let mut network = Network {
            problem,
            scale,
            horizon,
            in_order,
            jobs: Vec::new(),
            units: Vec::new(),
            by_device: vec![Vec::new(); problem.devices],
            tight,
            head: Vec::new(),
            tail: Vec::new(),
            known: Vec::new(),
            arcs: Vec::new(),
        };
        network.add_compute();
        network.add_precedences();
        network.head = vec![0; network.jobs.len()];
        network.tail = network.jobs.iter().map(|job| job.span).collect();
        network.known = network.by_device.iter().map(|jobs| vec![Known::Free; jobs.len() * jobs.len()]).collect();
        network.order_by_rule()?;
        for (first, second) in forced(&network) {
            network.set(first, second)?;
        }
        network.tighten()?;
        network.add_copies();
        Ok(network)
    }

    /// The unit of a stage and microbatch.
    pub(super) fn unit(&self, stage: usize, microbatch: usize) -> usize {
        stage * self.problem.microbatches + microbatch
    }

    /// Latest start, in units.
    pub(super) fn latest(&self, job: usize) -> i64 {
        self.horizon - self.tail[job]
    }

    /// What is known of the order of two different compute jobs of one device.
    pub(super) fn known(&self, a: usize, b: usize) -> Known {
        let (x, y) = (&self.jobs[a], &self.jobs[b]);
        debug_assert!(x.device == y.device && a != b);
        self.known[x.device][x.local * self.by_device[x.device].len() + y.local]
    }

    /// Units whose stage is on a device.
    pub(super) fn units_of(&self, device: usize) -> Vec<usize> {
        let microbatches = self.problem.microbatches;
        self.problem.stages_of(device).flat_map(|s| (0..microbatches).map(move |j| s * microbatches + j)).collect()
    }

    /// From the start of the job of a B to the moment at which B's, or with `weight` W's, share of the
    /// memory is free, in ns; the latter only of a B that its W is part of.
    pub(super) fn free_after_ns(&self, b: usize, weight: bool) -> i64 {
        let job = &self.jobs[b];
        let t = &self.problem.time_ns;
        t.backward_input[job.stage] + if weight { t.backward_weight[job.stage] } else { 0 }
    }

    fn add_job(&mut self, kind: OpKind, stage: usize, microbatch: usize, span_ns: i64) -> usize {
        let device = self.problem.placement[stage];
        let id = self.jobs.len();
        let mut local = 0;
        if kind.is_compute() {
            local = self.by_device[device].len();
            self.by_device[device].push(id);
        }
        let span = self.scale.units(span_ns);
        self.jobs.push(Job { kind, stage, microbatch, device, span, span_ns, local });
        id
    }

    fn add_compute(&mut self) {
        let problem = self.problem;
        for stage in 0..problem.stages() {
            let weight = problem.time_ns.backward_weight[stage];
            let glued = !problem.split_backward || weight == 0;
            for microbatch in 0..problem.microbatches {
                let f = self.add_job(OpKind::F, stage, microbatch, problem.time_ns.forward[stage]);
                let backward = problem.time_ns.backward_input[stage] + if glued { weight } else { 0 };
                let b = self.add_job(OpKind::B, stage, microbatch, backward);
                let w = (!glued).then(|| self.add_job(OpKind::W, stage, microbatch, weight));
                self.units.push(Unit { f, b, w, copies: None });
            }
        }
    }

    fn add_precedences(&mut self) {
        let problem = self.problem;
        for stage in 0..problem.stages() {
            for microbatch in 0..problem.microbatches {
                let here = self.units[self.unit(stage, microbatch)];
                self.arcs.push((here.f, here.b, self.jobs[here.f].span));
                if let Some(w) = here.w {
                    self.arcs.push((here.b, w, self.jobs[here.b].span));
                }
                if stage + 1 < problem.stages() {
                    let next = self.units[self.unit(stage + 1, microbatch)];
                    let forward = self.scale.units(problem.hop_forward(stage));
                    let backward = self.scale.units(problem.hop_backward(stage));
                    self.arcs.push((here.f, next.f, self.jobs[here.f].span + forward));
                    self.arcs.push((next.b, here.b, self.jobs[next.b].span + backward));
                }
            }
        }
    }

    /// Orders that cost nothing: microbatches numbered by F of the first stage and, with `in_order`, in
    /// the same order everywhere. (That W follow the order of their B is a matter of shared variables.)
    fn order_by_rule(&mut self) -> Result<(), Empty> {
        for stage in 0..self.problem.stages() {
            for j in 1..self.problem.microbatches {
                let (a, b) = (self.units[self.unit(stage, j - 1)], self.units[self.unit(stage, j)]);
                if stage == 0 || self.in_order {
                    self.set(a.f, b.f)?;
                }
                if self.in_order {
                    self.set(a.b, b.b)?;
                    if let (Some(a), Some(b)) = (a.w, b.w) {
                        self.set(a, b)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts a compute job before another of its device.
    fn set(&mut self, first: usize, second: usize) -> Result<bool, Empty> {
        let device = self.jobs[first].device;
        let n = self.by_device[device].len();
        let (x, y) = (self.jobs[first].local, self.jobs[second].local);
        let known = &mut self.known[device];
        match known[x * n + y] {
            Known::Before => Ok(false),
            Known::After => Err(Empty),
            Known::Free => {
                known[x * n + y] = Known::Before;
                known[y * n + x] = Known::After;
                Ok(true)
            }
        }
    }

    fn tighten(&mut self) -> Result<(), Empty> {
        for (from, to, _) in self.arcs.clone() {
            if self.jobs[from].device == self.jobs[to].device {
                self.set(from, to)?;
            }
        }
        loop {
            self.close()?;
            self.propagate()?;
            let mut changed = false;
            for device in 0..self.problem.devices {
                changed |= self.order_by_windows(device)?;
            }
            if self.in_order {
                changed |= super::crowding::order_by_memory(self)?;
            }
            changed |= self.order_weights()?;
            if !changed {
                return Ok(());
            }
        }
    }

    /// Called by the rules that find an order; see [`Network::set`].
    pub(super) fn force(&mut self, first: usize, second: usize) -> Result<bool, Empty> {
        self.set(first, second)
    }

    /// W of a stage follow the order of their B.
    fn order_weights(&mut self) -> Result<bool, Empty> {
        let mut changed = false;
        for stage in 0..self.problem.stages() {
            for i in 0..self.problem.microbatches {
                for j in i + 1..self.problem.microbatches {
                    let (a, b) = (self.units[self.unit(stage, i)], self.units[self.unit(stage, j)]);
                    let (Some(wa), Some(wb)) = (a.w, b.w) else { continue };
                    match (self.known(a.b, b.b), self.known(wa, wb)) {
                        (Known::Before, _) => changed |= self.set(wa, wb)?,
                        (Known::After, _) => changed |= self.set(wb, wa)?,
                        (_, Known::Before) => changed |= self.set(a.b, b.b)?,
                        (_, Known::After) => changed |= self.set(b.b, a.b)?,
                        _ => {}
                    }
                }
            }
        }
        Ok(changed)
    }

    /// Transitive closure of each device's orders.
    fn close(&mut self) -> Result<(), Empty> {
        for known in &mut self.known {
            let n = (known.len() as f64).sqrt().round() as usize;
            let words = n.div_ceil(64);
            let mut after = vec![0_u64; n * words];
            for (x, row) in known.chunks(n.max(1)).enumerate() {
                for (y, &k) in row.iter().enumerate() {
                    if k == Known::Before {
                        after[x * words + y / 64] |= 1 << (y % 64);
                    }
                }
            }
            for middle in 0..n {
                let reach = after[middle * words..(middle + 1) * words].to_vec();
                for x in 0..n {
                    if after[x * words + middle / 64] >> (middle % 64) & 1 == 1 {
                        for (word, more) in after[x * words..(x + 1) * words].iter_mut().zip(&reach) {
                            *word |= more;
                        }
                    }
                }
            }
            for x in 0..n {
                for y in 0..n {
                    if after[x * words + y / 64] >> (y % 64) & 1 == 1 {
                        if x == y || known[x * n + y] == Known::After {
                            return Err(Empty);
                        }
                        known[x * n + y] = Known::Before;
                        known[y * n + x] = Known::After;
                    }
                }
            }
        }
        Ok(())
    }

    /// Raises heads and tails to a fixed point of precedences and forced orders.
    fn propagate(&mut self) -> Result<(), Empty> {
        loop {
            let mut changed = false;
            for &(from, to, delay) in &self.arcs {
                if self.head[to] < self.head[from] + delay {
                    self.head[to] = self.head[from] + delay;
                    changed = true;
                }
            }
            for &(from, to, delay) in self.arcs.iter().rev() {
                if self.tail[from] < self.tail[to] + delay {
                    self.tail[from] = self.tail[to] + delay;
                    changed = true;
                }
            }
            for device in 0..self.problem.devices {
                changed |= self.propagate_queue(device);
            }
            if (0..self.jobs.len()).any(|job| self.head[job] + self.tail[job] > self.horizon) {
                return Err(Empty);
            }
            if !changed {
                return Ok(());
            }
        }
    }

    /// The jobs known to come before another, run as early as their heads allow, in order of heads, end
    /// no earlier than in any other order: that end is a head of the job. Likewise for tails.
    fn propagate_queue(&mut self, device: usize) -> bool {
        let jobs = &self.by_device[device];
        let n = jobs.len();
        // Both passes read the heads and tails as they are, in one order, and raise them afterwards: with
        // another order than that of the heads the end would be too late.
        let mut by_head: Vec<usize> = (0..n).collect();
        by_head.sort_by_key(|&x| self.head[jobs[x]]);
        let mut heads = Vec::new();
        for y in 0..n {
            let mut end = i64::MIN;
            for &x in &by_head {
                if self.known[device][x * n + y] == Known::Before {
                    end = end.max(self.head[jobs[x]]) + self.jobs[jobs[x]].span;
                }
            }
            if end > self.head[jobs[y]] {
                heads.push((jobs[y], end));
            }
        }
        let after_end = |x: usize| self.tail[jobs[x]] - self.jobs[jobs[x]].span;
        let mut by_tail: Vec<usize> = (0..n).collect();
        by_tail.sort_by_key(|&x| after_end(x));
        let mut tails = Vec::new();
        for y in 0..n {
            let mut end = i64::MIN;
            for &x in &by_tail {
                if self.known[device][x * n + y] == Known::After {
                    end = end.max(after_end(x)) + self.jobs[jobs[x]].span;
                }
            }
            if end > after_end(y) {
                tails.push((jobs[y], end + self.jobs[jobs[y]].span));
            }
        }
        let changed = !heads.is_empty() || !tails.is_empty();
        for (job, head) in heads {
            self.head[job] = head;
        }
        for (job, tail) in tails {
            self.tail[job] = tail;
        }
        changed
    }

    fn order_by_windows(&mut self, device: usize) -> Result<bool, Empty> {
        let jobs = self.by_device[device].clone();
        let mut changed = false;
        for (x, &a) in jobs.iter().enumerate() {
            for &b in &jobs[x + 1..] {
                if self.known(a, b) == Known::Free {
                    let a_first = self.head[a] + self.jobs[a].span <= self.latest(b);
                    let b_first = self.head[b] + self.jobs[b].span <= self.latest(a);
                    match (a_first, b_first) {
                        (false, false) => return Err(Empty),
                        (true, false) => changed |= self.set(a, b)?,
                        (false, true) => changed |= self.set(b, a)?,
                        (true, true) => {}
                    }
                }
            }
        }
        Ok(changed)
    }

    /// Adds O and R where a device can run out of memory, the offload frees anything, and there is time
    /// for both copies between F and B.
    fn add_copies(&mut self) {
        let problem = self.problem;
        for unit in 0..self.units.len() {
            let (stage, microbatch) = (unit / problem.microbatches, unit % problem.microbatches);
            if !self.tight[problem.placement[stage]] || problem.bytes.offloadable[stage] == 0 {
                continue;
            }
            let Unit { f, b, .. } = self.units[unit];
            let ready = self.head[f] + self.jobs[f].span;
            let needed = self.latest(b);
            let (out_ns, back_ns) = (problem.time_ns.offload[stage], problem.time_ns.reload[stage]);
            let (out, back) = (self.scale.units(out_ns), self.scale.units(back_ns));
            if ready + out + back > needed {
                continue;
            }
            let o = self.add_job(OpKind::O, stage, microbatch, out_ns);
            let r = self.add_job(OpKind::R, stage, microbatch, back_ns);
            self.head.extend([ready, ready + out]);
            self.tail.extend([self.tail[b] + back + out, self.tail[b] + back]);
            self.units[unit].copies = Some((o, r));
        }
    }
}

/// Whether a device could run out of memory if everything were held at once.
pub(super) fn can_run_out(problem: &Problem, device: usize) -> bool {
    let bytes = &problem.bytes;
    let all: i64 = problem.stages_of(device).map(|s| bytes.activation[s]).sum();
    bytes.r#static[device] + all * problem.microbatches as i64 > bytes.capacity[device]
}
