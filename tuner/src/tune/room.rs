//! When a schedule that was to fit did not: predictions were too low, so the next plan leaves more room.

use std::time::Instant;

use optpipe_configs::file;
use optpipe_solver::problem::Problem;

use super::{Done, Ran, Tuning, nanoseconds};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::text;

/// How often a round may plan with less memory before it gives up.
const ATTEMPTS: usize = 4;
/// The least part of a limit that is given up at first; twice as much each time that this was not enough.
const STEP: f64 = 0.05;

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
            self.progress.phase(&format!("round {number}: running"));
            match self.machine.run(plan, problem, &solution.schedule, true, self.progress, self.cancel) {
                Ok(measured) => {
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
