//! The schedule itself for readers of one's own: `csv`, `json` and `yaml`.

use std::fmt::Write as _;
use std::path::PathBuf;

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

/// A folder with the schedule, its problem and what a reader starts from, by the paths there. `extension` is that of
/// both texts, `json` or `yaml`.
pub fn folder(extension: &str, schedule: String, problem: String) -> Vec<(PathBuf, String)> {
    let fixed = [
        ("README.md", include_str!("../../python/reader/README.md")),
        ("read_schedule.py", include_str!("../../python/reader/read_schedule.py")),
        ("schedule.schema.json", include_str!("../../../configs/schemas/schedule.schema.json")),
        ("problem.schema.json", include_str!("../../../configs/schemas/problem.schema.json")),
    ];
    let mut files = vec![
        (PathBuf::from(format!("schedule.{extension}")), schedule),
        (PathBuf::from(format!("problem.{extension}")), problem),
    ];
    files.extend(fixed.map(|(name, text)| (PathBuf::from(name), text.to_owned())));
    files
}
