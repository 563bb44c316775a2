//! V-Half and V-Min (Qi et al., Pipeline Parallelism with Controllable Memory, arXiv 2405.15362): two stages
//! a device in a V, and one building block, repeated every six units of time (F = B = W = 1), whose delays
//! from device to device set how long activations live, and with that the memory.

use super::zero_bubble::fill;
use super::{Ranks, op};
use crate::problem::Problem;
use crate::schedule::OpKind;

/// Units of time between one microbatch and the next: F, B and W of both stages of a device.
const PERIOD: usize = 6;
/// F(r), F(S-1-r), B(S-1-r), B(r): the order in which a microbatch comes by.
const PASSES: usize = 4;

/// Delays of V-Half from one device to the next, a pass.
const HALF: [usize; PASSES] = [1, 2, 1, 2];
/// Delays of V-Min.
const MIN: [usize; PASSES] = [1, 1, 1, 1];

/// V-Half: half of 1F1B's activation memory and half of its bubble.
pub(super) fn half(problem: &Problem) -> Ranks {
    repeat(problem, HALF)
}

/// V-Min: a third of 1F1B's activation memory and two thirds of its bubble.
pub(super) fn min(problem: &Problem) -> Ranks {
    repeat(problem, MIN)
}

/// Blocks that are tried, those with the least waits first.
const BLOCKS: usize = 8;
/// W that wait at most for a gap.
const WAITING: usize = 2;

/// Repeats a block for every microbatch and fills idle time with W: the block with which that is shortest.
fn repeat(problem: &Problem, delays: [usize; PASSES]) -> Ranks {
    let (last, m) = (problem.stages() - 1, problem.microbatches);
    let ranks = problem.stages() / 2;
    let order = |start: &Block, r: usize| {
        let passes = [(OpKind::F, r), (OpKind::F, last - r), (OpKind::B, last - r), (OpKind::B, r)];
        let mut ops = Vec::with_capacity(PASSES * m);
        for (pass, times) in start.iter().enumerate() {
            ops.extend((0..m).map(|j| (times[r] + PERIOD * j, pass, j)));
        }
        ops.sort_unstable();
        ops.into_iter().map(|(_, pass, j)| op(passes[pass].0, passes[pass].1, j)).collect()
    };
    let filled = blocks(ranks, delays).map(|start| {
        let orders: Ranks = (0..ranks).map(|r| order(&start, r)).collect();
        fill(problem, &orders, |_| WAITING)
    });
    filled.min_by_key(|x| x.1).unwrap_or_default().0
}

/// Start of each pass of the first microbatch on each device.
type Block = [Vec<usize>; PASSES];

/// Blocks in which no two passes ever want a device at one time: where passes change direction, they wait.
fn blocks(ranks: usize, delays: [usize; PASSES]) -> impl Iterator<Item = Block> {
    let waits = (0..PERIOD).flat_map(|a| (0..PERIOD).flat_map(move |b| (0..PERIOD).map(move |c| [a, b, c])));
    let mut waits: Vec<[usize; 3]> = waits.collect();
    waits.sort_by_key(|x| x.iter().sum::<usize>());
    let block = move |waits: [usize; 3]| {
        let mut start: Block = Default::default();
        let mut from = 0;
        for (pass, times) in start.iter_mut().enumerate() {
            *times = (0..ranks).map(|i| from + delays[pass] * i).collect();
            let end = from + delays[pass] * (ranks - 1) + 1;
            from = end + waits.get(pass).copied().unwrap_or(0);
            // F goes down the devices and back up; so does B, from the last stage on device 0.
            if pass % 2 == 1 {
                times.reverse();
            }
        }
        start
    };
    let clashes = move |start: &Block| {
        (0..ranks).any(|r| {
            let mut taken = [false; PERIOD];
            start.iter().any(|times| std::mem::replace(&mut taken[times[r] % PERIOD], true))
        })
    };
    waits.into_iter().map(block).filter(move |x| !clashes(x)).take(BLOCKS)
}
