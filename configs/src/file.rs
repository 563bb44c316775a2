//! Reading and writing files: one error type that says where and what, and writes that never leave
//! half a file.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest file that is read, in bytes. A schedule of 64 devices and 256 microbatches takes 10 MB.
pub const LARGEST_FILE: u64 = 256 << 20;

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1, where known.
    pub line: Option<usize>,
    /// Column, from 1, where known.
    pub column: Option<usize>,
    /// The field, as a path such as `pipeline.devices` or `time_ns.forward[3]`, where known.
    pub field: Option<String>,
    /// What was found and what was expected.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl FileError {
    /// An error about a file as a whole.
    pub fn new(path: &Path, message: impl Into<String>) -> Self {
        FileError { path: path.to_owned(), line: None, column: None, field: None, message: message.into(), hint: None }
    }

    /// An error about one field: `FileError::field(path, "batch.microbatches", "expected ..., found 0")`.
    pub fn field(path: &Path, field: impl Into<String>, message: impl Into<String>) -> Self {
        FileError { field: Some(field.into()), ..FileError::new(path, message) }
    }

    /// The same error with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// A problem found after reading, before the path is known: checks return it, [`read_checked`]
/// gives it the path and, where the field can be found in the text, the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The field, as in [`FileError::field`].
    pub field: String,
    /// What was found and what was expected.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Invalid {
    /// `Invalid::new("batch.microbatches", "expected at least 1, found 0")`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Invalid { field: field.into(), message: message.into(), hint: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A type with conditions that its shape cannot express.
pub trait Check {
    /// The first condition that does not hold.
    fn check(&self) -> Result<(), Invalid>;
}

/// Reads a file's text: at most [`LARGEST_FILE`] bytes of UTF-8.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let failed = |e: std::io::Error| FileError::new(path, format!("cannot read: {e}"));
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Err(FileError::new(path, "expected a file, found a folder"));
    }
    if metadata.len() > LARGEST_FILE {
        return Err(FileError::new(path, format!("{} bytes; files of up to {LARGEST_FILE} are read", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|e| FileError::new(path, format!("not UTF-8 text: {e}")))
}

/// Parses text that came from `path`: JSON if the name ends in `.json`, else YAML.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, FileError> {
    let with_place = |message: String, line: usize, column: usize| FileError {
        line: (line > 0).then_some(line),
        column: (column > 0).then_some(column),
        ..FileError::new(path, message)
    };
    if path.extension().is_some_and(|x| x == "json") {
        serde_json::from_str(text).map_err(|e| with_place(e.to_string(), e.line(), e.column()))
    } else {
        serde_yaml::from_str(text).map_err(|e| match e.location() {
            Some(at) => with_place(e.to_string(), at.line(), at.column()),
            None => FileError::new(path, e.to_string()),
        })
    }
}

/// Reads a file and runs the type's own checks.
pub fn read_checked<T: DeserializeOwned + Check>(path: &Path) -> Result<T, FileError> {
    let value: T = parse(path, &read_text(path)?)?;
    value.check().map_err(|invalid| FileError {
        hint: invalid.hint,
        ..FileError::field(path, invalid.field, invalid.message)
    })?;
    Ok(value)
}

/// Writes text to a temporary file beside `path` and renames it: readers see the old file or the
/// new one, whole. Missing parent folders are made.
pub fn write_text(path: &Path, text: &str) -> Result<(), FileError> {
    let failed = |e: std::io::Error| FileError::new(path, format!("cannot write: {e}"));
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(failed)?;
    let mut temporary =
        tempfile::Builder::new().prefix(".optpipe-").suffix(".tmp").tempfile_in(parent).map_err(failed)?;
    temporary.write_all(text.as_bytes()).map_err(failed)?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Writes a value as YAML, or as JSON if the name ends in `.json`; see [`write_text`].
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let text = if path.extension().is_some_and(|x| x == "json") {
        serde_json::to_string_pretty(value).map(|t| t + "\n").map_err(|e| e.to_string())
    } else {
        serde_yaml::to_string(value).map_err(|e| e.to_string())
    };
    write_text(path, &text.map_err(|e| FileError::new(path, format!("cannot serialise: {e}")))?)
}
