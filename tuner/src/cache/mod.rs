//! Solved problems, kept in the user's cache folder.
//!
//! An entry holds a problem in its normal form ([`normal::Normal`]) and a solution of it. The same normal
//! form under the same options is an exact hit; a problem of the same shape with other times, or solved
//! with other options, is a near hit, whose order is a start for the solver.
//!
//! Many processes may use one folder at once: an entry is written to a temporary file and renamed, so
//! that readers see the old one or the new one, whole. A file that cannot be read, is damaged, or was
//! written by something else counts as absent. What two processes find of one problem is merged: the
//! better schedule, the higher bound. Nothing here is an error to the user: the cache saves time, and a
//! solve is the same without it.

mod entry;
pub mod normal;
mod solve;

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use optpipe_configs::file;
use optpipe_solver::solve::SolveOptions;

use entry::{Entry, Opened};
use normal::{Normal, fingerprint};

pub use solve::{Hit, solve};

/// Version of the entries' format; each has a folder of its own.
const FORMAT: &str = "v1";
/// The most that all entries take, bytes.
const MOST_BYTES: u64 = 256 << 20;
/// The most entries.
const MOST_ENTRIES: usize = 4096;
/// So many entries of one shape are looked at for a start, the newest ones.
const MOST_NEAR: usize = 64;
/// So long a process waits for another one that is storing.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// A temporary file this old is what a killed process left behind.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A cache folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
}

/// What is solved and how: which entry answers it.
#[derive(Debug, Clone)]
struct Key {
    /// Options as text; a new option that the solver learns is part of it by itself.
    options: String,
    name: String,
    shape: String,
}

impl Key {
    fn new(normal: &Normal, options: &SolveOptions) -> Key {
        let plain = SolveOptions { start: None, start_method: None, time_limit: Duration::ZERO, ..options.clone() };
        // Another build may find better schedules, and bounds of one with a mistake must not outlive it.
        let options = format!("solver {} {plain:?}", optpipe_solver::SOURCE);
        let problem = serde_json::to_string(&normal.problem).unwrap_or_default();
        Key {
            name: format!("{:016x}", fingerprint(&[options.as_bytes(), problem.as_bytes()])),
            shape: format!("{:016x}", normal.shape()),
            options,
        }
    }
}

impl Cache {
    /// A cache in a folder, which is made when something is stored.
    pub fn new(folder: &Path) -> Cache {
        Cache { folder: folder.join(FORMAT) }
    }

    /// The cache of this user: in `OPTPIPE_CACHE_DIR`, else in `optpipe` below the folder that the system
    /// has for caches. `None` where there is no such folder.
    pub fn of_user() -> Option<Cache> {
        let folder = user_folder(|name| std::env::var_os(name));
        if folder.is_none() {
            tracing::debug!("no cache: neither OPTPIPE_CACHE_DIR nor a home folder is set");
        }
        folder.map(|folder| Cache::new(&folder))
    }

    /// Where the entries are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{}-{}.entry", key.shape, key.name))
    }

    /// The entry of a key and its problem; a different problem under the same name is no hit.
    fn exact(&self, key: &Key, normal: &Normal) -> Option<Entry> {
        let path = self.path(key);
        let opened = Opened::open(&path)?;
        if opened.head.options != key.options || opened.head.problem != normal.problem {
            return None;
        }
        let entry = opened.entry()?;
        // Used again: it is not the oldest any more. A folder that cannot be written is still read.
        if let Ok(file) = File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(entry)
    }

    /// Entries of the same shape whose times differ by at most this share, the nearest first, of equals
    /// the newest.
    fn near(&self, key: &Key, normal: &Normal, tolerance: f64) -> Vec<Opened> {
        let prefix = format!("{}-", key.shape);
        let mut files = self.files();
        files.retain(|file| file.name.starts_with(&prefix) && file.name.ends_with(".entry"));
        files.sort_by_key(|file| std::cmp::Reverse(file.modified));
        files.truncate(MOST_NEAR);
        let opened = files.iter().filter_map(|file| Opened::open(&self.folder.join(&file.name)));
        let mut near: Vec<(f64, Opened)> = opened
            // Two shapes may have one fingerprint.
            .filter(|opened| normal.has_shape_of(&opened.head.problem))
            .filter_map(|opened| Some((normal.distance(&opened.head.problem)?, opened)))
            .filter(|(distance, _)| *distance <= tolerance)
            .collect();
        near.sort_by(|a, b| a.0.total_cmp(&b.0));
        near.into_iter().map(|(_, opened)| opened).collect()
    }

    /// Stores an entry and removes the oldest ones where there are too many.
    fn store(&self, key: &Key, entry: &Entry) {
        let Some(text) = entry.text() else { return };
        match file::write_text(&self.path(key), &text) {
            Ok(()) => self.evict(MOST_BYTES, MOST_ENTRIES),
            Err(e) => tracing::debug!("cache: not stored: {e}"),
        }
    }

    /// Keeps other processes from storing until it is dropped. `None`, after a second, where another one
    /// does not let go or the file system has no locks: entries stay whole without it, and only what two
    /// processes find at the same instant may be lost.
    fn lock(&self) -> Option<File> {
        // Beside the entries, so that their folder has nothing else.
        let path = self.folder.with_extension("lock");
        let opened = std::fs::create_dir_all(&self.folder)
            .and_then(|()| File::options().create(true).truncate(false).write(true).open(&path));
        let file = opened.inspect_err(|e| tracing::debug!("cache: no lock: {e}")).ok()?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Some(file),
                Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_WAIT => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) => {
                    tracing::debug!("cache: no lock: {e}");
                    return None;
                }
            }
        }
    }

    /// Removes the oldest entries until the rest is within the limits, and what killed processes left.
    fn evict(&self, most_bytes: u64, most_entries: usize) {
        let mut files = self.files();
        let abandoned =
            |file: &Stored| file.name.ends_with(".tmp") && file.modified.elapsed().is_ok_and(|age| age > ABANDONED);
        for file in files.iter().filter(|file| abandoned(file)) {
            let _ = std::fs::remove_file(self.folder.join(&file.name));
        }
        files.retain(|file| file.name.ends_with(".entry"));
        files.sort_by_key(|file| file.modified);
        let (mut bytes, mut entries) = (files.iter().map(|file| file.bytes).sum::<u64>(), files.len());
        for file in files {
            if bytes <= most_bytes && entries <= most_entries {
                break;
            }
            // Another process may have removed it already.
            let _ = std::fs::remove_file(self.folder.join(&file.name));
            bytes -= file.bytes;
            entries -= 1;
        }
    }

    fn files(&self) -> Vec<Stored> {
        let listed = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let stored = listed.filter_map(|file| {
            let data = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
            let name = file.file_name().into_string().ok()?;
            Some(Stored { name, bytes: data.len(), modified: data.modified().ok()? })
        });
        stored.collect()
    }
}

/// A file of the folder.
struct Stored {
    name: String,
    bytes: u64,
    modified: SystemTime,
}

/// Where this user's cache is, by the environment: as the XDG base directory specification has it on
/// Unix, the local application data on Windows. Relative paths there are invalid and count as unset.
fn user_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("OPTPIPE_CACHE_DIR") {
        return Some(folder);
    }
    let absolute = |name: &str| set(name).filter(|path| path.is_absolute());
    let caches = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else {
        let below_home = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(below_home)))
    };
    caches.map(|caches| caches.join("optpipe"))
}

#[cfg(test)]
mod tests;
