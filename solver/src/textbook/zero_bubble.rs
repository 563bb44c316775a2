//! Zero Bubble (Qi et al., arXiv 2401.10241) and its V placement (arXiv 2405.15362).

use super::{Ranks, one_f_one_b, op};
use crate::problem::Problem;
use crate::schedule::{Op, OpKind};

/// ZB-H1: the F and B of 1F1B; at stage s up to s W wait to fill the gaps, so that memory stays that
/// of 1F1B's first stage.
pub(super) fn h1(problem: &Problem) -> Ranks {
    let last = problem.stages() - 1;
    fill(problem, &one_f_one_b(problem, |s| last - s), |s| s)
}

/// ZB-H2: twice as many F ahead, enough to compute until the first B comes, and up to 2s W waiting.
pub(super) fn h2(problem: &Problem) -> Ranks {
    let last = problem.stages() - 1;
    fill(problem, &one_f_one_b(problem, |s| 2 * (last - s)), |s| 2 * s)
}

/// Inserts W: where the stage would be idle if every op took one unit of time and sending none, and
/// where more than `most(s)` would wait.
fn fill(problem: &Problem, ranks: &Ranks, most: impl Fn(usize) -> usize) -> Ranks {
    let (stages, m) = (problem.stages(), problem.microbatches);
    let mut filled: Ranks = vec![Vec::with_capacity(3 * m); stages];
    let mut at = vec![0; stages];
    // How many F, B, W each stage has done.
    let mut done = vec![[0; 3]; stages];
    while filled.iter().any(|x| x.len() < 3 * m) {
        let before = done.clone();
        for s in 0..stages {
            let [_, b, w] = before[s];
            let next = ranks[s].get(at[s]).copied();
            let ready = next.filter(|x| match x.kind {
                OpKind::F => s == 0 || before[s - 1][0] > x.microbatch,
                _ if s + 1 == stages => before[s][0] > x.microbatch,
                _ => before[s + 1][1] > x.microbatch,
            });
            match ready {
                Some(x) if b - w <= most(s) => {
                    at[s] += 1;
                    done[s][usize::from(x.kind == OpKind::B)] += 1;
                    filled[s].push(x);
                }
                _ if w < b => {
                    done[s][2] += 1;
                    filled[s].push(op(OpKind::W, s, w));
                }
                _ => {}
            }
        }
    }
    filled
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
