//! The structures that are looked at, each with its problem and what it takes at least.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use optpipe_configs::job::{Count, Job, Placement, Structure};
use optpipe_configs::profile::Profile;
use optpipe_configs::split;
use optpipe_solver::bound::lower_bound;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::Solution;

use super::Search;
use super::profiles::Times;
use super::report::Fate;
use crate::error::{Error, Result};
use crate::plan::{self, Plan};

/// Layer splits of one layout and microbatch size.
pub(super) const SPLITS: usize = 8;
/// Splits whose neighbours are looked at, where all of them fit.
const EXPANDED: usize = 4;
/// The same where none fits yet.
const EXPANDED_TO_FIT: usize = 100;

/// A structure.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) structure: Structure,
    pub(super) plan: Plan,
    pub(super) times: Times,
    /// Its place among the splits of its layout and size: 0 is the one that balances best.
    pub(super) rank: usize,
    /// Bytes that the device that lacks the most lacks; 0 if it is feasible.
    pub(super) missing_bytes: i64,
    /// No schedule of it is shorter, ns.
    pub(super) bound_ns: i64,
    /// Whether `bound_ns` is more than the cheap bound.
    pub(super) bounded: bool,
    pub(super) state: State,
    pub(super) fate: Fate,
}

/// What is known of a structure's schedules.
#[derive(Debug, Clone)]
pub(super) enum State {
    Unsolved,
    Solved(Box<Solution>),
}

impl Candidate {
    pub(super) fn makespan_ns(&self) -> Option<i64> {
        match &self.state {
            State::Unsolved => None,
            State::Solved(solution) => Some(solution.makespan_ns),
        }
    }

    pub(super) fn problem(&self) -> &Problem {
        &self.plan.problem
    }

    /// Makes sure that the bound is the solver's.
    pub(super) fn bound(&mut self) {
        if !std::mem::replace(&mut self.bounded, true) {
            self.bound_ns = self.bound_ns.max(lower_bound(self.problem()));
        }
    }

    /// Takes a solution if it is better, and its bound in any case.
    pub(super) fn take(&mut self, solution: Solution) {
        self.bound_ns = self.bound_ns.max(solution.bound_ns);
        if self.makespan_ns().is_none_or(|makespan| solution.makespan_ns < makespan) {
            self.state = State::Solved(Box::new(solution));
        }
        if let State::Solved(best) = &mut self.state {
            best.bound_ns = self.bound_ns.min(best.makespan_ns);
            best.proven = best.makespan_ns <= best.bound_ns;
        }
    }
}

/// What a device needs to run one microbatch at a time with everything offloaded at once, bytes.
pub(super) fn needed_bytes(problem: &Problem, device: usize) -> i64 {
    let b = &problem.bytes;
    let (mut held, mut needed) = (b.r#static[device], b.r#static[device]);
    for s in problem.stages_of(device) {
        needed = needed.max(held + b.activation[s]);
        held += b.activation[s] - b.offloadable[s];
    }
    needed.max(held)
}

/// A bound that takes no time: a device computes all it has after the first microbatch has come to it.
fn cheap_bound(problem: &Problem) -> i64 {
    let t = &problem.time_ns;
    let mut arrival = 0;
    let mut first = vec![None; problem.devices];
    for s in 0..problem.stages() {
        first[problem.placement[s]].get_or_insert(arrival);
        if s + 1 < problem.stages() {
            arrival += t.forward[s] + problem.hop_forward(s);
        }
    }
    let whole = |d: usize| {
        let load = |s| t.forward[s] + t.backward_input[s] + t.backward_weight[s];
        first[d].unwrap_or(0) + problem.stages_of(d).map(load).sum::<i64>() * problem.microbatches as i64
    };
    (0..problem.devices).map(whole).max().unwrap_or(0)
}

/// How a split is judged before it is solved: what lacks, the cheap bound, how uneven devices are.
type Cost = (i64, i64, i128);

impl Search<'_> {
    /// Every microbatch size, layout and split to look at.
    pub(super) fn candidates(&self) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        let mut refused = None;
        for size in self.job.microbatch_sizes() {
            candidates.extend(self.candidates_of(size, &mut refused)?);
        }
        match (candidates.is_empty(), refused) {
            (false, None) => {}
            (false, Some(error)) => self.progress.warn(&format!("left out, with others like it: {error}")),
            (true, Some(error)) => return Err(error),
            (true, None) => {
                let text = "job: pipeline: no number of chunks fits the placement and the model's layers";
                return Err(Error::input(text));
            }
        }
        Ok(candidates)
    }

    /// Whether a microbatch of this size may run at all, by what the profiles say that it needs. Bytes grow
    /// in proportion to the size, so that a scaled profile tells it, too.
    pub(crate) fn may_run(&self, size: usize) -> Result<bool> {
        Ok(self.candidates_of(size, &mut None)?.iter().any(|x| x.missing_bytes == 0))
    }

    /// Every layout and split of a microbatch size. What makes no valid problem, having too many ops, say, is
    /// left out; the first such refusal goes to `refused`.
    fn candidates_of(&self, size: usize, refused: &mut Option<Error>) -> Result<Vec<Candidate>> {
        let sequences = self.job.global_batch();
        let mut candidates = Vec::new();
        let (profile, times) = self.profiles.get(size)?;
        let mut sized = self.job.clone();
        sized.batch.microbatch_size = Count::Fixed(size);
        plan::same_measurement(&profile, self.hardware, &sized, self.model)?;
        for (chunks, placement) in self.job.layouts(self.model.layers + 2) {
            let name = match placement {
                Placement::Named(name) => Some(name),
                Placement::List(_) => None,
            };
            let structure = Structure {
                chunks,
                placement: name,
                microbatch_size: size,
                microbatches: sequences / size,
                layer_split: Vec::new(),
            };
            if self.cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted(": no structure was solved yet".to_owned()));
            }
            let splits = match self.splits(&profile, &structure) {
                Ok(splits) => splits,
                Err(error) => {
                    refused.get_or_insert(error);
                    continue;
                }
            };
            for (rank, (plan, cost)) in splits.into_iter().enumerate() {
                let fate = if cost.0 > 0 { Fate::Infeasible } else { Fate::NotTried };
                candidates.push(Candidate {
                    structure: Structure { layer_split: plan.layer_split.clone(), ..structure.clone() },
                    plan,
                    times,
                    rank,
                    missing_bytes: cost.0,
                    bound_ns: cost.1,
                    bounded: false,
                    state: State::Unsolved,
                    fate,
                });
            }
        }
        Ok(candidates)
    }

    /// The splits of a layout, the best judged first: the job's, or the balanced one and what moving
    /// blocks over boundaries makes of it.
    fn splits(&self, profile: &Profile, structure: &Structure) -> Result<Vec<(Plan, Cost)>> {
        let cost = |split: Vec<usize>| -> Result<(Plan, Cost)> {
            let job = self.job.with_structure(&Structure { layer_split: split, ..structure.clone() });
            let plan = plan::unlimited(profile, self.hardware, &job, self.model)?;
            let cost = judge(&plan.problem);
            Ok((plan, cost))
        };
        if let Some(split) = self.job.layer_split() {
            return Ok(vec![cost(split.to_vec())?]);
        }
        let layers: Vec<u64> = profile.each_layer().map(plan::total_ns).collect();
        let placement = placed(self.job, structure);
        let balanced = split::balance(&layers, &placement).map_err(|e| Error::input(format!("pipeline: {e}")))?;
        let mut seen = HashSet::from([balanced.clone()]);
        let mut known = vec![cost(balanced)?];
        let mut expanded: HashSet<Vec<usize>> = HashSet::new();
        while let Some(next) = known.iter().position(|(plan, _)| !expanded.contains(&plan.layer_split)) {
            let fits = known[0].1.0 == 0;
            let most = if fits { EXPANDED } else { EXPANDED_TO_FIT };
            // Only the best are worth a look at their neighbours.
            if expanded.len() >= most || next >= EXPANDED {
                break;
            }
            let from = known[next].0.layer_split.clone();
            for split in neighbours(&from) {
                if seen.insert(split.clone()) {
                    known.push(cost(split)?);
                }
            }
            expanded.insert(from);
            // Stable: the balanced split stays first among equals.
            known.sort_by_key(|(_, cost)| *cost);
            known.truncate(4 * SPLITS);
        }
        known.truncate(SPLITS);
        Ok(known)
    }
}

/// The device of each stage under a structure of this job.
fn placed(job: &Job, structure: &Structure) -> Vec<usize> {
    job.with_structure(structure).placement()
}

fn judge(problem: &Problem) -> Cost {
    let missing = (0..problem.devices).map(|d| needed_bytes(problem, d) - problem.bytes.capacity[d]).max();
    let t = &problem.time_ns;
    let load = |d: usize| -> i128 {
        let stages = problem.stages_of(d);
        stages.map(|s| i128::from(t.forward[s] + t.backward_input[s] + t.backward_weight[s])).sum()
    };
    let squares = (0..problem.devices).map(|d| load(d).saturating_mul(load(d))).fold(0_i128, i128::saturating_add);
    (missing.unwrap_or(0).max(0), cheap_bound(problem), squares)
}

/// A block moved over one boundary, either way, and no inner stage left empty.
fn neighbours(split: &[usize]) -> Vec<Vec<usize>> {
    let last = split.len() - 1;
    let mut found = Vec::new();
    for boundary in 0..last {
        for (from, to) in [(boundary, boundary + 1), (boundary + 1, boundary)] {
            let least = usize::from(from != 0 && from != last);
            if split[from] > least {
                let mut moved = split.to_vec();
                moved[from] -= 1;
                moved[to] += 1;
                found.push(moved);
            }
        }
    }
    found
}
