//! When a run did not go as it was to. A schedule that was to fit did not: predictions were too low, so the next
//! plan leaves more room. A step took many times what was expected: it is measured once more.

use std::time::{Duration, Instant};

use optpipe_configs::file;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::Solution;

use super::{Done, Ran, Tuning, nanoseconds};
use crate::error::{Error, Result};
use crate::measured::Measured;
use crate::plan::Plan;
use crate::text;

/// How often a round may plan with less memory before it gives up.
const ATTEMPTS: usize = 4;
/// The least part of a limit that is given up at first; twice as much each time that this was not enough.
const STEP: f64 = 0.05;
/// A step that takes so many times what is expected, or that part of it, is measured once more.
const FAR: f64 = 3.0;

/// The limits of the round before, where they were lowered.
pub(super) fn keep(problem: &mut Problem, before: Option<&Problem>) {
    let Some(before) = before else { return };
    for (capacity, &lowered) in problem.bytes.capacity.iter_mut().zip(&before.bytes.capacity) {
        *capacity = lowered.min(*capacity);
    }
}

/// A limit after it was exceeded by so many bytes, as far as known, in an attempt from 0.
fn lowered(capacity: i64, over_bytes: Option<u64>, attempt: usize) -> i64 {
    let over = over_bytes.map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let step = STEP * (1_u64 << attempt) as f64;
    capacity.saturating_sub(over.max((capacity as f64 * step) as i64))
}

impl Tuning<'_> {
    /// Solves and runs; where a device runs out of memory, again, with the limit that is planned with lowered by what
    /// was missing or by 5 %, then 10 % and 20 %. The limit that is enforced stays the user's.
    pub(super) fn solve_and_run(
        &mut self,
        plan: &Plan,
        problem: &mut Problem,
        best: Option<&Done>,
        number: usize,
    ) -> Result<Ran> {
        let mut ran_out = None;
        for attempt in 0..ATTEMPTS {
            self.write_round(number, "problem.yaml", problem)?;
            let started = Instant::now();
            let solution = match (self.solve(problem, best, number), ran_out.take()) {
                // Less memory than that is of no use: what ran out of it is the news.
                (Err(Error::Infeasible { message, .. }), Some(error)) => {
                    self.progress.warn(&format!("with less memory to plan with it is {message}"));
                    return Err(error);
                }
                (solution, _) => solution?,
            };
            self.check_cancelled()?;
            let solve_ns = nanoseconds(started);
            let schedule_file = self.schedule_file(plan, &solution);
            let yaml = schedule_file.to_yaml().map_err(|e| Error::failed(format!("cannot write the schedule: {e}")))?;
            file::write_text(&self.folder.round(number, "schedule.yaml"), &yaml).map_err(Error::write)?;

            let started = Instant::now();
            let of = self.job.stop.max_rounds;
            let step = Duration::from_nanos(solution.makespan_ns.unsigned_abs());
            let steps = u32::try_from(self.job.run.warmup_steps + self.job.run.steps).unwrap_or(u32::MAX);
            self.progress.phase_about(&format!("round {number} of at most {of}: running"), step.saturating_mul(steps));
            match self.machine.run(plan, problem, &solution.schedule, true, self.progress, self.cancel) {
                Ok(measured) => {
                    let measured = self.plausible(plan, problem, &solution, measured, number)?;
                    let run_ns = nanoseconds(started);
                    return Ok(Ran { solution, yaml, measured, solve_ns, run_ns });
                }
                Err(Error::OutOfMemory { device, over_bytes, message, hint }) => {
                    let capacity = &mut problem.bytes.capacity[device];
                    *capacity = lowered(*capacity, over_bytes, attempt);
                    self.progress.warn(&format!(
                        "round {number}: {message}; planning with {} for device {device} from now on",
                        text::bytes(capacity.unsigned_abs())
                    ));
                    ran_out = Some(Error::OutOfMemory { device, over_bytes, message, hint });
                }
                Err(e) => return Err(e),
            }
        }
        Err(ran_out.unwrap_or_else(|| Error::failed("no attempt was made")))
    }

    /// A measurement that is far from what is predicted (from measured times, but in the first round) is made once
    /// more: something may have disturbed it. Of the two the nearer one counts.
    fn plausible(
        &mut self,
        plan: &Plan,
        problem: &Problem,
        solution: &Solution,
        measured: Measured,
        number: usize,
    ) -> Result<Measured> {
        let expected = solution.makespan_ns.max(1) as f64;
        let step = |measured: &Measured| measured.step.median_ns.max(1) as f64;
        let distance = |measured: &Measured| (step(measured) / expected).ln().abs();
        if distance(&measured) <= FAR.ln() {
            return Ok(measured);
        }
        self.progress.warn(&format!(
            "round {number}: a step took {} where {} was predicted: measuring once more",
            text::duration(step(&measured) as i64),
            text::duration(expected as i64)
        ));
        match self.machine.run(plan, problem, &solution.schedule, true, self.progress, self.cancel) {
            Ok(again) => Ok(if distance(&again) < distance(&measured) { again } else { measured }),
            Err(e @ Error::Interrupted(_)) => Err(e),
            Err(e) => {
                self.progress.warn(&format!("round {number}: that failed, and the first measurement counts: {e}"));
                Ok(measured)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::lowered;

    #[test]
    fn a_limit_falls_by_what_was_missing_and_by_5_percent_at_least() {
        assert_eq!(lowered(1000, None, 0), 950);
        assert_eq!(lowered(1000, Some(7), 0), 950);
        assert_eq!(lowered(1000, Some(7), 2), 800);
        assert_eq!(lowered(1000, Some(300), 2), 700);
        assert!(lowered(1000, Some(u64::MAX), 0) < 0);
    }
}
