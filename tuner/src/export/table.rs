//! The schedule itself for readers of one's own: `csv`, `json` and `yaml`.

use std::fmt::Write as _;

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::ScheduleFile;

use super::ExportError;
use super::bars::Bars;

/// One op a line with its end: `device,op,stage,microbatch,start_ns,end_ns`, in order of device and start.
///
/// # Errors
/// If the schedule is not one of this problem.
pub fn csv(problem: &Problem, schedule: &ScheduleFile) -> Result<String, ExportError> {
    let bars = Bars::predicted(problem, &schedule.schedule)?;
    let mut text = "device,op,stage,microbatch,start_ns,end_ns\n".to_owned();
    for (device, ops) in bars.devices.iter().enumerate() {
        for bar in ops {
            let (letter, stage, microbatch) = (bar.kind.letter(), bar.stage, bar.microbatch);
            let _ = writeln!(text, "{device},{letter},{stage},{microbatch},{},{}", bar.start, bar.end);
        }
    }
    Ok(text)
}

/// The schedule with what a reader needs and may lack: the placement and the number of microbatches.
pub fn complete(problem: &Problem, schedule: &ScheduleFile) -> ScheduleFile {
    ScheduleFile {
        placement: Some(problem.placement.clone()),
        microbatches: Some(problem.microbatches),
        ..schedule.clone()
    }
}
