//! From many structures to one: bounds, then rounds of solving in which the better half goes on.

use std::time::{Duration, Instant};

use optpipe_solver::method::Method;

use super::candidates::{Candidate, State};
use super::report::Fate;
use super::{Search, best};
use crate::error::Result;
use crate::text;

/// Structures that get the full solve.
const FINALISTS: usize = 2;
/// Structures that the first round of search starts with, at most.
const SEARCHED: usize = 16;
/// Shares of the time: list scheduling of all, rounds of search; the full solves have the rest.
const LISTED: f64 = 0.2;
const HALVED: f64 = 0.35;

impl Search<'_> {
    /// Solves candidates until one is the best; those cut or dropped say so in their `fate`.
    pub(super) fn halve(&self, candidates: &mut [Candidate], begun: Instant, time: Duration) -> Result<()> {
        let until = |share: f64| begun + time.mul_f64(share);
        let time_to = |share: f64| until(share).saturating_duration_since(Instant::now());
        self.progress.phase_within("structures: bounds and first schedules", time_to(LISTED));
        // The split that balances best stands for its layout; the others follow where that is not cut.
        let order = |candidates: &[Candidate], ranks: fn(usize) -> bool| {
            let mut order: Vec<usize> = (0..candidates.len())
                .filter(|&i| candidates[i].fate == Fate::NotTried && ranks(candidates[i].rank))
                .collect();
            order.sort_by_key(|&i| candidates[i].bound_ns);
            order
        };
        let first = order(candidates, |rank| rank == 0);
        self.list(candidates, &first, until(LISTED / 2.0))?;
        let others = order(candidates, |rank| rank > 0);
        self.list(candidates, &others, until(LISTED))?;

        let mut left: Vec<usize> = (0..candidates.len()).filter(|&i| candidates[i].makespan_ns().is_some()).collect();
        let rounds = SEARCHED.ilog2() - FINALISTS.ilog2();
        for round in 1..=rounds {
            self.cut(candidates, &mut left);
            let most = (SEARCHED >> (round - 1)).max(FINALISTS);
            drop_worst(candidates, &mut left, most, round as usize - 1);
            if left.len() <= FINALISTS {
                break;
            }
            let share = LISTED + HALVED * f64::from(round) / f64::from(rounds);
            let text = format!("structures: {} go on, round {round} of search", left.len());
            self.progress.phase_within(&text, time_to(share));
            self.improve(candidates, &left, Method::Search, until(share))?;
        }
        self.cut(candidates, &mut left);
        drop_worst(candidates, &mut left, FINALISTS, rounds as usize);
        self.progress.phase_within(&format!("structures: full solve of {}", left.len()), time_to(1.0));
        let solved = self.improve(candidates, &left, Method::Auto, until(1.0))?;
        for &i in &left[..solved] {
            candidates[i].fate = Fate::Finalist;
        }
        Ok(())
    }

    /// List scheduling of candidates in this order, unless a bound says that they cannot be the best.
    fn list(&self, candidates: &mut [Candidate], order: &[usize], deadline: Instant) -> Result<()> {
        for (done, &i) in order.iter().enumerate() {
            let known = best(candidates).and_then(|best| candidates[best].makespan_ns());
            let hopeless = |x: &Candidate| known.is_some_and(|known| x.bound_ns >= known);
            if !hopeless(&candidates[i]) {
                candidates[i].bound();
            }
            if hopeless(&candidates[i]) {
                candidates[i].fate = Fate::CutByBound;
                continue;
            }
            // At least one structure is solved whatever the time.
            if known.is_some() && self.over(deadline) {
                break;
            }
            let share = slice(deadline, order.len() - done);
            let solution = self.solve(candidates[i].problem(), Method::AdaptiveOffload, share, None)?;
            candidates[i].take(solution);
            candidates[i].fate = Fate::Dropped { round: 0 };
            let makespan = candidates[i].makespan_ns().unwrap_or(0);
            let shown = text::duration(makespan);
            self.progress.update(&format!("structures: {} of {}, {shown}", done + 1, order.len()));
        }
        Ok(())
    }

    /// Leaves out what cannot be the best any more.
    fn cut(&self, candidates: &mut [Candidate], left: &mut Vec<usize>) {
        let Some(best) = best(candidates) else { return };
        let known = candidates[best].makespan_ns();
        left.retain(|&i| {
            let hopeless = i != best && known.is_some_and(|known| candidates[i].bound_ns >= known);
            if hopeless {
                candidates[i].fate = Fate::CutByBound;
            }
            !hopeless
        });
    }

    /// More time for each, from the schedule that it has. Returns how many had their turn before the time was
    /// over.
    fn improve(
        &self,
        candidates: &mut [Candidate],
        left: &[usize],
        method: Method,
        deadline: Instant,
    ) -> Result<usize> {
        for (done, &i) in left.iter().enumerate() {
            if self.over(deadline) {
                return Ok(done);
            }
            let share = slice(deadline, left.len() - done);
            let solution = {
                let start = match &candidates[i].state {
                    State::Solved(solution) if solution.proven => continue,
                    State::Solved(solution) => Some(&**solution),
                    State::Unsolved => None,
                };
                self.solve(candidates[i].problem(), method, share, start)?
            };
            candidates[i].take(solution);
        }
        Ok(left.len())
    }
}

/// An equal part of what is left until a deadline, and at least a moment.
fn slice(deadline: Instant, parts: usize) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    (left / u32::try_from(parts.max(1)).unwrap_or(u32::MAX)).max(Duration::from_millis(1))
}

/// Keeps the shortest ones.
fn drop_worst(candidates: &mut [Candidate], left: &mut Vec<usize>, most: usize, round: usize) {
    left.sort_by_key(|&i| (candidates[i].makespan_ns(), i));
    for &i in left.iter().skip(most) {
        candidates[i].fate = Fate::Dropped { round };
    }
    left.truncate(most);
}
