//! The ranks of one torchrun, from start to end.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use optpipe_configs::file;
use optpipe_configs::job::{Job, Modules};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use super::answer::Answer;
use super::failure::Ranks;
use super::launch;
use super::request::Request;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// How often files are looked at.
const POLL: Duration = Duration::from_millis(10);
/// How often the tuner shows that it is alive; ranks wait 30 s for that.
const BEAT: Duration = Duration::from_secs(1);
/// Loading PyTorch may take this long, whatever the job's time-out.
const START: Duration = Duration::from_secs(180);
/// Ranks that are told to stop get so long to say where they are and to end.
const GRACE: Duration = Duration::from_secs(5);

/// `reply-0.json`: who is there.
#[derive(Debug, Deserialize)]
pub(super) struct Ready {
    torch: String,
    /// Its version, if every rank has it.
    pub(super) transformers: Option<String>,
    hosts: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Said {
    number: u64,
    text: String,
}

/// Running ranks. Dropping ends them all.
#[derive(Debug)]
pub(super) struct Session {
    ranks: Ranks,
    children: Vec<Child>,
    alive: Arc<AtomicBool>,
    beating: Option<thread::JoinHandle<()>>,
    asked: usize,
    timeout: Duration,
    failed: bool,
    pub(super) ready: Ready,
}

impl Session {
    /// Starts the ranks in a new folder below `work`.
    pub(super) fn start(job: &Job, work: &Path, progress: &Progress, cancel: &AtomicBool) -> Result<Session> {
        let package = work.join("python");
        launch::write_package(&package)?;
        let mut folder = work.join("session-1");
        for number in 2.. {
            if !folder.exists() {
                break;
            }
            folder = work.join(format!("session-{number}"));
        }
        std::fs::create_dir_all(&folder)
            .map_err(|e| Error::failed(format!("{}: cannot make the folder: {e}", folder.display())))?;
        let python = launch::python(job);
        let id = format!("optpipe-{}-{}", std::process::id(), nanoseconds());
        let timeout = job.run.timeout().map_err(|invalid| Error::invalid("job", invalid))?;
        let mut session = Session {
            ranks: Ranks { folder: folder.clone(), count: job.pipeline.devices },
            children: Vec::new(),
            alive: Arc::new(AtomicBool::new(true)),
            beating: None,
            asked: 0,
            timeout,
            failed: false,
            ready: Ready { torch: String::new(), transformers: None, hosts: Vec::new() },
        };
        session.beat()?;
        progress.update("starting torchrun");
        for (node, words) in launch::commands(job, &python, &package, &folder, &id).iter().enumerate() {
            session.spawn(node, words)?;
        }
        let answer = session.reply(0, timeout.max(START), progress, cancel)?;
        session.ready = file::parse(&answer.path, &answer.text)?;
        Ok(session)
    }

    fn spawn(&mut self, node: usize, words: &[String]) -> Result<()> {
        let path = self.ranks.torchrun_log(node);
        let failed = |e: std::io::Error| Error::failed(format!("{}: cannot write: {e}", path.display()));
        let log = std::fs::File::create(&path).map_err(failed)?;
        let mut command = launch::command(words);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        // Bytecode of what is brought along would only litter the folder.
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        // Ctrl-C is for the tuner, which then ends the ranks.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(|e| {
            let program = words.first().map_or("", String::as_str);
            Error::input(format!("cannot start torchrun: `{program}`: {e}"))
                .hint("run.launcher and run.python are started as they stand, without a shell")
        })?;
        self.children.push(child);
        Ok(())
    }

    /// Shows the ranks that the tuner lives, for as long as it does.
    fn beat(&mut self) -> Result<()> {
        let (path, alive) = (self.ranks.folder.join("alive"), Arc::clone(&self.alive));
        file::write_text(&path, "0").map_err(Error::write)?;
        let beat = move || {
            let mut count = 0_u64;
            while alive.load(Ordering::SeqCst) {
                thread::park_timeout(BEAT);
                count += 1;
                // A rank that reads half of a number sees that it changes, too. One that cannot be written any more
                // is in a folder that is gone, as are the ranks.
                let _ = std::fs::write(&path, count.to_string());
            }
        };
        let thread = thread::Builder::new().name("torchrun-alive".to_owned()).spawn(beat);
        self.beating = Some(thread.map_err(|e| Error::failed(format!("cannot start a thread: {e}")))?);
        Ok(())
    }

    /// Who runs what.
    pub(super) fn introduction(&self, modules: Modules) -> String {
        let ready = &self.ready;
        let layers = match (modules, &ready.transformers) {
            (Modules::Transformers, Some(version)) => format!("layers of transformers {version}"),
            _ => "layers in plain torch".to_owned(),
        };
        let mut hosts = ready.hosts.clone();
        hosts.dedup();
        format!("trainer: torch {}, {layers}, {} ranks on {}", ready.torch, ready.hosts.len(), hosts.join(", "))
    }

    /// A folder for the files of the next run.
    pub(super) fn run_folder(&self) -> Result<PathBuf> {
        let folder = self.ranks.folder.join(format!("run-{}", self.asked + 1));
        std::fs::create_dir_all(&folder)
            .map_err(|e| Error::failed(format!("{}: cannot make the folder: {e}", folder.display())))?;
        Ok(folder)
    }

    /// Asks all ranks and waits for the reply.
    pub(super) fn ask(&mut self, request: &Request<'_>, progress: &Progress, cancel: &AtomicBool) -> Result<Answer> {
        self.asked += 1;
        let path = self.ranks.folder.join(format!("request-{}.json", self.asked));
        file::write(&path, request).map_err(Error::write)?;
        self.reply(self.asked, self.timeout, progress, cancel)
    }

    fn reply(&mut self, number: usize, timeout: Duration, progress: &Progress, cancel: &AtomicBool) -> Result<Answer> {
        let reply = self.wait(number, timeout, progress, cancel);
        self.failed |= !matches!(reply, Ok(_) | Err(Error::Interrupted(_)));
        reply
    }

    fn wait(&mut self, number: usize, timeout: Duration, progress: &Progress, cancel: &AtomicBool) -> Result<Answer> {
        let began = Instant::now();
        let path = self.ranks.folder.join(format!("reply-{number}.json"));
        let (mut said, mut last) = (self.said().map_or(0, |said| said.number), began);
        loop {
            if path.exists() {
                let cost_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                return Ok(Answer { text: file::read_text(&path)?, path, cost_ns });
            }
            if cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted(String::new()));
            }
            if let Some(now) = self.said().filter(|now| now.number != said) {
                progress.update(&now.text);
                (said, last) = (now.number, Instant::now());
            }
            if let Some(error) = self.ranks.own_failure() {
                return Err(error);
            }
            let mut ended = None;
            for child in &mut self.children {
                ended = ended.or(child.try_wait().ok().flatten());
            }
            if let Some(status) = ended {
                return Err(self.ranks.diagnose(status));
            }
            if last.elapsed() > timeout {
                return Err(self.timed_out(timeout));
            }
            thread::sleep(POLL);
        }
    }

    /// What rank 0 said last; `None` before it said anything.
    fn said(&self) -> Option<Said> {
        serde_json::from_slice(&std::fs::read(self.ranks.folder.join("progress.json")).ok()?).ok()
    }

    /// Has every rank say where it is.
    fn timed_out(&mut self, timeout: Duration) -> Error {
        self.tell_to_stop("dump");
        let began = Instant::now();
        while began.elapsed() < GRACE && self.ranks.silent().next().is_some() {
            thread::sleep(POLL);
        }
        self.ranks.timed_out(timeout, self.said().map(|said| said.text))
    }

    fn tell_to_stop(&self, how: &str) {
        // Where it cannot be written, the ranks are ended below.
        let _ = file::write_text(&self.ranks.folder.join("stop"), how);
    }

    /// Ends torchrun and every rank.
    fn stop(&mut self) {
        if !self.ranks.folder.join("stop").exists() {
            self.tell_to_stop("");
        }
        for child in &self.children {
            signal(child.id(), Signal::TERM);
        }
        let began = Instant::now();
        let mut left = true;
        while left && began.elapsed() < GRACE {
            left = self.children.iter_mut().any(|child| matches!(child.try_wait(), Ok(None)));
            left |= self.ranks.running_here().next().is_some();
            if left {
                thread::sleep(POLL);
            }
        }
        // torchrun waits for a rank that is stuck, and a rank has a group of its own.
        for rank in self.ranks.running_here() {
            signal(rank, Signal::KILL);
        }
        for child in &mut self.children {
            if matches!(child.try_wait(), Ok(None)) {
                signal(child.id(), Signal::KILL);
            }
            let _ = child.wait();
        }
        self.alive.store(false, Ordering::SeqCst);
        if let Some(beating) = self.beating.take() {
            beating.thread().unpark();
            // It returns nothing and cannot panic.
            let _ = beating.join();
        }
        if !self.failed {
            // Logs of what went well; a folder that stays does no harm.
            let _ = std::fs::remove_dir_all(&self.ranks.folder);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends a signal to a process and all that it started in its group; one that has ended needs none.
fn signal(process: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, signal);
    }
}

fn nanoseconds() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
