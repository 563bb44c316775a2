//! Reading what commands are given, and telling files apart by their keys.

use std::path::{Path, PathBuf};

use optpipe_configs::file::{self, FileError};
use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::Job;
use optpipe_configs::memory::{self, StaticBytes};
use optpipe_configs::model::Model;
use optpipe_configs::profile::Profile;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Schedule, ScheduleFile};

use crate::error::{Error, Result};
use crate::measured::Measured;
use crate::rehearsed::Rehearsed;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Problem,
    Job,
    Profile,
    Hardware,
    Schedule,
}

/// Tells by the keys at the top what a file is.
pub(super) fn kind(path: &Path) -> Result<Kind> {
    let keys: file::Keys = file::parse(path, &file::read_text(path)?)?;
    let has = |key: &str| keys.has(key);
    let found = if has("ops") {
        Some(Kind::Schedule)
    } else if has("time_ns") || has("bytes") || has("placement") {
        Some(Kind::Problem)
    } else if has("layers") {
        Some(Kind::Profile)
    } else if has("offload") || has("reload") {
        Some(Kind::Hardware)
    } else if has("model") || has("pipeline") || has("batch") {
        Some(Kind::Job)
    } else {
        None
    };
    found.ok_or_else(|| {
        let message = "expected a problem (with `time_ns`), a job (with `model`) or a profile (with `layers`), found \
                       none of their keys";
        FileError::new(path, message).into()
    })
}

/// A schedule file; whether it solves its problem is the checker's business.
pub(super) fn schedule(path: &Path) -> Result<ScheduleFile> {
    Ok(file::read_checked(path)?)
}

/// The problem.yaml that lies beside a schedule.
pub(super) fn problem_beside(schedule: &Path) -> Result<PathBuf> {
    let path = schedule.with_file_name("problem.yaml");
    if path.exists() {
        return Ok(path);
    }
    Err(Error::input(format!("{}: there is no problem beside it", schedule.display()))
        .hint("name the problem that the schedule solves with --problem"))
}

/// What a run measured, or what a rehearsal put together.
pub(super) fn measured(path: &Path) -> Result<Measured> {
    let text = file::read_text(path)?;
    let keys: file::Keys = file::parse(path, &text)?;
    if keys.has("rounds") {
        return Ok(file::checked::<Rehearsed>(path, &text, file::parse(path, &text)?)?.into());
    }
    Ok(file::checked(path, &text, file::parse(path, &text)?)?)
}

/// A job in which nothing is left to the structure search, with its model.
pub(super) fn job(path: &Path) -> Result<(Job, Model)> {
    let (job, model) = Job::read(path)?;
    match job.decided() {
        Ok(()) => Ok((job, model)),
        Err(invalid) => Err(file::located(path, &file::read_text(path)?, invalid).into()),
    }
}

/// The calibration that was given, or else the one that the job names.
pub(super) fn hardware(given: Option<&Path>, job: &Job, job_file: &Path) -> Result<Option<Hardware>> {
    Ok(match given {
        Some(path) => Some(file::read_checked(path)?),
        None => job.read_hardware(job_file)?,
    })
}

/// The profile that was given, or else the one that the job names.
pub(super) fn profile(given: Option<&Path>, job: &Job, job_file: &Path) -> Result<Option<Profile>> {
    Ok(match given {
        Some(path) => Some(file::read_checked(path)?),
        None => job.read_profile(job_file)?,
    })
}

/// A schedule with all that running it takes.
pub(super) struct Runnable {
    pub(super) job: Job,
    pub(super) model: Model,
    pub(super) problem: Problem,
    pub(super) schedule: Schedule,
    /// The schedule's, where it has one, or else the job's.
    pub(super) layer_split: Vec<usize>,
    /// What the problem's static bytes hold beside weights, gradients and optimizer states, a device.
    pub(super) workspace: Vec<u64>,
}

/// A schedule, the problem that it solves and the job that it is for.
pub(super) fn runnable(job_path: &Path, problem_path: &Path, schedule_path: &Path) -> Result<Runnable> {
    let (job, model) = job(job_path)?;
    let problem: Problem = file::read_checked(problem_path)?;
    let ScheduleFile { schedule, layer_split, .. } = self::schedule(schedule_path)?;
    if problem.devices != job.pipeline.devices || problem.microbatches != job.batch.microbatches {
        return Err(Error::input(format!(
            "{}: expected {} devices and {} microbatches as in the job, found {} and {}",
            problem_path.display(),
            job.pipeline.devices,
            job.batch.microbatches,
            problem.devices,
            problem.microbatches
        )));
    }
    let layer_split = layer_split.or_else(|| job.layer_split().map(<[usize]>::to_vec)).ok_or_else(|| {
        Error::input(format!("{}: has no layer_split, and the job's is auto", schedule_path.display()))
            .hint("give pipeline.layer_split in the job")
    })?;
    let by_stage = memory::stages(&model, &layer_split, job.precision, job.optimizer);
    let held = memory::devices(&by_stage, &problem.placement, problem.devices);
    let rest =
        |(&planned, held): (&i64, &StaticBytes)| u64::try_from(planned).unwrap_or(0).saturating_sub(held.total());
    let workspace = problem.bytes.r#static.iter().zip(&held).map(rest).collect();
    Ok(Runnable { job, model, problem, schedule, layer_split, workspace })
}
