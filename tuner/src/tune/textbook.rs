//! GPipe, 1F1B and ZB-H1 on the tuned problem, predicted and measured, for comparison.
//!
//! They run without the memory limit: what they would need is part of the comparison. The tuned schedule
//! runs once more right before them, so that all were measured within minutes of each other.

use std::sync::atomic::Ordering;

use optpipe_configs::file;
use optpipe_configs::hardware::Hardware;
use optpipe_solver::method::Method;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Schedule, ScheduleFile};
use optpipe_solver::textbook;

use super::{Done, Tuning, tokens_per_step};
use crate::error::{Error, Result};
use crate::measured::Measured;
use crate::plan::Plan;
use crate::summary::{Observed, Outcome, Predicted};
use crate::text;

/// What a tune is compared with.
pub(super) const COMPARED: [Method; 3] = [Method::Gpipe, Method::OneFOneB, Method::ZbH1];

impl Tuning<'_> {
    /// Measures the best schedule again, for the comparison; `None` where that did not come to an end.
    pub(super) fn measure_again(&mut self, plan: &Plan, best: &Done) -> Result<Option<Observed>> {
        match self.compared("optpipe", plan, &best.problem, &best.schedule, true)? {
            Ok(measured) => Ok(Some(Observed::of(&measured, best.problem.devices, tokens_per_step(self.job)))),
            Err(why) => {
                self.progress.warn(&format!("the best schedule was not measured again: {why}"));
                Ok(None)
            }
        }
    }

    /// The measurement of one schedule of the comparison: the one that the folder holds, or a new one; or why
    /// there is none.
    fn compared(
        &mut self,
        name: &str,
        plan: &Plan,
        problem: &Problem,
        schedule: &Schedule,
        enforce: bool,
    ) -> Result<std::result::Result<Measured, String>> {
        let path = self.folder.path(&format!("comparison/{name}/measured.yaml"));
        if path.exists() {
            return Ok(Ok(file::read_checked(&path)?));
        }
        if self.cancel.load(Ordering::SeqCst) {
            return Ok(Err("interrupted".to_owned()));
        }
        self.progress.phase(&format!("running {name} for comparison"));
        let file = ScheduleFile { method: Some(name.to_owned()), ..ScheduleFile::new(schedule.clone()) };
        let yaml = file.to_yaml().map_err(|e| Error::failed(format!("cannot write the schedule: {e}")))?;
        file::write_text(&path.with_file_name("schedule.yaml"), &yaml).map_err(Error::write)?;
        match self.machine.run(plan, problem, schedule, enforce, self.progress, self.cancel) {
            Ok(measured) => {
                file::write(&path, &measured).map_err(Error::write)?;
                Ok(Ok(measured))
            }
            Err(Error::Interrupted(_)) => Ok(Err("interrupted".to_owned())),
            // Schedules without a limit may need more than there is.
            Err(Error::OutOfMemory { device, .. }) => Ok(Err(format!("device {device} ran out of memory"))),
            Err(Error::Lost { message, .. }) => Ok(Err(message)),
            Err(e) => Err(e),
        }
    }

    /// Every method's outcome; none is run where the tune has failed.
    pub(super) fn textbook(
        &mut self,
        plan: &Plan,
        problem: &Problem,
        hardware: &Hardware,
        failed: bool,
    ) -> Result<Vec<Outcome>> {
        COMPARED.iter().map(|&method| self.textbook_outcome(plan, problem, hardware, method, failed)).collect()
    }

    fn textbook_outcome(
        &mut self,
        plan: &Plan,
        problem: &Problem,
        hardware: &Hardware,
        method: Method,
        failed: bool,
    ) -> Result<Outcome> {
        let mut outcome = Outcome {
            name: method.name().to_owned(),
            predicted: None,
            measured: None,
            over_limit_bytes: vec![0; problem.devices],
            note: None,
        };
        let schedule = match textbook::schedule(problem, method) {
            Ok(schedule) => schedule,
            Err(e) => {
                outcome.note = Some(e.to_string());
                return Ok(outcome);
            }
        };
        let tokens = tokens_per_step(self.job);
        let predicted = Predicted::of(problem, &schedule, tokens);
        outcome.over_limit_bytes = predicted.over_limit(problem);
        let needed: u64 = predicted.peak_bytes.iter().sum();
        outcome.predicted = Some(predicted);

        let there_is = hardware.devices.iter().map(|device| device.memory_bytes).min().unwrap_or(0);
        let measured = if !self.job.run.textbook {
            outcome.note = Some("not run: run.textbook is false".to_owned());
            None
        } else if failed {
            outcome.note = Some("not run: the tune failed".to_owned());
            None
        } else if needed > there_is {
            outcome.note = Some(format!("not run: needs {} of memory", text::bytes(needed)));
            None
        } else {
            match self.compared(method.name(), plan, problem, &schedule, false)? {
                Ok(measured) => Some(measured),
                Err(why) => {
                    outcome.note = Some(format!("not run: {why}"));
                    None
                }
            }
        };
        outcome.measured = measured.map(|measured| Observed::of(&measured, problem.devices, tokens));
        Ok(outcome)
    }
}
