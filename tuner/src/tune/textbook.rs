//! GPipe, 1F1B and ZB-H1 on the tuned problem, predicted and measured, for comparison.
//!
//! They run without the memory limit: what they would need is part of the comparison.

use std::sync::atomic::Ordering;

use optpipe_configs::file;
use optpipe_configs::hardware::Hardware;
use optpipe_solver::method::Method;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::ScheduleFile;
use optpipe_solver::textbook;

use super::{Tuning, tokens_per_step};
use crate::error::{Error, Result};
use crate::measured::Measured;
use crate::plan::Plan;
use crate::summary::{Observed, Outcome, Predicted};
use crate::text;

/// What a tune is compared with.
pub(super) const COMPARED: [Method; 3] = [Method::Gpipe, Method::OneFOneB, Method::ZbH1];

impl Tuning<'_> {
    pub(super) fn textbook(&mut self, plan: &Plan, problem: &Problem, hardware: &Hardware) -> Result<Vec<Outcome>> {
        COMPARED.iter().map(|&method| self.textbook_outcome(plan, problem, hardware, method)).collect()
    }

    fn textbook_outcome(
        &mut self,
        plan: &Plan,
        problem: &Problem,
        hardware: &Hardware,
        method: Method,
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

        let folder = format!("textbook/{}", method.name());
        let measured_path = self.folder.path(&format!("{folder}/measured.yaml"));
        let there_is = hardware.devices.iter().map(|device| device.memory_bytes).min().unwrap_or(0);
        let measured: Option<Measured> = if measured_path.exists() {
            Some(super::read(&measured_path)?)
        } else if !self.job.run.textbook {
            outcome.note = Some("not run: run.textbook is false".to_owned());
            None
        } else if self.cancel.load(Ordering::SeqCst) {
            outcome.note = Some("not run: interrupted".to_owned());
            None
        } else if needed > there_is {
            outcome.note = Some(format!("not run: needs {} of memory", text::bytes(needed)));
            None
        } else {
            self.progress.phase(&format!("running {} for comparison", method.name()));
            let yaml = ScheduleFile { method: Some(method.name().to_owned()), ..ScheduleFile::new(schedule.clone()) }
                .to_yaml()
                .map_err(|e| Error::failed(format!("cannot write the schedule: {e}")))?;
            file::write_text(&self.folder.path(&format!("{folder}/schedule.yaml")), &yaml).map_err(Error::write)?;
            match self.machine.run(plan, problem, &schedule, false, self.progress, self.cancel) {
                Ok(measured) => {
                    file::write(&measured_path, &measured).map_err(Error::write)?;
                    Some(measured)
                }
                Err(Error::Interrupted(_)) => {
                    outcome.note = Some("not run: interrupted".to_owned());
                    None
                }
                Err(e) => return Err(e),
            }
        };
        outcome.measured = measured.map(|measured| Observed::of(&measured, problem.devices, tokens));
        Ok(outcome)
    }
}
