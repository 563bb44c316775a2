//! What each op waited for: of all that the problem makes it wait for, the last to be over.

use std::collections::BTreeMap;

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::OpKind;
use serde::Serialize;

use crate::export::bars::{Bar, Bars};
use crate::export::memory::{Change, changes};

/// Where an op stands in [`Bars`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct OpPlace {
    /// The device.
    pub device: usize,
    /// Its place in the device's list.
    pub index: usize,
}

/// Why an op did not start earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Nothing held it: it could have started with the step.
    Nothing,
    /// The op before it on its device's compute queue or on its channel.
    Queue,
    /// The op whose result it needs: F of the stage before, the gradient of the stage after, F or B of its own
    /// stage; a copy, the op that makes what is copied.
    Data,
    /// The reload of its own activations (B alone).
    Reload,
    /// An op whose end freed the memory that it takes (F and R alone).
    Memory,
}

/// What held an op until it was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// Why it did not start earlier than `ready_ns`.
    pub cause: Cause,
    /// The op that it waited for.
    pub on: Option<OpPlace>,
    /// From then on nothing held it, ns; never after its start. A schedule of the solver starts every op when
    /// it is ready; a measured op starts some time later.
    pub ready_ns: i64,
}

/// What every op of a run waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// For each device one entry an op, in the order of [`Bars::devices`].
    pub devices: Vec<Vec<Wait>>,
}

impl Waits {
    /// What the op at a place waited for.
    pub fn at(&self, place: OpPlace) -> &Wait {
        &self.devices[place.device][place.index]
    }

    /// A longest chain of ops of which each waited for the one before, up to an op that ends last: to shorten
    /// the step, something on it has to get shorter or go elsewhere. In order of time.
    pub fn critical_path(&self, bars: &Bars) -> Vec<OpPlace> {
        let places = bars
            .devices
            .iter()
            .enumerate()
            .flat_map(|(device, ops)| (0..ops.len()).map(move |index| OpPlace { device, index }));
        let last = places.max_by_key(|at| {
            let bar = &bars.devices[at.device][at.index];
            (bar.end, bar.kind.is_compute(), bar.start)
        });
        let mut path = Vec::new();
        let mut at = last;
        // Ops of no length may wait for one another at one instant, in circles.
        while let Some(place) = at.filter(|_| path.len() < bars.len()) {
            path.push(place);
            at = self.at(place).on;
        }
        path.reverse();
        path
    }
}

/// What each op waited for. Among several that were over at the same instant the first counts in the order
/// of [`Cause`].
///
/// Memory holds an op until the end of the last op whose bytes it needed, everything else being where it is.
/// Where a device exceeds its limit (a textbook schedule may) no memory is waited for.
pub fn waits(problem: &Problem, bars: &Bars) -> Waits {
    let places = Places::new(problem, bars);
    let mut candidates: Vec<Vec<Candidates>> =
        bars.devices.iter().map(|ops| vec![Candidates::default(); ops.len()]).collect();
    queues(problem, bars, &mut candidates);
    for (device, ops) in bars.devices.iter().enumerate() {
        for (index, bar) in ops.iter().enumerate() {
            let candidates = &mut candidates[device][index];
            if let Some((place, lag)) = places.needed(problem, bar) {
                let end = bars.devices[place.device][place.index].end;
                candidates.offer(Cause::Data, place, end.saturating_add(lag));
            }
            if let Some(place) = places.reload(bar) {
                candidates.offer(Cause::Reload, place, bars.devices[place.device][place.index].end);
            }
        }
        freed(problem, device, bars, &mut candidates[device]);
    }
    let devices = bars.devices.iter().zip(&candidates).map(|(ops, found)| {
        let wait = |(bar, found): (&Bar, &Candidates)| Wait { ready_ns: found.ready.min(bar.start), ..found.wait() };
        ops.iter().zip(found).map(wait).collect()
    });
    Waits { devices: devices.collect() }
}

/// The latest of what an op waits for.
#[derive(Debug, Clone, Copy, Default)]
struct Candidates {
    ready: i64,
    latest: Option<(Cause, OpPlace)>,
}

impl Candidates {
    fn offer(&mut self, cause: Cause, place: OpPlace, ready: i64) {
        if ready > self.ready || (self.latest.is_none() && ready == self.ready) {
            *self = Candidates { ready, latest: Some((cause, place)) };
        }
    }

    fn wait(&self) -> Wait {
        let (cause, on) = self.latest.map_or((Cause::Nothing, None), |(cause, place)| (cause, Some(place)));
        Wait { cause, on, ready_ns: self.ready }
    }
}

/// Where each op of the problem stands, if it is there.
struct Places {
    at: Vec<Option<OpPlace>>,
    stages: usize,
    microbatches: usize,
}

impl Places {
    fn new(problem: &Problem, bars: &Bars) -> Places {
        let (stages, microbatches) = (problem.stages(), problem.microbatches);
        let mut places = Places { at: vec![None; 5 * stages * microbatches], stages, microbatches };
        for (device, ops) in bars.devices.iter().enumerate() {
            for (index, bar) in ops.iter().enumerate() {
                let number = places.number(bar.kind, bar.stage, bar.microbatch);
                places.at[number] = Some(OpPlace { device, index });
            }
        }
        places
    }

    fn number(&self, kind: OpKind, stage: usize, microbatch: usize) -> usize {
        (kind as usize * self.stages + stage) * self.microbatches + microbatch
    }

    fn get(&self, kind: OpKind, stage: usize, microbatch: usize) -> Option<OpPlace> {
        self.at[self.number(kind, stage, microbatch)]
    }

    /// The op whose result an op needs, and the time that it takes on the way, ns.
    fn needed(&self, problem: &Problem, bar: &Bar) -> Option<(OpPlace, i64)> {
        let (stage, microbatch) = (bar.stage, bar.microbatch);
        let gradient = if problem.split_backward { OpKind::B } else { OpKind::W };
        let (kind, of, lag) = match bar.kind {
            OpKind::F => (OpKind::F, stage.checked_sub(1)?, problem.hop_forward(stage.checked_sub(1)?)),
            OpKind::B if stage + 1 < self.stages => (gradient, stage + 1, problem.hop_backward(stage)),
            OpKind::B | OpKind::O => (OpKind::F, stage, 0),
            OpKind::W => (OpKind::B, stage, 0),
            OpKind::R => (OpKind::O, stage, 0),
        };
        Some((self.get(kind, of, microbatch)?, lag))
    }

    fn reload(&self, bar: &Bar) -> Option<OpPlace> {
        if bar.kind == OpKind::B { self.get(OpKind::R, bar.stage, bar.microbatch) } else { None }
    }
}

/// What stands before each op on its compute queue or channel.
fn queues(problem: &Problem, bars: &Bars, candidates: &mut [Vec<Candidates>]) {
    let mut channels: BTreeMap<usize, Vec<OpPlace>> = BTreeMap::new();
    for (device, ops) in bars.devices.iter().enumerate() {
        let mut before: Option<OpPlace> = None;
        for (index, bar) in ops.iter().enumerate() {
            let place = OpPlace { device, index };
            match bar.kind {
                OpKind::O => channels.entry(problem.offload_channel[device]).or_default().push(place),
                OpKind::R => channels.entry(problem.reload_channel[device]).or_default().push(place),
                OpKind::F | OpKind::B | OpKind::W => {
                    if let Some(before) = before {
                        candidates[device][index].offer(Cause::Queue, before, ops[before.index].end);
                    }
                    before = Some(place);
                }
            }
        }
    }
    let bar = |place: OpPlace| &bars.devices[place.device][place.index];
    for mut copies in channels.into_values() {
        copies.sort_by_key(|&place| *bar(place));
        for pair in copies.windows(2) {
            candidates[pair[1].device][pair[1].index].offer(Cause::Queue, pair[0], bar(pair[0]).end);
        }
    }
}

/// What freed the memory that F and R take.
fn freed(problem: &Problem, device: usize, bars: &Bars, candidates: &mut [Candidates]) {
    let changes = changes(problem, &bars.devices[device], bars.grain);
    let capacity = problem.bytes.capacity[device];
    let mut levels = Vec::with_capacity(changes.len());
    let mut level = problem.bytes.r#static[device];
    for change in &changes {
        level += change.bytes;
        levels.push(level);
    }
    for (at, change) in changes.iter().enumerate().filter(|(_, change)| change.bytes > 0) {
        if levels[at] > capacity {
            continue;
        }
        let most = capacity - change.bytes;
        let known = candidates[change.op].ready;
        // Backwards as far as memory would be what is waited for last.
        let blocked = (1..at).rev().take_while(|&k| changes[k].time > known).find(|&k| {
            let Change { time, .. } = changes[k - 1];
            time < changes[k].time && levels[k - 1] > most
        });
        if let Some(k) = blocked {
            let place = OpPlace { device, index: changes[k].op };
            candidates[change.op].offer(Cause::Memory, place, changes[k].time);
        }
    }
}
