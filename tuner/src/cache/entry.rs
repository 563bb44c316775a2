//! The file of an entry, three lines: fingerprints of the two others, what was solved, the solution.
//!
//! What was solved stands apart, so that the solution, which may be a thousand times as long, is read
//! only where it is of use. No more is read than an entry may have.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use optpipe_configs::file::Check;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::Solution;
use serde::{Deserialize, Serialize};

use super::normal::fingerprint;

/// What an entry starts with.
pub(super) const MAGIC: &str = "optpipe-cache 2";
/// The longest first line, bytes.
const MOST_FIRST: u64 = 64;
/// The most that the line about the problem takes, bytes.
const MOST_HEAD: u64 = 4 << 20;
/// The most that the line of the solution takes, bytes. A schedule of 64 devices and 256 microbatches takes
/// 10 MB.
const MOST_BODY: u64 = 64 << 20;

/// What was solved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    /// [`super::Key::options`].
    pub(super) options: String,
    /// In normal form.
    pub(super) problem: Problem,
    /// The time limit under which the solution was found, ns; 0 if the solve was cut short.
    pub(super) time_limit_ns: u64,
    /// The unit of the normal form of the problem that was solved, ns. In its times, and not in the normal
    /// form's, are what the solution tells of parts, trace and MILP.
    pub(super) unit_ns: i64,
}

/// A file of the cache.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) head: Head,
    /// Its schedule, objective and bound are in units of the normal form.
    pub(super) solution: Solution,
}

impl Entry {
    /// The text of the file; `None` where it would be too long to be read.
    pub(super) fn text(&self) -> Option<String> {
        let head = serde_json::to_string(&self.head).ok()?;
        let body = serde_json::to_string(&self.solution).ok()?;
        if head.len() as u64 >= MOST_HEAD || body.len() as u64 >= MOST_BODY {
            tracing::debug!("cache: {} bytes are too many for an entry", head.len() + body.len());
            return None;
        }
        Some(signed(&head, &body))
    }
}

/// Both parts below the line that says that they are whole.
pub(super) fn signed(head: &str, body: &str) -> String {
    let [first, second] = [head, body].map(|part| fingerprint(&[part.as_bytes()]));
    format!("{MAGIC} {first:016x} {second:016x}\n{head}\n{body}\n")
}

/// An entry of which the solution is not read yet.
pub(super) struct Opened {
    pub(super) head: Head,
    path: PathBuf,
    reader: BufReader<File>,
    /// Of the solution, in hexadecimal digits.
    fingerprint: String,
}

impl Opened {
    /// Reads what was solved; `None`, with a message for `OPTPIPE_LOG=debug`, for anything that is no entry.
    pub(super) fn open(path: &Path) -> Option<Opened> {
        let file = std::fs::metadata(path).is_ok_and(|data| data.is_file()).then(|| File::open(path))?;
        let file = file.inspect_err(|e| ignored(path, &e.to_string())).ok()?;
        let mut reader = BufReader::new(file);
        let first = line(&mut reader, MOST_FIRST);
        let prints = first.as_deref().and_then(|first| first.strip_prefix(MAGIC)?.strip_prefix(' ')?.split_once(' '));
        let Some((print, of_solution)) = prints else {
            ignored(path, "it is not an entry");
            return None;
        };
        let Some(head) = line(&mut reader, MOST_HEAD).filter(|head| is(head, print)) else {
            ignored(path, "it is damaged");
            return None;
        };
        let head: Head = serde_json::from_str(&head).inspect_err(|e| ignored(path, &e.to_string())).ok()?;
        head.problem.check().inspect_err(|e| ignored(path, &e.message)).ok()?;
        let fingerprint = of_solution.to_owned();
        Some(Opened { head, path: path.to_owned(), reader, fingerprint })
    }

    /// The whole entry. Nothing is known about its schedule: it must be checked before it is used.
    pub(super) fn entry(mut self) -> Option<Entry> {
        let Some(body) = line(&mut self.reader, MOST_BODY).filter(|body| is(body, &self.fingerprint)) else {
            ignored(&self.path, "its solution is damaged");
            return None;
        };
        let solution = serde_json::from_str(&body).inspect_err(|e| ignored(&self.path, &e.to_string())).ok()?;
        Some(Entry { head: self.head, solution })
    }
}

fn is(text: &str, print: &str) -> bool {
    format!("{:016x}", fingerprint(&[text.as_bytes()])) == print
}

fn ignored(path: &Path, why: &str) {
    tracing::debug!("cache: {} is ignored: {why}", path.display());
}

/// The next line of at most so many bytes, its end among them.
fn line(reader: &mut BufReader<File>, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    reader.take(most).read_until(b'\n', &mut bytes).ok()?;
    if bytes.pop() != Some(b'\n') {
        return None;
    }
    String::from_utf8(bytes).ok()
}
