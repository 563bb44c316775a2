//! Which window next: around the critical path, of a size that grows while nothing is found.

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use super::reference::Reference;
use super::window::Window;
use crate::schedule::OpKind;

/// Compute jobs inside a window, at first and at most.
const SMALLEST: f64 = 16.0;
const LARGEST: f64 = 90.0;
/// Offload decisions that are open in a window, at most.
const MOST_TOGGLES: usize = 14;
/// Factors of the size after a window that found nothing, and after one that found something.
const GROW: f64 = 1.015;
const SHRINK: f64 = 0.8;

/// Chooses windows.
pub(super) struct Chooser {
    pub(super) rng: Pcg64Mcg,
    size: f64,
}

impl Chooser {
    pub(super) fn new(rng: Pcg64Mcg) -> Self {
        Chooser { rng, size: SMALLEST }
    }

    /// Most jobs that a window may grow to.
    pub(super) fn most_jobs(&self) -> usize {
        (4.0 * self.size) as usize
    }

    /// Notes what came of a window.
    pub(super) fn note(&mut self, improved: bool) {
        self.size = if improved { (self.size * SHRINK).max(SMALLEST) } else { self.size * GROW };
        if self.size > LARGEST {
            self.size = SMALLEST;
        }
    }

    /// A window; `critical` are the jobs of a longest path.
    pub(super) fn next(&mut self, reference: &Reference<'_>, critical: &[u32]) -> Window {
        let graph = reference.graph;
        let rng = &mut self.rng;
        let pool = if critical.is_empty() || rng.random_range(0..4) == 0 { &reference.sorted } else { critical };
        let centre = pool[rng.random_range(0..pool.len())];
        let size = (self.size * rng.random_range(0.6..1.3)) as usize;
        match rng.random_range(0..10) {
            0..6 => {
                let most = graph.problem.devices.min(5);
                let count = rng.random_range(1..=most);
                let from = graph.device(centre).saturating_sub(rng.random_range(0..count));
                let devices: Vec<usize> = (from..(from + count).min(graph.problem.devices)).collect();
                self.time_window(reference, centre, &devices, size)
            }
            6..8 => {
                let devices = self.channel_group(reference, graph.device(centre));
                self.time_window(reference, centre, &devices, size)
            }
            _ => self.microbatches(reference, centre, size),
        }
    }

    /// Devices that share a channel with one, as many as make sense together.
    fn channel_group(&self, reference: &Reference<'_>, device: usize) -> Vec<usize> {
        let graph = reference.graph;
        let channels = |d: usize| [graph.offload_channel[d], graph.reload_channel[d]];
        (0..graph.problem.devices)
            .filter(|&d| d == device || channels(d).iter().any(|c| channels(device).contains(c)))
            .collect()
    }

    /// The jobs of some devices that run in a stretch of time around a job.
    fn time_window(&mut self, reference: &Reference<'_>, centre: u32, devices: &[usize], size: usize) -> Window {
        let graph = reference.graph;
        let middle = reference.start[centre as usize] + reference.span[centre as usize] / 2;
        let mut near: Vec<(i64, u32)> = Vec::new();
        for &d in devices {
            near.extend(reference.compute(d).map(|job| {
                let (start, end) = (reference.start[job as usize], reference.end(job));
                ((start - middle).max(middle - end).max(0), job)
            }));
        }
        near.sort_unstable();
        near.truncate(size.max(2));
        let radius = near.last().map_or(0, |x| x.0);
        let mut window = Window::empty(reference, i64::MAX, -1);
        for &(_, job) in &near {
            window.add(reference, job);
        }
        let (low, high) = (middle - radius, middle + radius);
        let within = |job: u32| reference.end(job) >= low && reference.start[job as usize] <= high;
        let mut candidates = Vec::new();
        for &d in devices {
            for s in graph.problem.stages_of(d) {
                for j in 0..graph.microbatches {
                    let (o, r) = (graph.op(OpKind::O, s, j), graph.op(OpKind::R, s, j));
                    let pair = graph.pair(o);
                    if reference.plan.offloaded[pair] {
                        for job in [o, r].into_iter().filter(|&job| within(job)) {
                            window.add(reference, job);
                        }
                    }
                    if [OpKind::F, OpKind::B].into_iter().any(|kind| within(graph.op(kind, s, j))) {
                        candidates.push(pair);
                    }
                }
            }
        }
        self.toggles(reference, &mut window, candidates);
        window
    }

    /// Opens some offload decisions of devices that can run out of memory.
    fn toggles(&mut self, reference: &Reference<'_>, window: &mut Window, mut candidates: Vec<usize>) {
        let graph = reference.graph;
        let tight = |pair: usize| {
            let d = graph.device(pair as u32);
            let all = graph.problem.stages_of(d).map(|s| graph.problem.bytes.activation[s]).sum::<i64>();
            all * graph.microbatches as i64 > graph.room[d]
        };
        candidates.retain(|&pair| tight(pair));
        let most = if self.rng.random_range(0..3) == 0 { 0 } else { self.rng.random_range(1..=MOST_TOGGLES) };
        for _ in 0..most.min(candidates.len()) {
            let pair = candidates.swap_remove(self.rng.random_range(0..candidates.len()));
            window.toggle(reference, pair);
        }
    }

    /// All jobs of a few microbatches at a run of stages, against those near them.
    fn microbatches(&mut self, reference: &Reference<'_>, centre: u32, size: usize) -> Window {
        let graph = reference.graph;
        let mean = reference.makespan_ns as f64 * graph.problem.devices as f64 / (3 * graph.pairs) as f64;
        let reach = (mean * self.rng.random_range(2.0..8.0)) as i64;
        let mut window = Window::empty(reference, i64::MAX, reach);
        let count = self.rng.random_range(1..=graph.microbatches.min(3));
        let stages = (size / (3 * count)).clamp(1, graph.stages);
        let first = graph.stage(centre).saturating_sub(self.rng.random_range(0..stages)).min(graph.stages - stages);
        let from = graph.microbatch(centre).saturating_sub(self.rng.random_range(0..count));
        let mut pairs = Vec::new();
        for j in from..(from + count).min(graph.microbatches) {
            for s in first..first + stages {
                for kind in [OpKind::F, OpKind::B, OpKind::W, OpKind::O, OpKind::R] {
                    window.add(reference, graph.op(kind, s, j));
                }
                pairs.push(graph.pair(graph.op(OpKind::F, s, j)));
            }
        }
        self.toggles(reference, &mut window, pairs);
        window
    }

    /// Adds some of what keeps a path too long that the window does not free: a job of the path with its
    /// neighbours on their queue. Returns whether there was any.
    pub(super) fn widen(&mut self, reference: &Reference<'_>, window: &mut Window, path: &[u32]) -> bool {
        let graph = reference.graph;
        let outside: Vec<u32> = path.iter().copied().filter(|&job| !window.inside[job as usize]).collect();
        if outside.is_empty() {
            return false;
        }
        let job = outside[self.rng.random_range(0..outside.len())];
        let queue = &reference.plan.queues[reference.queue(job)];
        let Some(at) = queue.iter().position(|&x| x == job) else { return false };
        let near = self.rng.random_range(1..=3);
        for &other in &queue[at.saturating_sub(near)..(at + near + 1).min(queue.len())] {
            window.add(reference, other);
            let pair = graph.pair(other);
            if reference.plan.offloaded[pair] && graph.kind(other) != OpKind::W && self.rng.random_range(0..3) == 0 {
                window.toggle(reference, pair);
            }
        }
        true
    }
}
