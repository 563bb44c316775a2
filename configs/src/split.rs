//! Splitting a model's layers over stages.
//!
//! A model has `L + 2` layers in order: the embedding, `L` blocks, the head. Each stage holds a
//! contiguous, non-empty run of them, so a split is written as the number of blocks of each stage: the
//! first stage has the embedding beside its blocks, the last one the head.
//!
//! ```
//! use optpipe_configs::split::{balance, layer_ranges};
//!
//! // A head as long as three blocks: the second stage gets fewer blocks.
//! let times = [1, 10, 10, 10, 10, 10, 10, 30];
//! let split = balance(&times, &[0, 1])?;
//! assert_eq!(split, [4, 2]);
//! assert_eq!(layer_ranges(&split), [0..5, 5..8]);
//! # Ok::<(), optpipe_configs::split::SplitError>(())
//! ```

use std::ops::Range;

/// Why layers cannot be split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// A stage would hold nothing.
    #[error("{stages} stages, but the model has {layers} layers (embedding, {blocks} blocks, head): a stage holds at least one", blocks = .layers - 2)]
    TooManyStages {
        /// Stages asked for.
        stages: usize,
        /// Layers, embedding and head included.
        layers: usize,
    },
    /// No stage, or not even embedding and head.
    #[error("expected at least one stage and two layers (embedding, head), found {stages} and {layers}")]
    Nothing {
        /// Stages asked for.
        stages: usize,
        /// Layers, embedding and head included.
        layers: usize,
    },
}

/// The blocks of each stage, balanced over times of the layers (any unit; the sum of forward,
/// backward_input and backward_weight): `layer_times` has the embedding first and the head last,
/// `placement` the device of each stage.
///
/// With one stage a device the longest stage is as short as possible and, among such splits, the sum of
/// squares is as small as possible, both exact: dynamic programming over contiguous splits. With several
/// stages a device the longest device counts first, since it bounds the throughput, then the longest
/// stage; there the exact split by stages is improved by moving layers over one or two boundaries at a
/// time until no such move helps, which need not be the best of all splits.
///
/// No layer is dropped or added: the blocks sum to `layer_times.len() - 2`.
pub fn balance(layer_times: &[u64], placement: &[usize]) -> Result<Vec<usize>, SplitError> {
    let (layers, stages) = (layer_times.len(), placement.len());
    if stages == 0 || layers < 2 {
        return Err(SplitError::Nothing { stages, layers });
    }
    if stages > layers {
        return Err(SplitError::TooManyStages { stages, layers });
    }
    let mut before = vec![0_u128; layers + 1];
    for (i, &time) in layer_times.iter().enumerate() {
        before[i + 1] = before[i] + u128::from(time);
    }
    let mut ends = exact(&before, stages);
    let mut devices = placement.to_vec();
    devices.sort_unstable();
    devices.dedup();
    if devices.len() < stages {
        let device_of: Vec<usize> = placement.iter().filter_map(|d| devices.binary_search(d).ok()).collect();
        improve(&before, &device_of, devices.len(), &mut ends);
    }
    let mut start = 0;
    let mut blocks: Vec<usize> = Vec::with_capacity(stages);
    for &end in &ends {
        blocks.push(end - start);
        start = end;
    }
    blocks[0] -= 1;
    blocks[stages - 1] -= 1;
    Ok(blocks)
}

/// The layers of each stage, as ranges of indices: 0 is the embedding, `1..=L` the blocks, `L + 1` the
/// head.
pub fn layer_ranges(split: &[usize]) -> Vec<Range<usize>> {
    let mut ranges = Vec::with_capacity(split.len());
    let mut start = 0;
    for (stage, &blocks) in split.iter().enumerate() {
        let ends_of_model = usize::from(stage == 0) + usize::from(stage + 1 == split.len());
        let end = start + blocks + ends_of_model;
        ranges.push(start..end);
        start = end;
    }
    ranges
}

/// The end of each stage's run, exactly: smallest longest stage, then smallest sum of squares.
fn exact(before: &[u128], stages: usize) -> Vec<usize> {
    let longest = table(before, stages, |earlier: u128, time| Some(earlier.max(time)));
    let limit = longest.last().and_then(|row| row.last()).and_then(|cell| cell.map(|(cost, _)| cost));
    let even = table(before, stages, |earlier: u128, time| {
        (Some(time) <= limit).then(|| earlier.saturating_add(time.saturating_mul(time)))
    });
    let mut ends = vec![before.len() - 1; stages];
    for stage in (1..stages).rev() {
        // Every stage of a split within the limit has a predecessor; 0 never stands for a missing one.
        ends[stage - 1] = even[stage][ends[stage]].map_or(0, |(_, start)| start);
    }
    ends
}

/// Cost of the best split of the first `i` layers into `s + 1` stages and the start of its last stage,
/// at `[s][i]`. `join` adds a stage's time to the cost of what is before; `None` forbids it.
fn table(before: &[u128], stages: usize, join: impl Fn(u128, u128) -> Option<u128>) -> Vec<Vec<Option<(u128, usize)>>> {
    let layers = before.len() - 1;
    let mut rows: Vec<Vec<Option<(u128, usize)>>> = Vec::with_capacity(stages);
    rows.push((0..=layers).map(|end| join(0, before[end]).filter(|_| end > 0).map(|cost| (cost, 0))).collect());
    for stage in 1..stages {
        let previous = &rows[stage - 1];
        let row = (0..=layers).map(|end| {
            let starts = stage..end.max(stage);
            let cost = |start: usize| join(previous[start]?.0, before[end] - before[start]).map(|c| (c, start));
            starts.filter_map(cost).min()
        });
        let row = row.collect();
        rows.push(row);
    }
    rows
}

/// Moves boundaries, one or two at a time, while that shortens the longest device, then the longest
/// stage, then the sum of squares of the devices.
fn improve(before: &[u128], device_of: &[usize], devices: usize, ends: &mut Vec<usize>) {
    let stages = ends.len();
    let cost = |ends: &[usize]| -> Option<(u128, u128, u128)> {
        let mut load = vec![0_u128; devices];
        let (mut start, mut longest) = (0, 0);
        for (stage, &end) in ends.iter().enumerate() {
            if end <= start {
                return None;
            }
            let time = before.get(end)? - before[start];
            longest = longest.max(time);
            load[device_of[stage]] += time;
            start = end;
        }
        let squares = load.iter().fold(0_u128, |sum, &x| sum.saturating_add(x.saturating_mul(x)));
        Some((load.into_iter().max().unwrap_or(0), longest, squares))
    };
    // The moves of pairs grow with the square of the stages, and so does the time to rate them all.
    let last_pair = if stages <= 64 { stages - 1 } else { 0 };
    let shifts = [1, -1, 2, -2];
    let Some(mut best) = cost(ends) else { return };
    loop {
        let mut found: Option<Vec<usize>> = None;
        let mut consider = |candidate: &[usize]| {
            if let Some(c) = cost(candidate).filter(|c| *c < best) {
                best = c;
                found = Some(candidate.to_vec());
            }
        };
        let mut candidate = ends.clone();
        for first in 0..stages - 1 {
            for shift in shifts {
                let Some(moved) = ends[first].checked_add_signed(shift) else { continue };
                candidate[first] = moved;
                consider(&candidate);
                for second in first + 1..last_pair {
                    for other in shifts {
                        let Some(moved) = ends[second].checked_add_signed(other) else { continue };
                        candidate[second] = moved;
                        consider(&candidate);
                    }
                    candidate[second] = ends[second];
                }
            }
            candidate[first] = ends[first];
        }
        match found {
            Some(better) => *ends = better,
            None => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every split of `layers` layers into `stages` non-empty runs, as ends.
    fn every_split(layers: usize, stages: usize) -> Vec<Vec<usize>> {
        if stages == 1 {
            return vec![vec![layers]];
        }
        (stages - 1..layers)
            .flat_map(|last| {
                every_split(last, stages - 1).into_iter().map(move |mut ends| {
                    ends.push(layers);
                    ends
                })
            })
            .collect()
    }

    fn times_of(times: &[u64], ends: &[usize]) -> Vec<u64> {
        let mut start = 0;
        ends.iter().map(|&end| times[std::mem::replace(&mut start, end)..end].iter().sum()).collect()
    }

    fn device_times(stage_times: &[u64], placement: &[usize]) -> Vec<u64> {
        let mut load = vec![0; placement.len()];
        for (time, &device) in stage_times.iter().zip(placement) {
            load[device] += time;
        }
        load
    }

    #[test]
    fn the_last_stage_may_hold_the_head_alone() {
        assert_eq!(balance(&[0, 1, 1, 100], &[0, 1]).unwrap(), [2, 0]);
        assert_eq!(balance(&[5, 5], &[0, 1]).unwrap(), [0, 0]);
        assert_eq!(balance(&[5, 1, 1, 5], &[0]).unwrap(), [2]);
    }

    #[test]
    fn more_stages_than_layers_are_an_error_with_both_numbers() {
        let message = balance(&[1, 1, 1], &[0, 1, 2, 3]).unwrap_err().to_string();
        assert!(message.contains("4 stages") && message.contains("3 layers (embedding, 1 blocks, head)"), "{message}");
        assert!(balance(&[1], &[0]).is_err());
        assert!(balance(&[1, 1], &[]).is_err());
    }

    #[test]
    fn times_at_the_end_of_the_range_do_not_overflow() {
        let split = balance(&[u64::MAX; 6], &[0, 1, 2]).unwrap();
        assert_eq!(split, [1, 2, 1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn one_stage_a_device_is_as_good_as_brute_force(
            times in prop::collection::vec(0_u64..50, 2..9),
            stages in 1_usize..6,
        ) {
            prop_assume!(stages <= times.len());
            let placement: Vec<usize> = (0..stages).collect();
            let split = balance(&times, &placement).unwrap();
            let rate = |t: &[u64]| (t.iter().copied().max().unwrap(), t.iter().map(|x| x * x).sum::<u64>());
            let ends: Vec<usize> = layer_ranges(&split).iter().map(|r| r.end).collect();
            let best = every_split(times.len(), stages).iter().map(|e| rate(&times_of(&times, e))).min().unwrap();
            prop_assert_eq!(rate(&times_of(&times, &ends)), best);
        }

        #[test]
        fn no_layer_is_dropped_or_added_and_no_stage_is_empty(
            times in prop::collection::vec(0_u64..1_000, 2..40),
            devices in 1_usize..5,
            chunks in 1_usize..4,
        ) {
            let stages = devices * chunks;
            prop_assume!(stages <= times.len());
            let placement: Vec<usize> = (0..stages).map(|s| s % devices).collect();
            let split = balance(&times, &placement).unwrap();
            prop_assert_eq!(split.iter().sum::<usize>(), times.len() - 2);
            let ranges = layer_ranges(&split);
            prop_assert!(ranges.iter().all(|r| !r.is_empty()));
            prop_assert!(ranges.windows(2).all(|w| w[0].end == w[1].start));
            prop_assert_eq!((ranges[0].start, ranges[stages - 1].end), (0, times.len()));
        }

        #[test]
        fn several_stages_a_device_are_no_worse_than_the_split_by_stages(
            times in prop::collection::vec(1_u64..50, 4..9),
            devices in 1_usize..3,
        ) {
            let placement: Vec<usize> = (0..2 * devices).map(|s| s.min(4 * devices - 1 - s) % devices).collect();
            prop_assume!(placement.len() <= times.len());
            let longest = |split: &[usize]| {
                let ends: Vec<usize> = layer_ranges(split).iter().map(|r| r.end).collect();
                device_times(&times_of(&times, &ends), &placement).into_iter().max().unwrap()
            };
            let by_stage = balance(&times, &(0..placement.len()).collect::<Vec<_>>()).unwrap();
            prop_assert!(longest(&balance(&times, &placement).unwrap()) <= longest(&by_stage));
        }
    }
}
