//! Solving on beside a training run.
//!
//! Solves follow one another, each from the best schedule so far, with another seed and twice the time; what is better
//! replaces the files at once, and a trainer that watches them takes it up between two steps. Where the trainer writes
//! what it measures, the next problem has these times: as soon as one of them is further from the problem's than a
//! tolerance, the solve that runs is given up and the next one starts from the same order under the measured times.
//! This is the paper's online scheduling.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use optpipe_configs::file::{self, Check};
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;
use optpipe_solver::simulate::simulate;
use optpipe_solver::solve::{Event, Solution, SolveOptions};

use crate::cache::{self, Cache};
use crate::error::Result;
use crate::measured::Measured;
use crate::progress::Progress;
use crate::text;
use crate::tune::update::{RoundTimes, round_times, updated};

/// How often files and the clock are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The longest single solve.
const LONGEST: Duration = Duration::from_secs(600);

/// A measured.yaml that a trainer writes again and again.
#[derive(Debug, Clone)]
pub struct Follow {
    /// The file; it need not be there yet.
    pub path: PathBuf,
    /// How far a measured time may be from the problem's, as a part of it.
    pub tolerance: f64,
}

/// Takes a better schedule: the problem that it solves, whether that is another one than before, the solution.
pub type Write<'a> = dyn FnMut(&Problem, bool, &Solution) -> Result<()> + 'a;

/// What is watched and solved.
pub struct Watch<'a> {
    /// The problem before anything is measured.
    pub problem: &'a Problem,
    /// Of the first solve.
    pub options: &'a SolveOptions,
    /// Problems solved before.
    pub cache: Option<&'a Cache>,
    /// Measured times to follow.
    pub follow: Option<&'a Follow>,
    /// When to end; without it, at the user's wish or, where nothing is followed, with a proven optimum.
    pub deadline: Option<Instant>,
    /// Where progress is shown.
    pub progress: &'a Progress,
    /// Set when the user wants to stop.
    pub cancel: &'a AtomicBool,
}

/// State of a watch.
struct State {
    problem: Problem,
    best: Option<Solution>,
    /// Where the next solve starts.
    start: Option<Schedule>,
    limit: Duration,
    solves: u64,
    new_problem: bool,
    rounds: Vec<RoundTimes>,
    seen: Option<(SystemTime, u64)>,
}

impl Watch<'_> {
    /// Solves until it is time to end, and returns the last problem with its best schedule.
    ///
    /// # Errors
    /// Infeasible problems, and what `write` returns. A measured file that cannot be used is warned of and left.
    pub fn run(&self, write: &mut Write<'_>) -> Result<(Problem, Solution)> {
        let mut state = State {
            problem: self.problem.clone(),
            best: None,
            start: None,
            limit: self.options.time_limit,
            solves: 0,
            new_problem: false,
            rounds: Vec::new(),
            seen: None,
        };
        loop {
            self.take_measured(&mut state);
            if let Some(best) = state.best.take_if(|best| self.over() || best.proven && self.follow.is_none()) {
                return Ok((state.problem, best));
            }
            if state.best.as_ref().is_some_and(|best| best.proven) {
                thread::sleep(LOOK_EVERY);
                continue;
            }
            let solution = self.solve(&state)?;
            state.solves += 1;
            state.limit = (2 * state.limit).min(LONGEST);
            match &mut state.best {
                Some(best) if solution.value_ns() >= best.value_ns() => best.raise_bound(solution.bound_ns),
                best => {
                    write(&state.problem, state.new_problem, &solution)?;
                    state.new_problem = false;
                    self.progress.line(&format!(
                        "solve {}: {}, gap to the bound {}, found by {}",
                        state.solves,
                        text::duration(solution.value_ns()),
                        text::gap(solution.gap()),
                        solution.method
                    ));
                    state.start = Some(solution.schedule.clone());
                    *best = Some(solution);
                }
            }
        }
    }

    fn over(&self) -> bool {
        self.cancel.load(Ordering::SeqCst) || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// One solve, given up when it is time to end or something new was measured.
    fn solve(&self, state: &State) -> Result<Solution> {
        let left = self.deadline.map_or(LONGEST, |deadline| deadline.saturating_duration_since(Instant::now()));
        let options = SolveOptions {
            time_limit: state.limit.min(left),
            seed: self.options.seed.wrapping_add(state.solves),
            start: state.start.clone(),
            start_method: state.best.as_ref().map(|best| best.method.clone()),
            ..self.options.clone()
        };
        let (stop, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let number = state.solves + 1;
        let mut on_event = |event: &Event| self.progress.update(&format!("solve {number}: {event}"));
        let (follow, seen, cancel) = (self.follow, state.seen, self.cancel);
        let look = || {
            while !done.load(Ordering::SeqCst) {
                let measured = follow.is_some_and(|follow| signature(&follow.path) != seen);
                if measured || cancel.load(Ordering::SeqCst) {
                    stop.store(true, Ordering::SeqCst);
                    break;
                }
                thread::sleep(LOOK_EVERY);
            }
        };
        let (solution, _) = thread::scope(|scope| {
            scope.spawn(look);
            let solved = cache::solve(&state.problem, &options, self.cache, &mut on_event, &stop);
            done.store(true, Ordering::SeqCst);
            solved
        })?;
        Ok(solution)
    }

    /// Reads a measured file that is newer than the one before, and begins anew if times have moved.
    fn take_measured(&self, state: &mut State) {
        let Some(follow) = self.follow else { return };
        let found = signature(&follow.path);
        if found.is_none() || found == state.seen {
            return;
        }
        state.seen = found;
        let measured = match file::read_checked::<Measured>(&follow.path) {
            Ok(measured) => measured,
            Err(e) => {
                self.progress.warn(&format!("{e}: left"));
                return;
            }
        };
        state.rounds.push(round_times(&measured));
        let next = updated(self.problem, &state.rounds);
        if let Err(invalid) = next.check() {
            // Times that one file may have can still be too large for so many microbatches.
            let (path, message) = (follow.path.display(), invalid.message);
            self.progress.warn(&format!("{path}: not times of this problem: {}: {message}: left", invalid.field));
            state.rounds.pop();
            return;
        }
        let drift = drift(&state.problem, &next);
        if drift <= follow.tolerance {
            self.progress.update(&format!("measured times are within {} of the problem's", text::percent(drift)));
            return;
        }
        self.progress.line(&format!(
            "measured times are up to {} from the problem's: solving for those from here on",
            text::percent(drift)
        ));
        let order = state.best.take().map(|best| Order::of(&state.problem, &best.schedule));
        state.start = order.and_then(|order| simulate(&next, &order).ok()).map(|simulated| simulated.schedule);
        state.problem = next;
        state.new_problem = true;
        state.limit = self.options.time_limit;
    }
}

/// What tells a file from the one that was there before.
fn signature(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The largest relative difference of any op's time.
fn drift(from: &Problem, to: &Problem) -> f64 {
    let lists = |problem: &Problem| {
        let t = &problem.time_ns;
        [&t.forward, &t.backward_input, &t.backward_weight, &t.offload, &t.reload].map(Clone::clone).concat()
    };
    let differences = lists(from).into_iter().zip(lists(to));
    differences.map(|(from, to)| (to - from).abs() as f64 / from.max(1) as f64).fold(0.0, f64::max)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use optpipe_configs::profile::Sample;
    use optpipe_solver::schedule::OpKind;

    use super::*;
    use crate::measured::MeasuredOp;

    fn problem() -> Problem {
        serde_yaml::from_str(
            "{devices: 2, placement: [0, 1], microbatches: 4, split_backward: true,
              time_ns: {forward: [100, 100], backward_input: [100, 100], backward_weight: [100, 100],
                        send_forward: [5], send_backward: [5], offload: [50, 50], reload: [50, 50]},
              bytes: {activation: [8, 8], weight_context: [4, 4], offloadable: [8, 8], static: [0, 0], capacity: [99, 99]},
              offload_channel: [0, 1], reload_channel: [2, 3]}",
        )
        .unwrap()
    }

    fn measured(forward_ns: u64) -> Measured {
        let none = Sample { median_ns: 1, mad_ns: 0, p05_ns: 1, p95_ns: 1, count: 1, stable: true };
        let op = MeasuredOp {
            device: 1,
            op: OpKind::F,
            stage: 1,
            microbatch: 0,
            start_ns: 0,
            end_ns: forward_ns,
            median_ns: forward_ns,
        };
        Measured {
            version: 1,
            backend: "cpu".to_owned(),
            step: none.clone(),
            optimizer: none,
            steps_ns: vec![],
            losses: vec![],
            peak_bytes: vec![],
            allocator_peak_bytes: None,
            offloaded_bytes: 0,
            ops: vec![op],
        }
    }

    /// Watches a file that gets these forward times of stage 1, each when a schedule was written; forwards of the
    /// problems that were written, and the last makespan.
    fn watched(times: &[u64]) -> (Vec<i64>, i64) {
        let folder = tempfile::tempdir().unwrap();
        let follow = Follow { path: folder.path().join("measured.yaml"), tolerance: 0.05 };
        let (progress, cancel) = (Progress::new(true), AtomicBool::new(false));
        let (problem, options) =
            (problem(), SolveOptions { time_limit: Duration::from_millis(300), ..SolveOptions::default() });
        let deadline = Some(Instant::now() + Duration::from_secs(60));
        let watch = Watch {
            problem: &problem,
            options: &options,
            cache: None,
            follow: Some(&follow),
            deadline,
            progress: &progress,
            cancel: &cancel,
        };
        let (mut forwards, mut times) = (Vec::new(), times.iter());
        let mut write = |problem: &Problem, _: bool, solution: &Solution| {
            assert!(optpipe_solver::check::check(problem, &solution.schedule).is_legal());
            forwards.push(problem.time_ns.forward[1]);
            match times.next() {
                Some(&ns) => file::write(&follow.path, &measured(ns)).unwrap(),
                None => cancel.store(true, Ordering::SeqCst),
            }
            Ok(())
        };
        let (_, best) = watch.run(&mut write).unwrap();
        (forwards, best.value_ns())
    }

    #[test]
    fn times_that_moved_are_solved_for() {
        let (forwards, makespan) = watched(&[300]);
        assert_eq!(forwards.first(), Some(&100));
        assert_eq!(forwards.last(), Some(&300));
        assert!(makespan >= 4 * 500, "device 1 alone works for that long: {makespan}");
    }

    #[test]
    fn a_proven_optimum_ends_what_follows_nothing() {
        let (progress, cancel) = (Progress::new(true), AtomicBool::new(false));
        let (problem, options) =
            (problem(), SolveOptions { time_limit: Duration::from_secs(5), ..SolveOptions::default() });
        let watch = Watch {
            problem: &problem,
            options: &options,
            cache: None,
            follow: None,
            deadline: None,
            progress: &progress,
            cancel: &cancel,
        };
        let (_, best) = watch.run(&mut |_, _, _| Ok(())).unwrap();
        assert!(best.proven);
    }

    #[test]
    fn drift_is_the_largest_of_all_ops() {
        let (from, mut to) = (problem(), problem());
        assert_eq!(drift(&from, &to), 0.0);
        to.time_ns.forward[0] = 98;
        to.time_ns.reload[1] = 60;
        assert!((drift(&from, &to) - 0.2).abs() < 1e-12);
    }
}
