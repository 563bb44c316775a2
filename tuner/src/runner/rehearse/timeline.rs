//! When every op of the pipeline runs, by what is known so far of how long each takes.

use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Op, OpKind};

use super::super::error::RunError;
use crate::replay::{KINDS, Replay, number};

/// The whole pipeline, replayed with the time that each op occupies its queue: as predicted until it has
/// been measured.
pub(super) struct Timeline<'a> {
    problem: &'a Problem,
    replay: Replay<'a>,
    /// By op number, ns.
    occupied: Vec<i64>,
    /// By op number, ns; `None` for ops that the order does not have.
    ends: Vec<Option<i64>>,
}

impl<'a> Timeline<'a> {
    /// The timeline that the problem's times predict.
    ///
    /// # Errors
    /// [`RunError::Schedule`] where the order gets stuck.
    pub(super) fn predicted(problem: &'a Problem, order: &Order) -> Result<Timeline<'a>, RunError> {
        let occupied = KINDS
            .into_iter()
            .flat_map(|kind| (0..problem.stages()).map(move |stage| (kind, stage)))
            .flat_map(|(kind, stage)| std::iter::repeat_n(problem.duration(kind, stage), problem.microbatches))
            .collect();
        let mut timeline = Timeline { problem, replay: Replay::new(problem, order), occupied, ends: Vec::new() };
        timeline.replay()?;
        Ok(timeline)
    }

    fn replay(&mut self) -> Result<(), RunError> {
        let stuck = || RunError::Schedule { count: 1, first: vec!["its order gets stuck".to_owned()] };
        self.ends = self.replay.ends(&self.occupied).ok_or_else(stuck)?;
        Ok(())
    }

    /// Puts measured times in place of what was known of these ops; all ops' times follow.
    ///
    /// # Errors
    /// As [`Timeline::predicted`].
    pub(super) fn learn(&mut self, measured: impl Iterator<Item = (Op, u64)>) -> Result<(), RunError> {
        for (op, occupied_ns) in measured {
            self.occupied[number(self.problem, op)] = i64::try_from(occupied_ns).unwrap_or(i64::MAX);
        }
        self.replay()
    }

    /// By op number: when each op ends, ns.
    pub(super) fn ends(&self) -> &[Option<i64>] {
        &self.ends
    }

    /// When an op ends, ns; 0 for one that the order does not have.
    pub(super) fn end(&self, op: Op) -> u64 {
        unsigned(self.ends[number(self.problem, op)].unwrap_or(0))
    }

    /// The end of the last op, ns.
    pub(super) fn step_ns(&self) -> u64 {
        unsigned(self.ends.iter().flatten().copied().max().unwrap_or(0))
    }

    /// What a device has to wait for that others do, by op number, ns: its F and B until their input has
    /// come, another's copy on its channel until it is over.
    pub(super) fn arrivals(&self, device: usize) -> Vec<u64> {
        let p = self.problem;
        let mut earliest = vec![0; self.ends.len()];
        for kind in KINDS {
            for stage in 0..p.stages() {
                let own = p.placement[stage] == device;
                for microbatch in 0..p.microbatches {
                    let of = |kind, stage| Op { kind, stage, microbatch };
                    let at = match kind {
                        OpKind::F if own && stage > 0 && p.placement[stage - 1] != device => {
                            self.end(of(OpKind::F, stage - 1)) + unsigned(p.hop_forward(stage - 1))
                        }
                        OpKind::B if own && stage + 1 < p.stages() && p.placement[stage + 1] != device => {
                            let sender = if p.split_backward { OpKind::B } else { OpKind::W };
                            self.end(of(sender, stage + 1)) + unsigned(p.hop_backward(stage))
                        }
                        OpKind::O | OpKind::R if !own => self.end(of(kind, stage)),
                        _ => continue,
                    };
                    earliest[number(p, of(kind, stage))] = at;
                }
            }
        }
        earliest
    }
}

fn unsigned(x: i64) -> u64 {
    u64::try_from(x).unwrap_or(0)
}
