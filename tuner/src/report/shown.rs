//! The schedules that the timeline can show: ours, the textbook ones, and those of the rounds.

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;

use super::run::Run;
use crate::error::{Error, Result};
use crate::export::bars::Bars;
use crate::measured::Measured;
use crate::sensitivity::front::textbook_schedules;
use crate::table;

/// One schedule, predicted or measured.
pub(super) struct Shown<'a> {
    /// As the list of schedules names it.
    pub(super) name: String,
    /// What it is a schedule of.
    pub(super) problem: &'a Problem,
    pub(super) bars: Bars,
    /// The measured peak of each device, bytes; a prediction has none.
    pub(super) measured_peaks: Option<&'a [u64]>,
}

impl<'a> Shown<'a> {
    fn predicted(name: String, problem: &'a Problem, schedule: &Schedule) -> Result<Shown<'a>> {
        let bars = Bars::predicted(problem, schedule).map_err(|e| Error::input(format!("{name}: {e}")))?;
        Ok(Shown { name, problem, bars, measured_peaks: None })
    }

    fn measured(name: String, problem: &'a Problem, measured: &'a Measured) -> Result<Shown<'a>> {
        let bars = Bars::measured(problem, measured).map_err(|e| Error::input(format!("{name}: {e}")))?;
        Ok(Shown { name, problem, bars, measured_peaks: Some(&measured.peak_bytes) })
    }

    /// Whether the times are measured.
    pub(super) fn is_measured(&self) -> bool {
        self.measured_peaks.is_some()
    }
}

/// All of them, the first two being the best schedule, predicted and measured; then those that people compare it
/// with first.
pub(super) fn all(run: &Run) -> Result<Vec<Shown<'_>>> {
    let best = run.best();
    let problem = &best.problem;
    let mut shown = vec![
        Shown::predicted("OptPipe, predicted".to_owned(), problem, &best.schedule)?,
        Shown::measured("OptPipe, measured".to_owned(), problem, run.best_measured())?,
    ];
    for (method, schedule) in textbook_schedules(problem) {
        shown.push(Shown::predicted(format!("{}, predicted", table::title(method.name())), problem, &schedule)?);
    }
    for compared in run.compared.iter().filter(|compared| compared.name != run.summary.best.name) {
        shown.push(Shown::measured(
            format!("{}, measured", table::title(&compared.name)),
            problem,
            &compared.measured,
        )?);
    }
    for files in run.rounds.iter().rev() {
        let number = files.round.round;
        let is_best = number == run.summary.best_round;
        if !is_best {
            shown.push(Shown::predicted(format!("round {number}, predicted"), &files.problem, &files.schedule)?);
        }
        if !is_best || run.best_measured() != &files.measured {
            shown.push(Shown::measured(format!("round {number}, measured"), &files.problem, &files.measured)?);
        }
    }
    Ok(shown)
}
