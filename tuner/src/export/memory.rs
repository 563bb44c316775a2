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

fn curve(problem: &Problem, held: i64, ops: &[Bar], grain: i64) -> Curve {
    let bytes = &problem.bytes;
    // What an op frees is free a little before its end is noted, and never before its start.
    let freed = |op: &Bar| op.start.max(op.end - grain);
    let mut changes: Vec<(i64, i64)> = ops
        .iter()
        .map(|op| match op.kind {
            OpKind::F => (op.start, bytes.activation[op.stage]),
            OpKind::B => (freed(op), bytes.weight_context[op.stage] - bytes.activation[op.stage]),
            OpKind::W => (freed(op), -bytes.weight_context[op.stage]),
            OpKind::O => (freed(op), -bytes.offloadable[op.stage]),
            OpKind::R => (op.start, bytes.offloadable[op.stage]),
        })
        .collect();
    changes.sort_unstable();
    let mut curve: Curve = vec![(0, held)];
    let mut now = held;
    for (time, change) in changes {
        now += change;
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
