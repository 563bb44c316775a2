//! From measured ops to the times of the next round's problem.
//!
//! A round contributes one number for each op kind and stage: the median over the microbatches of
//! the ops' medians over the steps. The next problem takes the median of the last [`WINDOW`]
//! rounds' numbers: one disturbed round moves nothing, a lasting change arrives after two rounds.
//! What a round did not do (a stage that offloaded nothing) keeps its last estimate.

use std::collections::BTreeMap;

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::OpKind;

use crate::measured::Measured;

/// Rounds whose medians count.
pub const WINDOW: usize = 3;

/// Measured times of one round: the median by op kind and stage, ns.
pub type RoundTimes = BTreeMap<(OpKind, usize), i64>;

/// The median; of an even number the mean of the middle two.
fn median(values: &mut [i64]) -> Option<i64> {
    values.sort_unstable();
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(values[middle - 1] + (values[middle] - values[middle - 1]) / 2),
    }
}

/// What one round measured.
pub fn round_times(measured: &Measured) -> RoundTimes {
    let mut groups: BTreeMap<(OpKind, usize), Vec<i64>> = BTreeMap::new();
    for op in &measured.ops {
        let median = i64::try_from(op.median_ns).unwrap_or(i64::MAX);
        groups.entry((op.op, op.stage)).or_default().push(median);
    }
    groups.into_iter().filter_map(|(key, mut values)| Some((key, median(&mut values)?))).collect()
}

/// The profile's problem with the rounds' times in place of the profile's, where there are any.
pub fn updated(profiled: &Problem, rounds: &[RoundTimes]) -> Problem {
    let mut problem = profiled.clone();
    let t = &mut problem.time_ns;
    let lists = [
        (OpKind::F, &mut t.forward),
        (OpKind::B, &mut t.backward_input),
        (OpKind::W, &mut t.backward_weight),
        (OpKind::O, &mut t.offload),
        (OpKind::R, &mut t.reload),
    ];
    for (kind, list) in lists {
        for (stage, time) in list.iter_mut().enumerate() {
            let mut recent: Vec<i64> =
                rounds.iter().rev().filter_map(|round| round.get(&(kind, stage)).copied()).take(WINDOW).collect();
            if let Some(value) = median(&mut recent) {
                *time = value;
            }
        }
    }
    problem
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn problem() -> Problem {
        serde_yaml::from_str(
            "{devices: 1, placement: [0], microbatches: 2, split_backward: true,
              time_ns: {forward: [100], backward_input: [100], backward_weight: [100], send_forward: [],
                        send_backward: [], offload: [50], reload: [50]},
              bytes: {activation: [8], weight_context: [4], offloadable: [8], static: [0], capacity: [24]},
              offload_channel: [0], reload_channel: [1]}",
        )
        .unwrap()
    }

    fn round(forward: i64) -> RoundTimes {
        BTreeMap::from([((OpKind::F, 0), forward)])
    }

    #[test]
    fn one_disturbed_round_moves_nothing() {
        let calm = updated(&problem(), &[round(120), round(121), round(119)]);
        let disturbed = updated(&problem(), &[round(120), round(1200), round(119)]);
        assert_eq!(calm.time_ns.forward, [120]);
        assert_eq!(disturbed.time_ns.forward, [120]);
    }

    #[test]
    fn a_lasting_change_arrives() {
        let changed = updated(&problem(), &[round(100), round(100), round(200), round(200)]);
        assert_eq!(changed.time_ns.forward, [200]);
    }

    #[test]
    fn what_was_not_done_keeps_its_estimate() {
        let mut offloaded = round(120);
        offloaded.insert((OpKind::O, 0), 70);
        let next = updated(&problem(), &[offloaded, round(120), round(120), round(120), round(120)]);
        assert_eq!(next.time_ns.offload, [70], "measured long ago, still the best known");
        assert_eq!(next.time_ns.reload, [50], "never measured: calibration");
    }
}
