//! Schedules as the page's script reads them: small, since a page holds several of up to 100,000 ops.
//!
//! A schedule is a string of variable-length integers (LEB128, seven bits a byte; signed ones with the sign in
//! the lowest bit), in base64. Ops stand device by device, on each device first compute, then offloads, then
//! reloads, each in order of start; an op's number is its place in all of that. For each of these three lanes:
//! how many ops it has, and for each op
//!
//! 1. `class << 3 | other microbatch << 2 | gap << 1 | waits`, where the class of an op is its kind and the rank
//!    of its stage among those of its device;
//! 2. the microbatch less the one expected, which follows the last of the class, if it is another;
//! 3. the time since the end of the op before on the lane, if there is any;
//! 4. when measured, its length less the problem's;
//! 5. what it waited for, if not for the op before on the lane: the cause, and, if that is the queue or memory, the
//!    number of the op waited for less its own. Which op's result an op needs, and which is its reload, the script
//!    knows as well.
//!
//! Times count in `unit_ns`. A typical op takes one or two bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::OpKind;
use serde::Serialize;

use crate::analysis::{Cause, OpPlace, waits};
use crate::export::bars::{Bar, Bars};
use crate::export::timeline::chunks;

/// One schedule of the page's timeline, predicted or measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Packed {
    /// Of its times, ns.
    unit_ns: i64,
    makespan_ns: i64,
    /// Number of ops.
    ops: usize,
    /// Whether lengths of ops are given.
    measured: bool,
    data: String,
    /// The critical path: the number of each op less that of the one before.
    path: String,
}

impl Packed {
    /// Length of what it adds to the page, bytes.
    pub(super) fn size(&self) -> usize {
        self.data.len() + self.path.len()
    }
}

/// Ops up to which times are exact.
pub(super) const EXACT: usize = 20_000;
/// Of more ops, times are rounded to about so many parts of the step.
const FINEST: i64 = 1 << 20;
/// Rounded starts may be off by so many units where that saves saying so.
const NEAR: i64 = 2;

fn unit_ns(bars: &Bars) -> i64 {
    let mut unit = 1;
    while bars.len() > EXACT && bars.makespan / unit > FINEST {
        unit *= 2;
    }
    unit
}

/// Packs the ops of a run with what each waited for.
pub(super) fn pack(problem: &Problem, bars: &Bars, measured: bool) -> Packed {
    let chunks = chunks(problem);
    let unit = unit_ns(bars);
    let near = if unit > 1 { NEAR } else { 0 };
    let waits = waits(problem, bars);
    let lanes: Vec<[Vec<usize>; 3]> = bars.devices.iter().map(|ops| lanes(ops)).collect();
    let mut numbers: Vec<Vec<i64>> = bars.devices.iter().map(|ops| vec![0; ops.len()]).collect();
    let mut count = 0;
    for (device, lanes) in lanes.iter().enumerate() {
        for &index in lanes.iter().flatten() {
            numbers[device][index] = count;
            count += 1;
        }
    }
    let number = |place: OpPlace| numbers[place.device][place.index];
    let most_chunks = chunks.iter().max().map_or(1, |most| most + 1);
    let mut out = Bytes::default();
    for (device, lanes) in lanes.iter().enumerate() {
        for lane in lanes {
            out.unsigned(lane.len() as u64);
            let (mut end, mut before) = (0, None);
            let mut expected = vec![0_i64; 3 * most_chunks];
            for &index in lane {
                let bar = &bars.devices[device][index];
                let round = |ns: i64| (ns + unit / 2) / unit;
                let (from, to) = (round(bar.start), round(bar.end));
                let class = class(bar, &chunks, most_chunks);
                let microbatch = bar.microbatch as i64;
                let other = microbatch - std::mem::replace(&mut expected[class], microbatch + 1);
                let length = round(problem.duration(bar.kind, bar.stage));
                let gap = if (from - end).abs() <= near { 0 } else { from - end };
                // Where the script takes the op to start and to end.
                let start = end + gap;
                end = if measured { to.max(start) } else { start + length };
                let wait = waits.at(OpPlace { device, index });
                let on = wait.on.map(number);
                let own = number(OpPlace { device, index });
                let held = wait.cause != Cause::Queue || on != before;
                before = Some(own);
                let flags = u64::from(other != 0) << 2 | u64::from(gap != 0) << 1 | u64::from(held);
                out.unsigned((class as u64) << 3 | flags);
                if other != 0 {
                    out.signed(other);
                }
                if gap != 0 {
                    out.signed(gap);
                }
                if measured {
                    out.signed(end - start - length);
                }
                if held {
                    out.unsigned(wait.cause as u64);
                    if let (Cause::Queue | Cause::Memory, Some(on)) = (wait.cause, on) {
                        out.signed(on - own);
                    }
                }
            }
        }
    }
    let mut path = Bytes::default();
    let mut last = 0;
    for place in waits.critical_path(bars) {
        let at = number(place);
        path.signed(at - std::mem::replace(&mut last, at));
    }
    Packed {
        unit_ns: unit,
        makespan_ns: bars.makespan,
        ops: bars.len(),
        measured,
        data: out.base64(),
        path: path.base64(),
    }
}

/// The places of a device's compute, offloads and reloads.
fn lanes(ops: &[Bar]) -> [Vec<usize>; 3] {
    let of = |wanted: fn(OpKind) -> bool| (0..ops.len()).filter(|&i| wanted(ops[i].kind)).collect();
    [of(OpKind::is_compute), of(|kind| kind == OpKind::O), of(|kind| kind == OpKind::R)]
}

fn class(bar: &Bar, chunks: &[usize], most_chunks: usize) -> usize {
    let kind = if bar.kind.is_compute() { bar.kind as usize } else { 0 };
    kind * most_chunks + chunks[bar.stage]
}

#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn unsigned(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn signed(&mut self, value: i64) {
        self.unsigned(((value << 1) ^ (value >> 63)) as u64);
    }

    fn base64(&self) -> String {
        STANDARD.encode(&self.0)
    }
}
