//! A tune's output folder: its files, its lock, and what `--resume` and `--force` may do to it.
//!
//! Every file is written whole or not at all, and the state of a tune is the files themselves: a
//! round is done when its `round.yaml` exists. `tune.yaml` is written first and says whose folder it
//! is; nothing in a folder without it is ever overwritten or removed.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use optpipe_configs::file::{self, Check, Invalid, VERSION, check_version};
use optpipe_configs::job::Job;
use optpipe_configs::model::Model;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a tune may do with a folder that holds an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// Refuse.
    Keep,
    /// Go on where it stopped.
    Resume,
    /// Remove its files and start again.
    Replace,
}

/// `tune.yaml`: whose folder this is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    /// Format version: 1.
    pub version: u32,
    /// The OptPipe that began the tune.
    pub optpipe: String,
    /// The model as it was read, to notice a changed config.json.
    pub model: String,
    /// The job.
    pub job: Job,
}

impl Check for Marker {
    fn check(&self) -> std::result::Result<(), Invalid> {
        check_version(self.version)
    }
}

/// An output folder, locked as long as this lives.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    _lock: File,
}

const MARKER: &str = "tune.yaml";
const LOCK: &str = ".lock";
/// What a tune writes, beside the marker and the lock. Folders end in a slash.
const OURS: [&str; 13] = [
    "hardware.yaml",
    "profile.yaml",
    "problem.yaml",
    "schedule.yaml",
    "summary.yaml",
    "report.html",
    "sensitivity.yaml",
    "trace.json",
    "timeline.svg",
    "structure/",
    "rounds/",
    "comparison/",
    "torchrun/",
];

impl Folder {
    /// Makes or opens a folder for a job and locks it.
    ///
    /// # Errors
    /// Another tune works in it; it holds an earlier tune and `earlier` says to keep it; it holds
    /// another job's tune and `earlier` says to resume; it holds files of these names that are not a
    /// tune's.
    pub fn open(root: &Path, job: &Job, model: &Model, earlier: Earlier) -> Result<Folder> {
        let failed = |what: &str, e: std::io::Error| Error::failed(format!("{}: {what}: {e}", root.display()));
        std::fs::create_dir_all(root).map_err(|e| failed("cannot make the folder", e))?;
        let lock = File::create(root.join(LOCK)).map_err(|e| failed("cannot write in the folder", e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::failed(format!("{}: another tune is working in this folder", root.display()))
                    .hint("wait for it, or choose another folder with --out"));
            }
            Err(TryLockError::Error(e)) => return Err(failed("cannot lock the folder", e)),
        }
        let folder = Folder { root: root.to_owned(), _lock: lock };
        folder.remove_temporary_files();
        let marker = Marker {
            version: VERSION,
            optpipe: env!("CARGO_PKG_VERSION").to_owned(),
            model: format!("{model:?}"),
            job: job.clone(),
        };
        let found = folder.path(MARKER);
        if !found.exists() {
            if let Some(other) = OURS.iter().find(|name| folder.path(name.trim_end_matches('/')).exists()) {
                return Err(Error::input(format!(
                    "{}: not empty, and not the folder of an earlier tune: it holds {other}",
                    root.display()
                ))
                .hint("choose another folder with --out"));
            }
            folder.write(MARKER, &marker)?;
            return Ok(folder);
        }
        match earlier {
            Earlier::Keep => {
                return Err(Error::input(format!("{}: holds an earlier tune", root.display()))
                    .hint("--resume goes on where it stopped, --force starts again, --out chooses another folder"));
            }
            Earlier::Replace => {
                folder.clear()?;
                folder.write(MARKER, &marker)?;
            }
            Earlier::Resume => {
                let before: Marker = file::read_checked(&found)?;
                if let Some(field) = difference(&before, &marker) {
                    return Err(Error::input(format!(
                        "{}: holds the tune of another job: {field} differs",
                        root.display()
                    ))
                    .hint("--force starts again, --out chooses another folder"));
                }
            }
        }
        Ok(folder)
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A file of a round, from 1.
    pub fn round(&self, round: usize, name: &str) -> PathBuf {
        self.root.join("rounds").join(format!("{round:02}")).join(name)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file of the folder.
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        file::write(&self.path(name), value).map_err(Error::write)
    }

    /// Reads a file of the folder if it is there.
    pub fn read<T: DeserializeOwned + Check>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path(name);
        if path.exists() { Ok(Some(file::read_checked(&path)?)) } else { Ok(None) }
    }

    /// What a killed write left behind.
    fn remove_temporary_files(&self) {
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let (path, name) = (entry.path(), entry.file_name());
                let name = name.to_string_lossy();
                if name == "structure" || name == "rounds" || name == "comparison" || folders_below(&path, &self.root) {
                    if path.is_dir() {
                        folders.push(path);
                    }
                } else if name.starts_with(".optpipe-") && name.ends_with(".tmp") {
                    // A leftover that cannot be removed does no harm.
                    let _ = std::fs::remove_file(path);
                }
            }
        }
    }

    /// Removes what a tune wrote, the marker last: killed in between, the folder is still known as a tune's.
    fn clear(&self) -> Result<()> {
        for name in OURS.iter().chain([&MARKER]) {
            let path = self.path(name.trim_end_matches('/'));
            let removed =
                if name.ends_with('/') { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(Error::failed(format!("{}: cannot remove: {e}", path.display())));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a path is a folder of a round or of the comparison.
fn folders_below(path: &Path, root: &Path) -> bool {
    path.parent().and_then(Path::parent) == Some(root)
        && path.parent().and_then(Path::file_name).is_some_and(|name| name == "rounds" || name == "comparison")
}

/// The first field in which two tunes differ.
fn difference(before: &Marker, now: &Marker) -> Option<String> {
    let value = |job: &Job| serde_json::to_value(job).unwrap_or_default();
    let (old, new) = (value(&before.job), value(&now.job));
    if let (Some(old), Some(new)) = (old.as_object(), new.as_object()) {
        let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        if let Some(key) = keys.into_iter().find(|key| old.get(*key) != new.get(*key)) {
            return Some(format!("`{key}`"));
        }
    }
    (before.model != now.model).then(|| format!("the content of the model `{}`", now.job.model))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn open(root: &Path, microbatches: usize, earlier: Earlier) -> Result<Folder> {
        let mut job = Job::default();
        job.batch.microbatches = microbatches;
        let model = Model::read(&job.model, None)?;
        Folder::open(root, &job, &model, earlier)
    }

    #[test]
    fn two_tunes_do_not_share_a_folder() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("out");
        let first = open(&root, 4, Earlier::Keep).unwrap();
        let second = open(&root, 4, Earlier::Resume).unwrap_err();
        assert!(second.to_string().contains("another tune is working"), "{second}");
        drop(first);
        open(&root, 4, Earlier::Resume).unwrap();
    }

    #[test]
    fn an_earlier_tune_is_kept_resumed_or_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path();
        let folder = open(root, 4, Earlier::Keep).unwrap();
        file::write_text(&folder.round(1, "round.yaml"), "x").unwrap();
        file::write_text(&root.join("notes.txt"), "the user's own").unwrap();
        drop(folder);
        assert_eq!(open(root, 4, Earlier::Keep).unwrap_err().exit_code(), 2);
        let other = open(root, 5, Earlier::Resume).unwrap_err().to_string();
        assert!(other.contains("`batch` differs"), "{other}");
        assert!(open(root, 4, Earlier::Resume).unwrap().round(1, "round.yaml").exists());
        assert!(!open(root, 5, Earlier::Replace).unwrap().round(1, "round.yaml").exists());
        assert!(root.join("notes.txt").exists());
        open(root, 5, Earlier::Resume).unwrap();
    }

    #[test]
    fn files_of_others_are_never_touched() {
        let parent = tempfile::tempdir().unwrap();
        let theirs = parent.path().join("problem.yaml");
        file::write_text(&theirs, "theirs").unwrap();
        for earlier in [Earlier::Keep, Earlier::Resume, Earlier::Replace] {
            assert!(open(parent.path(), 4, earlier).unwrap_err().to_string().contains("problem.yaml"));
        }
        assert_eq!(std::fs::read_to_string(theirs).unwrap(), "theirs");
    }
}
