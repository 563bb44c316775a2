//! The memory-time front: the shortest step that is found at each of several capacities.

use std::time::{Duration, Instant};

use optpipe_solver::bound::lower_bound;
use optpipe_solver::method::Method;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::Solution;

use super::candidates::{Candidate, State, needed_bytes};
use super::report::{Fate, FrontPoint};
use super::{Front, Search};
use crate::error::Result;

/// Structures that are solved at one capacity, at most.
const SOLVED: usize = 6;

/// The best of one capacity.
#[derive(Clone)]
struct Best {
    candidate: usize,
    solution: Solution,
}

impl Search<'_> {
    /// From little memory to much: a schedule of less memory is one of more, so that a point is never
    /// slower than the one before. The job's own capacities are one of the points; what is found there may be
    /// better than what was chosen, and is chosen then. Returns what is chosen, and the points.
    pub(super) fn front(
        &self,
        candidates: &mut [Candidate],
        chosen: usize,
        begun: Instant,
    ) -> Result<(usize, Vec<FrontPoint>)> {
        let own = candidates[chosen].problem().bytes.capacity.clone();
        let mut capacities = match self.front {
            Front::None => return Ok((chosen, Vec::new())),
            Front::Points(count) => spaced(candidates, &own, *count),
            Front::Capacities(all) => all.iter().map(|&bytes| vec![to_i64(bytes); own.len()]).collect(),
        };
        capacities.push(own.clone());
        capacities.sort_by_key(|capacity| capacity.iter().map(|&bytes| i128::from(bytes)).sum::<i128>());
        capacities.dedup();
        let deadline = begun + self.time_limit;
        let mut points: Vec<FrontPoint> = Vec::new();
        let mut before: Option<Best> = None;
        let mut at_own: Option<Best> = None;
        for (done, capacity) in capacities.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let text = format!("memory-time front: point {} of {}", done + 1, capacities.len());
            self.progress.phase_within(&text, left);
            let share = left / u32::try_from(capacities.len() - done).unwrap_or(u32::MAX);
            // What the search itself found takes part wherever it fits.
            let known = [before.as_ref().map(|best| (best.candidate, &best.solution)), found(candidates, chosen)];
            let Some(best) = self.point(candidates, capacity, &known, share)? else {
                points.push(FrontPoint::infeasible(capacity));
                continue;
            };
            let problem = at(&candidates[best.candidate], capacity);
            points.push(FrontPoint::new(&candidates[best.candidate], &problem, &best.solution));
            if *capacity == own {
                at_own = Some(best.clone());
            }
            before = Some(best);
        }
        let Some(Best { candidate, solution }) = at_own else { return Ok((chosen, points)) };
        let better = candidates[chosen].makespan_ns().is_none_or(|known| solution.makespan_ns < known);
        candidates[candidate].take(solution);
        if better && candidate != chosen {
            candidates[chosen].fate = Fate::Finalist;
            candidates[candidate].fate = Fate::Chosen;
            return Ok((candidate, points));
        }
        Ok((chosen, points))
    }

    /// The best at one capacity.
    fn point(
        &self,
        candidates: &[Candidate],
        capacity: &[i64],
        known: &[Option<(usize, &Solution)>],
        time: Duration,
    ) -> Result<Option<Best>> {
        let deadline = Instant::now() + time;
        let mut best: Option<Best> = None;
        let offer = |best: &mut Option<Best>, candidate: usize, solution: Solution| {
            if best.as_ref().is_none_or(|best| solution.makespan_ns < best.solution.makespan_ns) {
                *best = Some(Best { candidate, solution });
            }
        };
        for &(i, solution) in known.iter().flatten() {
            let problem = at(&candidates[i], capacity);
            if problem.feasible().is_ok() && optpipe_solver::check::check(&problem, &solution.schedule).is_legal() {
                offer(&mut best, i, self.solve(&problem, Method::AdaptiveOffload, time / 8, Some(solution))?);
            }
        }
        // Of each layout and size the first split that fits here; candidates stand in that order.
        let mut fitting: Vec<(i64, usize)> = Vec::new();
        for (i, candidate) in candidates.iter().enumerate() {
            if fitting.last().is_some_and(|&(_, last)| same_layout(&candidates[last], candidate)) {
                continue;
            }
            if best.is_some() && self.over(deadline) {
                break;
            }
            let problem = at(candidate, capacity);
            if (0..problem.devices).all(|d| needed_bytes(&problem, d) <= capacity[d]) {
                fitting.push((lower_bound(&problem), i));
            }
        }
        fitting.sort_unstable();
        let mut solved = 0;
        for (bound, i) in fitting {
            let hopeless = best.as_ref().is_some_and(|best| bound >= best.solution.makespan_ns);
            if hopeless || solved == SOLVED || (best.is_some() && self.over(deadline)) {
                continue;
            }
            solved += 1;
            let problem = at(&candidates[i], capacity);
            let solution = self.solve(&problem, Method::AdaptiveOffload, time / (2 * SOLVED as u32), None)?;
            offer(&mut best, i, solution);
        }
        // What is left of the time goes into the best one.
        if let Some(Best { candidate, solution }) = &best
            && !solution.proven
            && !self.over(deadline)
        {
            let left = deadline.saturating_duration_since(Instant::now());
            let candidate = *candidate;
            let problem = at(&candidates[candidate], capacity);
            let improved = self.solve(&problem, Method::Search, left, Some(solution))?;
            best = Some(Best { candidate, solution: improved });
        }
        Ok(best)
    }
}

/// The solution that the search chose.
fn found(candidates: &[Candidate], chosen: usize) -> Option<(usize, &Solution)> {
    match &candidates[chosen].state {
        State::Solved(solution) => Some((chosen, solution)),
        State::Unsolved => None,
    }
}

fn same_layout(a: &Candidate, b: &Candidate) -> bool {
    let (a, b) = (&a.structure, &b.structure);
    (a.chunks, a.placement, a.microbatch_size) == (b.chunks, b.placement, b.microbatch_size)
}

/// A structure's problem with other capacities.
fn at(candidate: &Candidate, capacity: &[i64]) -> Problem {
    let mut problem = candidate.problem().clone();
    problem.bytes.capacity = capacity.to_vec();
    problem
}

/// Capacities in equal ratios: the job's times a factor, from the least at which a structure can run at
/// all to where the hungriest of the structures that were pursued needs no more.
fn spaced(candidates: &[Candidate], own: &[i64], count: usize) -> Vec<Vec<i64>> {
    let factor = |bytes: &dyn Fn(&Problem, usize) -> i64, candidate: &Candidate| {
        let problem = candidate.problem();
        (0..problem.devices).map(|d| bytes(problem, d) as f64 / own[d].max(1) as f64).fold(0.0, f64::max)
    };
    let least = candidates.iter().map(|x| factor(&needed_bytes, x)).fold(f64::INFINITY, f64::min);
    // Twice as many microbatches as devices in flight leave no bubble that memory could close (ZB-H2).
    let all = |problem: &Problem, d: usize| {
        let held: i64 = problem.stages_of(d).map(|s| problem.bytes.activation[s]).sum();
        problem.bytes.r#static[d] + held * problem.microbatches.min(2 * problem.devices) as i64
    };
    let pursued = candidates.iter().filter(|x| matches!(x.fate, Fate::Chosen | Fate::Finalist));
    let most = pursued.map(|x| factor(&all, x)).fold(least, f64::max);
    let steps = count.max(2) - 1;
    let factors = (0..count).map(|i| least * (most / least).powf(i as f64 / steps as f64));
    factors.map(|factor| own.iter().map(|&bytes| (bytes as f64 * factor).ceil() as i64).collect()).collect()
}

fn to_i64(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
