//! Zero Bubble (Qi et al., arXiv 2401.10241) and its V placement (arXiv 2405.15362).

use std::collections::VecDeque;

use super::{Ranks, one_f_one_b, op};
use crate::problem::Problem;
use crate::schedule::{Op, OpKind};

/// ZB-H1: the F and B of 1F1B; at stage s up to s W wait to fill the gaps, so that memory stays that
/// of 1F1B's first stage.
pub(super) fn h1(problem: &Problem) -> Ranks {
    let last = problem.stages() - 1;
    fill(problem, &one_f_one_b(problem, |s| last - s), |s| s).0
}

/// ZB-H2: twice as many F ahead, enough to compute until the first B comes, and up to 2s W waiting.
pub(super) fn h2(problem: &Problem) -> Ranks {
    let last = problem.stages() - 1;
    fill(problem, &one_f_one_b(problem, |s| 2 * (last - s)), |s| 2 * s).0
}

/// Inserts W: where the rank would be idle if every op took one unit of time and sending none, and
/// where more than `most(rank)` would wait. Returns the time that this takes, too.
pub(super) fn fill(problem: &Problem, ranks: &Ranks, most: impl Fn(usize) -> usize) -> (Ranks, usize) {
    let (stages, m) = (problem.stages(), problem.microbatches);
    let mut filled: Ranks = ranks.iter().map(|x| Vec::with_capacity(3 * x.len() / 2)).collect();
    let mut at = vec![0; ranks.len()];
    let mut waiting = vec![VecDeque::new(); ranks.len()];
    // When F and B of each stage and microbatch end.
    let mut end = [vec![usize::MAX; stages * m], vec![usize::MAX; stages * m]];
    let mut now = 0;
    while at.iter().zip(ranks).any(|(&at, rank)| at < rank.len()) || waiting.iter().any(|x| !x.is_empty()) {
        for (r, rank) in ranks.iter().enumerate() {
            let has = |kind: usize, s: usize, j: usize| end[kind][s * m + j] <= now;
            let ready = rank.get(at[r]).copied().filter(|x| match x.kind {
                OpKind::F => x.stage == 0 || has(0, x.stage - 1, x.microbatch),
                _ if x.stage + 1 == stages => has(0, x.stage, x.microbatch),
                _ => has(1, x.stage + 1, x.microbatch),
            });
            match ready {
                Some(x) if waiting[r].len() <= most(r) => {
                    at[r] += 1;
                    end[usize::from(x.kind == OpKind::B)][x.stage * m + x.microbatch] = now + 1;
                    filled[r].push(x);
                    if x.kind == OpKind::B {
                        waiting[r].push_back(op(OpKind::W, x.stage, x.microbatch));
                    }
                }
                _ => filled[r].extend(waiting[r].pop_front()),
            }
        }
        now += 1;
    }
    (filled, now)
}

/// ZB-V: stage r and stage S-1-r on one device, each microbatch down and back up. The pattern is made
/// for 2P - 1 microbatches or more; of those, the ones that there are.
pub(super) fn v(problem: &Problem) -> Ranks {
    let ranks = problem.stages() / 2;
    let m = problem.microbatches.max(2 * ranks - 1);
    (0..ranks)
        .map(|r| {
            let mut rank = Rank { stages: [r, problem.stages() - 1 - r], ..Rank::default() };
            for _ in 0..2 * (ranks - r) - 1 {
                rank.next(OpKind::F, 0);
            }
            for _ in 0..r {
                rank.next(OpKind::F, 1);
                rank.next(OpKind::F, 0);
            }
            for _ in 0..ranks - r {
                rank.next(OpKind::F, 1);
                rank.backward(1);
            }
            while rank.done[1][0] < rank.done[0][0] || rank.done[0][0] < m {
                if rank.done[0][0] < m {
                    rank.next(OpKind::F, 0);
                }
                rank.backward(0);
                rank.next(OpKind::F, 1);
                rank.backward(1);
            }
            for _ in 0..r {
                rank.next(OpKind::B, 0);
                rank.next(OpKind::B, 1);
            }
            for _ in 0..ranks - r {
                rank.backward(0);
            }
            for chunk in [1, 0] {
                while rank.done[chunk][2] < rank.done[chunk][1] {
                    rank.next(OpKind::W, chunk);
                }
            }
            rank.ops.retain(|x| x.microbatch < problem.microbatches);
            rank.ops
        })
        .collect()
}

/// A device's ops as they are listed, and how many F, B, W of each of its two chunks they hold.
#[derive(Default)]
struct Rank {
    stages: [usize; 2],
    ops: Vec<Op>,
    done: [[usize; 3]; 2],
}

impl Rank {
    fn next(&mut self, kind: OpKind, chunk: usize) {
        let count = &mut self.done[chunk][kind as usize];
        self.ops.push(op(kind, self.stages[chunk], *count));
        *count += 1;
    }

    fn backward(&mut self, chunk: usize) {
        self.next(OpKind::B, chunk);
        self.next(OpKind::W, chunk);
    }
}
