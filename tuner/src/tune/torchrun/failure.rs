//! Which rank failed first, why, and what it said last.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde::Deserialize;

use crate::error::Error;
use crate::text;

/// Lines of a log that an error shows.
const LINES: usize = 12;

/// The ranks by what they leave in their folder.
#[derive(Debug)]
pub(super) struct Ranks {
    pub(super) folder: PathBuf,
    pub(super) count: usize,
}

/// `rank-R.json`.
#[derive(Debug, Deserialize)]
struct Process {
    pid: u32,
    host: String,
}

/// `rank-R.failed.json`.
#[derive(Debug, Deserialize)]
struct Failed {
    rank: usize,
    kind: Kind,
    time_ns: u64,
    over_bytes: Option<u64>,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// Its device's memory did not suffice.
    OutOfMemory,
    /// What was asked for cannot be done.
    Refused,
    /// Another rank is gone.
    Peer,
    /// Anything else.
    Error,
}

impl Ranks {
    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.folder.join(name)).ok()?).ok()
    }

    fn process(&self, rank: usize) -> Option<Process> {
        self.read(&format!("rank-{rank}.json"))
    }

    pub(super) fn torchrun_log(&self, node: usize) -> PathBuf {
        self.folder.join(format!("torchrun-{node}.log"))
    }

    fn log(&self, rank: usize) -> PathBuf {
        self.folder.join(format!("rank-{rank}.log"))
    }

    /// Ranks that did not see that they are to stop, or cannot.
    pub(super) fn silent(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.count).filter(|rank| !self.folder.join(format!("rank-{rank}.stopped")).exists())
    }

    /// The processes of ranks on this machine that still are those ranks.
    pub(super) fn running_here(&self) -> impl Iterator<Item = u32> + '_ {
        let here = rustix::system::uname().nodename().to_string_lossy().into_owned();
        (0..self.count).filter_map(move |rank| {
            let process = self.process(rank).filter(|process| process.host == here)?;
            let words = std::fs::read(format!("/proc/{}/cmdline", process.pid)).ok()?;
            String::from_utf8_lossy(&words).contains(&*self.folder.to_string_lossy()).then_some(process.pid)
        })
    }

    /// The first failure of a rank's own; those of ranks that lost another one do not count.
    pub(super) fn own_failure(&self) -> Option<Error> {
        let failed = (0..self.count).filter_map(|rank| self.read::<Failed>(&format!("rank-{rank}.failed.json")));
        let first = failed.filter(|failed| failed.kind != Kind::Peer).min_by_key(|failed| failed.time_ns)?;
        let rank = first.rank;
        Some(match first.kind {
            Kind::Refused => Error::input(first.message),
            Kind::OutOfMemory => Error::OutOfMemory {
                device: rank,
                over_bytes: first.over_bytes,
                message: format!("{} ran out of memory: {}", self.name(rank), first.message.trim()),
                hint: format!(
                    "leave more room: a lower memory_limit, a smaller batch; the whole log is {}",
                    self.log(rank).display()
                ),
            },
            Kind::Error | Kind::Peer => {
                self.lost(format!("{} failed: {}", self.name(rank), first.message.trim()), &self.log(rank))
            }
        })
    }

    /// torchrun has ended though it should not have.
    pub(super) fn diagnose(&self, status: ExitStatus) -> Error {
        if let Some(error) = self.own_failure() {
            return error;
        }
        for node in 0.. {
            let path = self.torchrun_log(node);
            let Ok(said) = std::fs::read(&path) else { break };
            if let Some((rank, code)) = root_cause(&String::from_utf8_lossy(&said)) {
                let how = match code {
                    ..0 => format!("was ended by signal {}", -code),
                    _ => format!("ended with exit code {code}"),
                };
                let error = self.lost(format!("{} {how}", self.name(rank)), &self.log(rank));
                return match code {
                    -9 => error.hint(format!(
                        "the system ends processes so when memory runs out (see `dmesg`); the whole log is {}",
                        self.log(rank).display()
                    )),
                    _ => error,
                };
            }
        }
        self.lost(format!("torchrun ended without a result ({status})"), &self.torchrun_log(0))
    }

    /// Nothing got done for too long. `said` is the last that got done.
    pub(super) fn timed_out(&self, timeout: Duration, said: Option<String>) -> Error {
        let silent: Vec<usize> = self.silent().collect();
        let after = said.map_or_else(|| "torchrun did not start".to_owned(), |said| format!("nothing after `{said}`"));
        let limit = text::duration(i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX));
        let mut message = format!("timed out: {after} within {limit}");
        if !silent.is_empty() {
            let names: Vec<String> = silent.iter().map(|&rank| self.name(rank)).collect();
            message.push_str(&format!("; no answer from {}", names.join(", ")));
        }
        // Those that answer say where they wait; with all of them silent torchrun may know more.
        let shown = (0..self.count).find(|rank| !silent.contains(rank));
        let log = shown.map_or_else(|| self.torchrun_log(0), |rank| self.log(rank));
        let error = self.lost(message, &log);
        error.hint(format!("run.timeout allows for more time; logs of all ranks are in {}", self.folder.display()))
    }

    /// `rank 1 on node0`.
    fn name(&self, rank: usize) -> String {
        self.process(rank).map_or_else(|| format!("rank {rank}"), |process| format!("rank {rank} on {}", process.host))
    }

    fn lost(&self, message: String, log: &Path) -> Error {
        let said = std::fs::read(log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let name = log.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let last: Vec<String> =
            lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("\n  {name} | {line}")).collect();
        Error::Lost { message: message + &last.concat(), hint: format!("the whole log is {}", log.display()) }
    }
}

/// Rank and exit code of the failure that torchrun saw first; a signal's number is negative there.
fn root_cause(said: &str) -> Option<(usize, i32)> {
    let (_, rest) = said.split_once("Root Cause (first observed failure):")?;
    let value = |key: &str| {
        let line = rest.lines().map(str::trim).find(|line| line.starts_with(key))?;
        line.split_once(':')?.1.split_whitespace().next()
    };
    Some((value("rank")?.parse().ok()?, value("exitcode")?.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ranks(files: &[(&str, &str)]) -> (tempfile::TempDir, Ranks) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let ranks = Ranks { folder: folder.path().to_owned(), count: 2 };
        (folder, ranks)
    }

    #[test]
    fn the_first_own_failure_is_the_one_reported() {
        let failed = |rank, kind, time_ns| {
            format!(
                "{{\"version\": 1, \"rank\": {rank}, \"kind\": \"{kind}\", \"time_ns\": {time_ns}, \"over_bytes\": 7, \
                 \"message\": \"of {rank}\"}}"
            )
        };
        let log = "one\n\ntwo\n";
        let (peer, own) = (failed(0, "peer", 1), failed(1, "error", 2));
        let files = [("rank-0.failed.json", peer.as_str()), ("rank-1.failed.json", own.as_str()), ("rank-1.log", log)];
        let (_folder, found) = ranks(&files);
        let error = found.own_failure().unwrap();
        assert!(matches!(error, Error::Lost { .. }));
        assert_eq!(error.to_string(), "rank 1 failed: of 1\n  rank-1.log | one\n  rank-1.log | two");
        let (_folder, found) = ranks(&[("rank-0.failed.json", &peer)]);
        assert!(found.own_failure().is_none());
        let (_folder, found) = ranks(&[("rank-1.failed.json", &failed(1, "out_of_memory", 2))]);
        assert!(matches!(found.own_failure(), Some(Error::OutOfMemory { device: 1, over_bytes: Some(7), .. })));
        let (_folder, found) = ranks(&[("rank-1.failed.json", &failed(1, "refused", 2))]);
        assert_eq!(found.own_failure().unwrap().exit_code(), 2);
    }

    #[test]
    fn torchrun_names_a_rank_that_could_not_speak() {
        let said = "E1 Sending process\n=====\nharness.py FAILED\n-----\nFailures:\n  <NO_OTHER_FAILURES>\n-----\nRoot \
                    Cause (first observed failure):\n[0]:\n  time      : 2026\n  host      : vm\n  rank      : 1 \
                    (local_rank: 1)\n  exitcode  : -9 (pid: 77)\n  error_file: <N/A>\n";
        assert_eq!(root_cause(said), Some((1, -9)));
        assert_eq!(root_cause("Traceback"), None);
    }
}
