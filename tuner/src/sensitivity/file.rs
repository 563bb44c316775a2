//! `sensitivity.yaml`: what more memory or bandwidth would be worth, kept, since finding it takes solving.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use optpipe_configs::file::{Check, Invalid, VERSION, check_version};
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;
use optpipe_solver::solve::SolveOptions;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::front::{MemoryTime, memory_time};
use super::{Sensitivity, sensitivity};
use crate::error::Result;
use crate::progress::Progress;

/// `sensitivity.yaml` of a tune.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SensitivityFile {
    /// Format version: 1.
    pub version: u32,
    /// The problem that it is about.
    pub problem: Problem,
    /// The makespan of the schedule that it starts from, ns.
    pub schedule_ns: i64,
    /// What more memory and faster links would be worth.
    pub sensitivity: Sensitivity,
    /// Time over memory.
    pub front: MemoryTime,
}

impl Check for SensitivityFile {
    fn check(&self) -> std::result::Result<(), Invalid> {
        check_version(self.version)
    }
}

/// The time for each of the solves after a tune whose own solves may take so long.
pub fn time_limit(of_solve: Duration) -> Duration {
    (of_solve / 40).clamp(Duration::from_millis(50), Duration::from_secs(2))
}

impl SensitivityFile {
    /// Solves for all of it, each solve in the time given; `None` if cancelled before the end.
    ///
    /// # Errors
    /// Infeasible, where the problem itself is.
    pub fn solve(
        problem: &Problem,
        schedule: &Schedule,
        options: &SolveOptions,
        time_limit: Duration,
        progress: &Progress,
        cancel: &AtomicBool,
    ) -> Result<Option<SensitivityFile>> {
        let sensitivity = sensitivity(problem, schedule, options, time_limit, progress, cancel)?;
        let front = memory_time(problem, schedule, options, time_limit, progress, cancel)?;
        if cancel.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let (problem, schedule_ns) = (problem.clone(), schedule.makespan_ns);
        Ok(Some(SensitivityFile { version: VERSION, problem, schedule_ns, sensitivity, front }))
    }

    /// Whether it is about this schedule of this problem.
    pub fn is_about(&self, problem: &Problem, schedule: &Schedule) -> bool {
        self.problem == *problem && self.schedule_ns == schedule.makespan_ns
    }
}
