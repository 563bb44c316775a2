//! This machine: the profiler and the runner behind [`Machine`].

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::{self, Job};
use optpipe_configs::model::Model;
use optpipe_configs::profile::Profile;
use optpipe_kernels::backend::{self, Backend, BackendError, BackendKind};
use optpipe_kernels::cuda::rig::CudaRig;
use optpipe_profiler::calibrate::gpu::{self, GpuOptions};
use optpipe_profiler::calibrate::{self, CalibrateError, CalibrateOptions};
use optpipe_profiler::profile::{self, ProfileError, ProfileOptions};
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;

use super::machine::Machine;
use crate::error::{Error, Result};
use crate::measured::Measured;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::rehearsed::Rehearsed;
use crate::runner::{self, RehearseOptions, RehearseProgress, RunError, RunPlan};
use crate::text;

/// A job's devices on this machine.
#[derive(Debug)]
pub struct Local<'a> {
    job: &'a Job,
    model: &'a Model,
    backend: Arc<dyn Backend>,
}

/// A schedule to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    /// Transformer blocks of each stage.
    pub layer_split: &'a [usize],
    /// Sequences a microbatch.
    pub microbatch_size: usize,
    /// Workspace that each device sets aside, bytes.
    pub workspace: Option<&'a [u64]>,
    /// What the schedule solves.
    pub problem: &'a Problem,
    /// The schedule.
    pub schedule: &'a Schedule,
    /// Whether a device that exceeds its capacity ends the run.
    pub enforce: bool,
}

/// Opens a job's backend.
///
/// # Errors
/// Bad input if this machine does not have it.
pub fn open(job: &Job) -> Result<Arc<dyn Backend>> {
    open_devices(job, job.pipeline.devices)
}

fn open_devices(job: &Job, devices: usize) -> Result<Arc<dyn Backend>> {
    let kind = match job.backend {
        job::Backend::Cpu => BackendKind::Cpu,
        job::Backend::Cuda => BackendKind::Cuda,
    };
    backend::open(kind, devices).map_err(|e| match e {
        BackendError::System { .. } => Error::failed(e.to_string()),
        _ => Error::input(e.to_string()),
    })
}

impl<'a> Local<'a> {
    /// Opens the job's backend.
    ///
    /// # Errors
    /// As [`open`].
    pub fn new(job: &'a Job, model: &'a Model) -> Result<Self> {
        Ok(Local { job, model, backend: open(job)? })
    }

    /// Runs a schedule for the job's steps and measures it.
    ///
    /// # Errors
    /// What the runner reports.
    pub fn measure(&mut self, running: &Running<'_>, progress: &Progress, cancel: &AtomicBool) -> Result<Measured> {
        let plan = plan(self.job, self.model, &self.backend, running)?;
        let mut on_step = |at: runner::RunProgress| {
            progress.update(&format!(
                "running: step {} of {}, {}, loss {:.3}",
                at.steps_done,
                at.steps,
                text::duration(at.step_ns as i64),
                at.loss
            ));
            let steps = u32::try_from(at.steps - at.steps_done).unwrap_or(u32::MAX);
            progress.left(Duration::from_nanos(at.step_ns).saturating_mul(steps));
        };
        runner::run(&plan, &mut on_step, cancel).map_err(failed)
    }
}

/// What to do where tensors do not fit.
const MORE_THAN_PROFILED: &str = "the tensors need more than the profile says: profile again, or raise memory_limit";

/// How a schedule of a job runs.
fn plan<'a>(job: &'a Job, model: &'a Model, backend: &Arc<dyn Backend>, running: &Running<'a>) -> Result<RunPlan<'a>> {
    Ok(RunPlan {
        microbatch_size: running.microbatch_size,
        sequence_length: job.batch.sequence_length,
        precision: job.precision,
        optimizer: job.optimizer,
        seed: job.solver.seed,
        warmup_steps: job.run.warmup_steps,
        steps: job.run.steps,
        enforce_capacity: running.enforce,
        workspace: running.workspace,
        stall_timeout: job.run.timeout().map_err(|invalid| Error::invalid("job", invalid))?,
        ..RunPlan::new(model, running.layer_split, running.problem, running.schedule, Arc::clone(backend))
    })
}

fn failed(error: RunError) -> Error {
    let message = error.to_string();
    match error {
        RunError::Cancelled => Error::Interrupted(String::new()),
        RunError::Plan { .. } | RunError::Schedule { .. } => Error::input(message),
        RunError::Static { .. } => Error::failed(message).hint(MORE_THAN_PROFILED),
        RunError::Memory { device, held, capacity, .. } => Error::OutOfMemory {
            device,
            over_bytes: Some(held - capacity.min(held)),
            message,
            hint: MORE_THAN_PROFILED.to_owned(),
        },
        RunError::OutOfMemory { device, .. } => Error::OutOfMemory {
            device,
            over_bytes: None,
            message,
            hint: "something else takes memory of the device, or memory_limit leaves too little for the driver"
                .to_owned(),
        },
        RunError::Stalled { .. } => {
            let hint = "if ops may take so long, raise the job's run.timeout".to_owned();
            Error::Lost { message, hint }
        }
        RunError::Diverged { .. } => Error::failed(message),
        RunError::Backend(_)
        | RunError::Budget { .. }
        | RunError::Deadlock { .. }
        | RunError::Op { .. }
        | RunError::Panic { .. }
        | RunError::Thread(_) => {
            let hint = "run it again; if it comes back, OPTPIPE_LOG=debug says more".to_owned();
            Error::Lost { message, hint }
        }
    }
}

/// Rehearses a schedule on one device of the job's backend.
///
/// # Errors
/// As [`open`], and what the runner reports.
pub fn rehearse(
    job: &Job,
    model: &Model,
    running: &Running<'_>,
    options: &RehearseOptions,
    progress: &mut dyn FnMut(RehearseProgress),
    cancel: &AtomicBool,
) -> Result<Rehearsed> {
    let backend = open_devices(job, 1)?;
    let plan = plan(job, model, &backend, running)?;
    let rehearsal = runner::rehearse(&plan, options, progress, cancel).map_err(failed)?;
    Ok(Rehearsed::new(&*backend, running.problem, running.schedule, rehearsal, plan.steps, options.tolerance))
}

impl Machine for Local<'_> {
    fn calibrate(&mut self, job: &Job, progress: &Progress, cancel: &AtomicBool) -> Result<Hardware> {
        match job.backend {
            job::Backend::Cpu => calibrate(&*self.backend, progress, cancel),
            job::Backend::Cuda => calibrate_gpus(Some(job.pipeline.devices), &GpuOptions::default(), progress, cancel),
        }
    }

    fn profile(&mut self, job: &Job, model: &Model, progress: &Progress, cancel: &AtomicBool) -> Result<Profile> {
        profile(&*self.backend, job, model, progress, cancel)
    }

    fn run(
        &mut self,
        plan: &Plan,
        problem: &Problem,
        schedule: &Schedule,
        enforce: bool,
        progress: &Progress,
        cancel: &AtomicBool,
    ) -> Result<Measured> {
        let workspace: Vec<u64> = plan.memory.iter().map(|device| device.workspace).collect();
        // Where the limit that is planned with was lowered, the user's is what counts.
        let mut problem = problem.clone();
        problem.bytes.capacity.clone_from(&plan.problem.bytes.capacity);
        let running = Running {
            layer_split: &plan.layer_split,
            microbatch_size: plan.microbatch_size,
            workspace: Some(&workspace),
            problem: &problem,
            schedule,
            enforce,
        };
        self.measure(&running, progress, cancel)
    }
}

/// Measures the copies of a backend's devices.
///
/// # Errors
/// What the calibration reports.
pub fn calibrate(backend: &dyn Backend, progress: &Progress, cancel: &AtomicBool) -> Result<Hardware> {
    let mut on_progress = |what: &str| progress.update(what);
    calibrate::calibrate(backend, &CalibrateOptions::default(), &mut on_progress, cancel).map_err(|e| match e {
        CalibrateError::Cancelled => Error::Interrupted(String::new()),
        other => Error::failed(other.to_string()),
    })
}

/// Describes and measures this machine's GPUs: so many devices, or one a GPU. Where there are more devices
/// than GPUs they take turns: device `d` is on GPU `d` modulo the number of GPUs.
///
/// # Errors
/// A failure: no driver, no devices, or copies that cannot be timed.
pub fn calibrate_gpus(
    devices: Option<usize>,
    options: &GpuOptions,
    progress: &Progress,
    cancel: &AtomicBool,
) -> Result<Hardware> {
    let (mut machine, described) =
        gpu::describe().map_err(|e| Error::failed(e.to_string()).hint("calibrate with `--backend cpu`"))?;
    let wanted = devices.unwrap_or(machine.devices.len());
    machine.devices.truncate(wanted);
    let failed = |e: &dyn std::fmt::Display| Error::failed(format!("calibration: {e}"));
    let mut rig = CudaRig::open(&machine).map_err(|e| failed(&e))?;
    let mut on_progress = |what: &str| progress.update(what);
    let hardware = gpu::calibrate(described, &mut rig, options, &mut on_progress, cancel);
    let hardware = hardware.map_err(|e| match e {
        CalibrateError::Cancelled => Error::Interrupted(String::new()),
        other => Error::failed(other.to_string()),
    })?;
    Ok(hardware.placed(wanted))
}

/// Measures the layers of a job's model.
///
/// # Errors
/// What the profiler reports.
pub fn profile(
    backend: &dyn Backend,
    job: &Job,
    model: &Model,
    progress: &Progress,
    cancel: &AtomicBool,
) -> Result<Profile> {
    let mut on_progress = |what: &str| progress.update(what);
    let options = ProfileOptions::default();
    profile::profile(model, job, backend, &options, &mut on_progress, cancel).map_err(|e| match e {
        ProfileError::Cancelled => Error::Interrupted(String::new()),
        other => Error::failed(other.to_string()),
    })
}
