//! `solve.yaml` of a round: how its solve went, what found what when.

use optpipe_configs::file::{Check, Invalid, VERSION, check_version};
use optpipe_solver::solve::{PartRecord, Solution, StopReason, TracePoint};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cache::Hit;

/// Points of a trace that are kept, at most.
pub const MOST_POINTS: usize = 400;

/// How one solve went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Solved {
    /// Format version: 1.
    pub version: u32,
    /// Why it ended.
    pub stop: StopReason,
    /// What the cache of solved problems had; the parts and the trace of an exact hit are those of the solve
    /// that filled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Hit>,
    /// What each part did, in order.
    pub parts: Vec<PartRecord>,
    /// Makespan and bound over time: each change, or, of very many, an even choice with the first and the last.
    pub trace: Vec<TracePoint>,
}

impl Check for Solved {
    fn check(&self) -> Result<(), Invalid> {
        check_version(self.version)
    }
}

impl Solved {
    /// The record of a solve.
    pub fn of(solution: &Solution, cache: Option<Hit>) -> Solved {
        Solved {
            version: VERSION,
            stop: solution.stop,
            cache,
            parts: solution.parts.clone(),
            trace: thinned(&solution.trace),
        }
    }
}

fn thinned(trace: &[TracePoint]) -> Vec<TracePoint> {
    if trace.len() <= MOST_POINTS {
        return trace.to_vec();
    }
    (0..MOST_POINTS).map(|i| trace[i * (trace.len() - 1) / (MOST_POINTS - 1)].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_trace_keeps_its_ends_and_its_order() {
        for length in [0, 1, MOST_POINTS, MOST_POINTS + 1, 10 * MOST_POINTS] {
            let point =
                |i: usize| TracePoint { time_s: i as f64, makespan_ns: 1, bound_ns: 1, part: "search".to_owned() };
            let trace: Vec<TracePoint> = (0..length).map(point).collect();
            let kept = thinned(&trace);
            assert_eq!(kept.len(), length.min(MOST_POINTS));
            assert_eq!((kept.first(), kept.last()), (trace.first(), trace.last()));
            assert!(kept.windows(2).all(|pair| pair[0].time_s < pair[1].time_s));
        }
    }
}
