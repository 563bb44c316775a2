//! Units of time in which the model is stated.
//!
//! HiGHS works with tolerances around 1e-6, so that nanosecond magnitudes in big-M rows let it claim
//! false optima. Times are divided by their greatest common divisor; where even that leaves a horizon
//! of more than [`MOST_UNITS`], by a coarser unit, rounded down. Rounding every length down only
//! relaxes the problem: a schedule of T ns, its starts divided by the unit, is legal in the coarse
//! problem at T/unit, so that a bound of c units is a bound of c·unit ns.

use crate::problem::Problem;
use crate::schedule::OpKind;

/// Longest horizon, in units, for which the greatest common divisor is used as it is.
const MOST_UNITS: i64 = 100_000;
/// Horizon, in units, of the coarse unit otherwise.
const COARSE_UNITS: i64 = 40_000;

/// The unit of time of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Its length, ns; at least 1.
    pub(crate) unit_ns: i64,
}

impl Scale {
    /// The unit for a problem whose best known makespan is `makespan_ns`.
    pub(crate) fn of(problem: &Problem, makespan_ns: i64) -> Scale {
        let kinds = [OpKind::F, OpKind::B, OpKind::W, OpKind::O, OpKind::R];
        let stages = problem.stages();
        let lengths = kinds.iter().flat_map(|&kind| (0..stages).map(move |s| problem.duration(kind, s)));
        let hops = (0..stages.saturating_sub(1)).flat_map(|s| [problem.hop_forward(s), problem.hop_backward(s)]);
        let divisor = lengths.chain(hops).fold(0, gcd).max(1);
        let unit_ns = if makespan_ns / divisor <= MOST_UNITS { divisor } else { makespan_ns / COARSE_UNITS + 1 };
        Scale { unit_ns }
    }

    /// A length in units, rounded down.
    pub(super) fn units(&self, ns: i64) -> i64 {
        ns.div_euclid(self.unit_ns)
    }

    /// The bound in ns that a bound in units proves. Optima are whole numbers of units, as starts are
    /// sums of lengths: a fractional bound is rounded up, but for what the tolerances can account for.
    pub(super) fn bound_ns(&self, units: f64) -> i64 {
        (units - 1e-3).ceil().max(0.0) as i64 * self.unit_ns
    }
}

/// Greatest common divisor of two numbers of at least 0; 0 is neutral.
pub(crate) fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
