//! List scheduling of compute with copies booked in a timetable, in the past too.
//!
//! Time runs forward over F, B and W as in [`super::dispatch`]. Copies are decided as late as can be: where
//! an F lacks memory, what is used again farthest in the future goes (Belady's rule), in the earliest gap of
//! its channel since its F, which mostly lies in the past; where the gradient of an offloaded microbatch is
//! about to come, its reload is booked in a gap that memory had room for since. So no copy is made that
//! nobody needed, and no link idles while work is known for it.
//!
//! No reload is booked before its B is sure to run, so that none blocks another for good. What cannot be
//! offloaded is admitted only if memory stays *safe*: for each microbatch in flight on the device, oldest
//! first, what it still needs there fits beside what all younger ones cannot give up.

mod booking;
mod profile;
mod run;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::policy::Policy;
use super::shape::Shape;
use crate::graph::Graph;
use crate::schedule::OpKind;
use profile::{Profile, Timeline};
use run::Run;

/// No time yet.
const NEVER: i64 = i64::MAX;

/// Events: something arrives, a device looks again, an op of a device has ended.
const ARRIVED: u32 = 0;
const WAKE: u32 = 1;
const ENDED: u32 = 2;

/// Sequences of the devices, with reloads, and copies of the channels.
pub(super) struct Timetabled {
    pub(super) sequences: Vec<Vec<u32>>,
    pub(super) channels: Vec<Vec<u32>>,
}

/// A stage and microbatch on its device.
#[derive(Debug, Clone, Copy)]
struct Pair {
    forward_end: i64,
    /// When its gradient comes, once that is known.
    gradient: i64,
    offload_end: i64,
    reload_start: i64,
    reload_end: i64,
    /// Whether B can run or has run.
    ready: bool,
}

impl Pair {
    const NEW: Pair = Pair {
        forward_end: NEVER,
        gradient: NEVER,
        offload_end: NEVER,
        reload_start: NEVER,
        reload_end: NEVER,
        ready: false,
    };
}

#[derive(Debug, Clone, Default)]
struct Device {
    busy: bool,
    held: Profile,
    /// Bytes that nothing but the device's own B and W will free.
    locked: i64,
    /// What could be offloaded.
    resident: Vec<u32>,
    /// Offloaded, with its gradient on the way, and no reload booked.
    pending: Vec<u32>,
    weights: VecDeque<u32>,
    most_weights: usize,
    /// Microbatches in flight, oldest first, where some of their bytes cannot be offloaded.
    in_flight: VecDeque<InFlight>,
    coming_b: BinaryHeap<Reverse<i64>>,
    coming_f: BinaryHeap<Reverse<i64>>,
    /// F, B, W with their starts and ends; reloads with their starts, and how many F, B and W had started when they
    /// were booked.
    compute: Vec<(i64, i64, u32)>,
    reloads: Vec<(i64, usize, u32)>,
}

impl Device {
    /// A pair can no longer be offloaded.
    fn no_longer_resident(&mut self, pair: u32) {
        if let Some(at) = self.resident.iter().position(|&x| x == pair) {
            self.resident.swap_remove(at);
        }
    }
}

/// What a microbatch in flight on a device keeps there in spite of offloading, and will once all of its F
/// have run, bytes.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    microbatch: usize,
    keeps: i64,
    will_keep: i64,
}

#[derive(Debug, Clone, Default)]
struct Stage {
    /// F started, arrived; B ended.
    started: usize,
    arrived: usize,
    returned: usize,
    /// B that can start, oldest first.
    ready: Vec<usize>,
    most: usize,
}

/// The simulation, with buffers that are kept from policy to policy.
#[derive(Debug, Clone)]
pub(super) struct Timetable {
    devices: Vec<Device>,
    stages: Vec<Stage>,
    pairs: Vec<Pair>,
    channels: Vec<Timeline>,
    events: BinaryHeap<Reverse<(i64, u32, u32)>>,
    touched: Vec<usize>,
    /// When each pair is used again, as a rank: B goes by groups of microbatches, last chunk first.
    ranks: Vec<u32>,
    /// F that could start, as they compare.
    open: Vec<(usize, usize, usize, usize)>,
    /// What a microbatch keeps on a device in spite of offloading, and the most that one copy moves, bytes.
    keeps: Vec<i64>,
    largest: Vec<i64>,
}

impl Timetable {
    pub(super) fn new(graph: &Graph<'_>, shape: &Shape) -> Self {
        let b = &graph.problem.bytes;
        let over = |own: &Vec<usize>| own.iter().map(|&s| b.activation[s] - b.offloadable[s]).sum();
        let most = |own: &Vec<usize>| own.iter().map(|&s| b.offloadable[s]).max().unwrap_or(0);
        Timetable {
            devices: vec![Device::default(); graph.problem.devices],
            stages: vec![Stage::default(); graph.stages],
            pairs: Vec::new(),
            channels: vec![Timeline::default(); graph.channel_names.len()],
            events: BinaryHeap::new(),
            touched: Vec::new(),
            ranks: Vec::new(),
            open: Vec::new(),
            keeps: shape.stages_of.iter().map(over).collect(),
            largest: shape.stages_of.iter().map(most).collect(),
        }
    }

    /// Makes the policy's schedule; whether it did not get stuck.
    pub(super) fn construct(&mut self, graph: &Graph<'_>, shape: &Shape, policy: &Policy) -> bool {
        self.reset(graph, shape, policy);
        let mut run = Run { graph, shape, policy, state: self };
        run.run();
        let done: usize = self.devices.iter().map(|x| x.compute.len()).sum();
        done == 3 * graph.pairs
    }

    fn reset(&mut self, graph: &Graph<'_>, shape: &Shape, policy: &Policy) {
        for (d, device) in self.devices.iter_mut().enumerate() {
            let depth = shape.depth[d];
            device.busy = false;
            device.held.clear();
            device.locked = 0;
            device.resident.clear();
            device.pending.clear();
            device.weights.clear();
            device.most_weights = (policy.weights_first * (1.0 - depth) + policy.weights_last * depth) as usize;
            device.in_flight.clear();
            device.coming_b.clear();
            device.coming_f.clear();
            device.compute.clear();
            device.reloads.clear();
        }
        for (s, stage) in self.stages.iter_mut().enumerate() {
            let most = shape.most_in_flight(s, policy);
            stage.started = 0;
            stage.arrived = if s == 0 { graph.microbatches } else { 0 };
            stage.returned = 0;
            stage.ready.clear();
            stage.most = most;
        }
        self.pairs.clear();
        self.pairs.resize(graph.pairs, Pair::NEW);
        self.ranks.clear();
        for s in 0..graph.stages {
            let chunks = shape.stages_of[graph.problem.placement[s]].len();
            let rank = |j: usize| (j / policy.group.max(1)) * chunks + chunks - 1 - shape.chunk[s];
            self.ranks.extend((0..graph.microbatches).map(|j| (rank(j) * graph.microbatches + j) as u32));
        }
        self.channels.iter_mut().for_each(Timeline::clear);
        self.events.clear();
    }

    /// The schedule as orders. Reloads take their place among F, B and W: before a B or W that was running, which
    /// freed nothing yet. A reload that starts with an F comes behind it or, if it was booked before and
    /// `booked_first` says so, ahead of it: with ops of no length, one of the two can be a circle.
    pub(super) fn orders(&self, graph: &Graph<'_>, booked_first: bool) -> Timetabled {
        let sequence = |device: &Device| {
            let mut reloads = device.reloads.clone();
            reloads.sort_by_key(|x| x.0);
            let mut reloads = reloads.into_iter().peekable();
            let mut sequence = Vec::with_capacity(device.compute.len() + device.reloads.len());
            for (place, &(start, end, op)) in device.compute.iter().enumerate() {
                // Up to here memory is as it was when this op started, for F, or ended.
                let until = if graph.kind(op) == OpKind::F { start } else { end };
                let with = |x: &(i64, usize, u32)| graph.kind(op) == OpKind::F && x.0 == until && x.1 <= place;
                let before = |x: &(i64, usize, u32)| x.0 < until || booked_first && with(x);
                // A B of no length may end as its reload starts: it comes after that one all the same.
                let mut own = None;
                let booked = self.pairs[graph.pair(op)].reload_start;
                if graph.kind(op) == OpKind::B && (until..NEVER).contains(&booked) {
                    own = Some(graph.sibling(op, OpKind::R));
                }
                while let Some((.., reload)) = reloads.next_if(|x| before(x) || own.is_some()) {
                    sequence.push(reload);
                    own = own.filter(|&x| x != reload);
                }
                sequence.push(op);
            }
            sequence
        };
        Timetabled {
            sequences: self.devices.iter().map(sequence).collect(),
            channels: self.channels.iter().map(|x| x.ops().collect()).collect(),
        }
    }
}
