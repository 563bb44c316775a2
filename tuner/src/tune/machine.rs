//! What the loop needs of a machine: calibrate, profile, run. The real one and, in tests, a made-up
//! one stand behind the same trait, so that the loop itself can be tested exactly.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::{Engine, Job};
use optpipe_configs::model::Model;
use optpipe_configs::profile::Profile;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;

use super::local::Local;
use super::torchrun::Torchrun;
use crate::error::Result;
use crate::measured::Measured;
use crate::plan::Plan;
use crate::progress::Progress;

/// Something that can be measured. A set `cancel` ends any of these with
/// [`crate::error::Error::Interrupted`].
pub trait Machine {
    /// Measures the copies between devices and host.
    fn calibrate(&mut self, job: &Job, progress: &Progress, cancel: &AtomicBool) -> Result<Hardware>;

    /// Measures the layers of a model.
    fn profile(&mut self, job: &Job, model: &Model, progress: &Progress, cancel: &AtomicBool) -> Result<Profile>;

    /// Runs a schedule and measures it. With `enforce` a device that would exceed its capacity fails.
    fn run(
        &mut self,
        plan: &Plan,
        problem: &Problem,
        schedule: &Schedule,
        enforce: bool,
        progress: &Progress,
        cancel: &AtomicBool,
    ) -> Result<Measured>;
}

/// What a job measures with. `job_file` is where the job was read; files that ranks of torchrun exchange go to
/// `work`, or without it to a temporary folder.
///
/// # Errors
/// Bad input where this machine does not have it.
pub fn open<'a>(job: &'a Job, model: &'a Model, job_file: &Path, work: Option<&Path>) -> Result<Box<dyn Machine + 'a>> {
    Ok(match job.run.engine {
        Engine::Native => Box::new(Local::new(job, model)?),
        Engine::Torch => Box::new(Torchrun::new(job, model, job_file, work)?),
    })
}
