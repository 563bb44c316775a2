//! Memory over time, by the rules of the problem: F allocates the activation at its start, O frees
//! the offloadable part at its end and R allocates it at its start, B and W free their shares at
//! their ends; at one instant frees come before allocations.

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::OpKind;

use super::bars::{Bar, Bars};

/// What a device holds, `static` included: `(time ns, bytes from then on)`, ascending in time, the
/// first at 0. One value an instant, the one after its frees and allocations: as frees come first,
/// the largest value is the peak.
pub type Curve = Vec<(i64, i64)>;

/// One [`Curve`] a device, of ops at the given times.
pub fn memory_curves(problem: &Problem, bars: &Bars) -> Vec<Curve> {
    let fixed = problem.bytes.r#static.iter();
    bars.devices.iter().zip(fixed).map(|(ops, &held)| curve(problem, held, ops, bars.grain)).collect()
}

/// What one op does to its device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// When, ns.
    pub time: i64,
    /// Bytes allocated; freed, where negative.
    pub bytes: i64,
    /// The op's place among those of its device.
    pub op: usize,
}

/// What a device's ops do to its memory, in order of time; at one instant frees come first. `grain` is that of the
/// ops' times.
pub fn changes(problem: &Problem, ops: &[Bar], grain: i64) -> Vec<Change> {
    let sizes = &problem.bytes;
    // What an op frees is free a little before its end is noted, and never before its start.
    let freed = |bar: &Bar| bar.start.max(bar.end - grain);
    let mut changes: Vec<Change> = ops
        .iter()
        .enumerate()
        .map(|(op, bar)| {
            let (time, bytes) = match bar.kind {
                OpKind::F => (bar.start, sizes.activation[bar.stage]),
                OpKind::B => (freed(bar), sizes.weight_context[bar.stage] - sizes.activation[bar.stage]),
                OpKind::W => (freed(bar), -sizes.weight_context[bar.stage]),
                OpKind::O => (freed(bar), -sizes.offloadable[bar.stage]),
                OpKind::R => (bar.start, sizes.offloadable[bar.stage]),
            };
            Change { time, bytes, op }
        })
        .collect();
    changes.sort_unstable();
    changes
}

fn curve(problem: &Problem, held: i64, ops: &[Bar], grain: i64) -> Curve {
    let mut curve: Curve = vec![(0, held)];
    let mut now = held;
    for Change { time, bytes, .. } in changes(problem, ops, grain) {
        now += bytes;
        match curve.last_mut() {
            Some(last) if time - last.0 <= grain => last.1 = now,
            _ => curve.push((time, now)),
        }
    }
    curve.dedup_by(|next, kept| next.1 == kept.1);
    curve
}

/// The largest value of a curve, bytes.
pub fn peak(curve: &Curve) -> i64 {
    curve.iter().map(|&(_, bytes)| bytes).max().unwrap_or(0)
}
