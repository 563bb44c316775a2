//! PyTorch under torchrun behind [`Machine`]: a process a device, on this machine or many, which calibrates,
//! profiles and runs schedules on torch.distributed.pipelining with the package `optpipe_torch`.
//!
//! ```text
//! Torchrun ─ Session ─ torchrun ─┬─ rank 0 ─ harness.py ─ optpipe_harness ─ optpipe_torch
//!    requests, replies (files)   └─ rank 1 ─ ...
//! ```
//!
//! The ranks are started once and asked again and again, since loading PyTorch takes longer than many a run. A
//! rank that fails ends all of them; the next request starts them anew. Tuner and ranks talk by files in one
//! folder, which with several nodes all of them share; `optpipe_harness/control.py` lists the files.

mod answer;
mod failure;
mod launch;
mod request;
mod session;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use optpipe_configs::file;
use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::{Job, Modules};
use optpipe_configs::model::Model;
use optpipe_configs::profile::Profile;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Schedule, ScheduleFile};

use super::local::Running;
use super::machine::Machine;
use crate::error::{Error, Result};
use crate::measured::Measured;
use crate::plan::Plan;
use crate::progress::Progress;
use answer::Answer;
use request::{Command, Request};
use session::Session;

/// A job's devices as ranks of torchrun.
#[derive(Debug)]
pub struct Torchrun<'a> {
    job: &'a Job,
    model: &'a Model,
    config: serde_json::Value,
    work: PathBuf,
    session: Option<Session>,
    introduced: bool,
    /// Removed with this, after the ranks in it have ended, unless something failed.
    temporary: Option<tempfile::TempDir>,
}

impl<'a> Torchrun<'a> {
    /// Looks for the job's Python and PyTorch. Files go to `work`; without it, to a temporary folder, beside the
    /// job's file where several nodes have to see it.
    ///
    /// # Errors
    /// Bad input where there is no such Python or it lacks PyTorch; a folder that cannot be made.
    pub fn new(job: &'a Job, model: &'a Model, job_file: &Path, work: Option<&Path>) -> Result<Self> {
        let beside = job_file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let (path, text) = Model::source(&job.model, beside)?;
        let config = file::parse_json(&path, &text)?;
        launch::check_python(job)?;
        let failed = |e: std::io::Error| Error::failed(format!("cannot make a folder for torchrun: {e}"));
        let (work, temporary) = match work {
            Some(work) => (work.to_owned(), None),
            None => {
                let mut builder = tempfile::Builder::new();
                builder.prefix("optpipe-torchrun-");
                let folder = match job.run.nnodes {
                    1 => builder.tempdir(),
                    _ => builder.tempdir_in(beside.unwrap_or(Path::new("."))),
                };
                let folder = folder.map_err(failed)?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        std::fs::create_dir_all(&work).map_err(failed)?;
        // Other nodes start elsewhere.
        let work = work.canonicalize().map_err(failed)?;
        Ok(Torchrun { job, model, config, work, session: None, introduced: false, temporary })
    }

    /// Runs a schedule for the job's steps and measures it. `limit` is what each rank may hold, bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Lost`], and bad input where PyTorch cannot run the schedule.
    pub fn measure(
        &mut self,
        running: &Running<'_>,
        limit: Option<&[i64]>,
        progress: &Progress,
        cancel: &AtomicBool,
    ) -> Result<Measured> {
        let problem = running.problem;
        let session = self.session(progress, cancel)?;
        let folder = session.run_folder()?;
        let schedule = ScheduleFile {
            placement: Some(problem.placement.clone()),
            microbatches: Some(problem.microbatches),
            ..ScheduleFile::new(running.schedule.clone())
        };
        let yaml = schedule.to_yaml().map_err(|e| Error::failed(format!("cannot write the schedule: {e}")))?;
        file::write_text(&folder.join("schedule.yaml"), &yaml).map_err(Error::write)?;
        file::write(&folder.join("problem.yaml"), problem).map_err(Error::write)?;
        let command = Command::Run {
            folder: &folder,
            placement: &problem.placement,
            layer_split: running.layer_split,
            optimizer: self.job.optimizer,
            learning_rate: request::LEARNING_RATE,
            warmup_steps: self.job.run.warmup_steps,
            steps: self.job.run.steps,
            limit_bytes: limit,
        };
        self.ask(command, self.job.batch.sequence_length, running.microbatch_size, progress, cancel)?;
        let path = folder.join("measured.yaml");
        let measured: Measured = file::read_checked(&path).map_err(|e| Error::failed(e.to_string()))?;
        answer::check_measured(&measured, problem, running.schedule)?;
        Ok(measured)
    }

    /// The ranks, started if they are not there.
    fn session(&mut self, progress: &Progress, cancel: &AtomicBool) -> Result<&mut Session> {
        if self.session.is_none() {
            let session = Session::start(self.job, &self.work, progress, cancel);
            let session = session.inspect_err(|error| keep(&mut self.temporary, error))?;
            if !std::mem::replace(&mut self.introduced, true) {
                progress.line(&session.introduction(modules(self.job, &session)));
            }
            self.session = Some(session);
        }
        self.session.as_mut().ok_or_else(|| Error::failed("torchrun has not started"))
    }

    /// The reply. After a failure there are no ranks any more.
    fn ask(
        &mut self,
        command: Command<'_>,
        sequence_length: usize,
        microbatch_size: usize,
        progress: &Progress,
        cancel: &AtomicBool,
    ) -> Result<Answer> {
        let (job, model, config) = (self.job, self.model, self.config.clone());
        let session = self.session(progress, cancel)?;
        let modules = modules(job, session);
        if modules == Modules::Transformers && session.ready.transformers.is_none() {
            return Err(Error::input("run.modules: transformers is not installed on every rank")
                .hint("install it, or set run.modules to plain"));
        }
        let request = Request::new(job, model, &config, modules, sequence_length, microbatch_size, command);
        let reply = session.ask(&request, progress, cancel);
        reply.inspect_err(|error| {
            self.session = None;
            keep(&mut self.temporary, error);
        })
    }
}

/// Whose layers are trained.
fn modules(job: &Job, session: &Session) -> Modules {
    match job.run.modules {
        Modules::Auto if session.ready.transformers.is_some() => Modules::Transformers,
        Modules::Auto => Modules::Plain,
        chosen => chosen,
    }
}

/// What a failure's message names stays.
fn keep(temporary: &mut Option<tempfile::TempDir>, error: &Error) {
    if let Some(folder) = temporary.as_mut().filter(|_| !matches!(error, Error::Interrupted(_))) {
        folder.disable_cleanup(true);
    }
}

impl Machine for Torchrun<'_> {
    fn calibrate(&mut self, job: &Job, progress: &Progress, cancel: &AtomicBool) -> Result<Hardware> {
        let (length, size) = (job.batch.sequence_length, job.microbatch_size());
        answer::hardware(&self.ask(Command::Calibrate, length, size, progress, cancel)?, job)
    }

    fn profile(&mut self, job: &Job, model: &Model, progress: &Progress, cancel: &AtomicBool) -> Result<Profile> {
        let (length, size) = (job.batch.sequence_length, job.microbatch_size());
        answer::profile(&self.ask(Command::Profile, length, size, progress, cancel)?, job, model)
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
        let running = Running {
            layer_split: &plan.layer_split,
            microbatch_size: plan.microbatch_size,
            workspace: None,
            problem,
            schedule,
            enforce,
        };
        // The user's limit, not one that was lowered to stay within it.
        let limit = enforce.then_some(plan.problem.bytes.capacity.as_slice());
        self.measure(&running, limit, progress, cancel)
    }
}
