//! Reading and writing files: one error type that says where and what, and writes that never leave
//! half a file.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

mod keys;
mod locate;
mod message;
mod numbers;

pub use keys::Keys;
pub use numbers::{LARGEST_NUMBER, check_numbers};

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
    pub hint: Option<Box<str>>,
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
        self.hint = Some(hint.into().into_boxed_str());
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

/// The only format version there is.
pub const VERSION: u32 = 1;

/// The check of the field `version` that every file type shares.
pub fn check_version(version: u32) -> Result<(), Invalid> {
    if version == VERSION {
        return Ok(());
    }
    Err(Invalid::new("version", format!("expected {VERSION}, found {version}"))
        .hint("another release of OptPipe wrote this file, or `version` was changed by hand"))
}

/// Reads a file's text: at most [`LARGEST_FILE`] bytes of UTF-8.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let failed = |e: std::io::Error| FileError::new(path, format!("cannot read: {e}"));
    let too_large =
        |bytes: &str| FileError::new(path, format!("{bytes} bytes; files of up to {LARGEST_FILE} are read"));
    // The length says nothing of a device, a pipe or a file that grows: they are read up to the limit.
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(FileError::new(path, "expected a file, found a folder"));
    }
    if metadata.len() > LARGEST_FILE {
        return Err(too_large(&metadata.len().to_string()));
    }
    let read = read_at_most(file, LARGEST_FILE, usize::try_from(metadata.len()).unwrap_or(0)).map_err(failed)?;
    let bytes = read.ok_or_else(|| too_large(&format!("more than {LARGEST_FILE}")))?;
    String::from_utf8(bytes).map_err(|e| {
        let lines = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        FileError { line: Some(lines + 1), ..FileError::new(path, "not UTF-8 text") }
    })
}

/// So much is looked at before the rest is read.
const BEGINNING: u64 = 1 << 16;

/// All that a reader has, of about so many bytes; `None` where that is more than `most`. Of what its beginning shows
/// to be no text, no more is read: a device may have no end.
fn read_at_most(reader: impl Read, most: u64, expected: usize) -> std::io::Result<Option<Vec<u8>>> {
    let mut reader = reader.take(most.saturating_add(1));
    let mut bytes = Vec::with_capacity(expected);
    reader.by_ref().take(BEGINNING).read_to_end(&mut bytes)?;
    if bytes.contains(&0) {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "not text: it has bytes that are 0"));
    }
    reader.read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

/// Parses text that came from `path`: JSON if the name ends in `.json`, else YAML.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, FileError> {
    if is_json(path) { parse_json(path, text) } else { parse_yaml(path, text) }
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|x| x.eq_ignore_ascii_case("json"))
}

fn parse_yaml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, FileError> {
    if text.bytes().all(|b| b.is_ascii_whitespace()) {
        return Err(FileError::new(path, "the file is empty"));
    }
    if let Some(line) = too_deep(text) {
        let message = format!("more than {MOST_BRACKETS} brackets are open at once");
        return Err(FileError { line: Some(line), ..FileError::new(path, message) });
    }
    serde_path_to_error::deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|e| {
        let field = e.path().to_string();
        let e = e.into_inner();
        let at = e.location().map(|at| (at.line(), at.column()));
        message::reworded(path, &field, &e.to_string(), at)
    })
}

/// The most brackets that YAML may have open at once; no file of ours needs ten.
const MOST_BRACKETS: usize = 1000;

/// The line where too many brackets are open, if there is one. The YAML parser's time grows with the
/// square of the open brackets, before it gets to its own limit on nesting. (Brackets in quotes and
/// comments count here too, which only matters for files that hold a thousand more of one kind.)
fn too_deep(text: &str) -> Option<usize> {
    let (mut open, mut line) = (0_usize, 1);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            b'\n' => line += 1,
            _ => {}
        }
        if open > MOST_BRACKETS {
            return Some(line);
        }
    }
    None
}

/// Parses JSON whatever the file's name.
pub fn parse_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, FileError> {
    if text.bytes().all(|b| b.is_ascii_whitespace()) {
        return Err(FileError::new(path, "the file is empty"));
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let failed = |field: &str, e: &serde_json::Error| {
        message::reworded(path, field, &e.to_string(), Some((e.line(), e.column())))
    };
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| {
        let field = e.path().to_string();
        failed(&field, e.inner())
    })?;
    deserializer.end().map_err(|e| failed(".", &e))?;
    Ok(value)
}

/// Runs the type's own checks on a value that came from `text`: an error has the path and, where the
/// field is in the text, its line.
pub fn checked<T: Check>(path: &Path, text: &str, value: T) -> Result<T, FileError> {
    match value.check() {
        Ok(()) => Ok(value),
        Err(invalid) => Err(located(path, text, invalid)),
    }
}

/// Gives a problem the path and, where the field (or the nearest field around it) is in the text, the
/// line and column.
pub fn located(path: &Path, text: &str, invalid: Invalid) -> FileError {
    let at = if is_json(path) { locate::json(text, &invalid.field) } else { locate::yaml(text, &invalid.field) };
    FileError {
        line: at.map(|at| at.0),
        column: at.and_then(|at| at.1),
        hint: invalid.hint.map(String::into_boxed_str),
        ..FileError::field(path, invalid.field, invalid.message)
    }
}

/// Reads a file and runs the type's own checks.
pub fn read_checked<T: DeserializeOwned + Check>(path: &Path) -> Result<T, FileError> {
    let text = read_text(path)?;
    checked(path, &text, parse(path, &text)?)
}

/// Writes text to a temporary file beside `path` and renames it: readers see the old file or the
/// new one, whole. Missing parent folders are made. Links are followed; what is no file, such as
/// `/dev/stdout`, is written to as it is.
pub fn write_text(path: &Path, text: &str) -> Result<(), FileError> {
    let failed = |e: std::io::Error| FileError::new(path, format!("cannot write: {e}"));
    let target = match std::fs::metadata(path) {
        Ok(there) if there.is_dir() => return Err(FileError::new(path, "cannot write: it is a folder")),
        Ok(there) if !there.is_file() => return std::fs::write(path, text).map_err(failed),
        Ok(_) if path.is_symlink() => std::fs::canonicalize(path).map_err(failed)?,
        _ => path.to_owned(),
    };
    let path = target.as_path();
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(failed)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".optpipe-").suffix(".tmp");
    // A temporary file is private by default; these are results to share, so the umask decides.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(parent).map_err(failed)?;
    temporary.write_all(text.as_bytes()).map_err(failed)?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Writes a value as YAML, or as JSON if the name ends in `.json`; see [`write_text`].
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let text = if is_json(path) {
        serde_json::to_string_pretty(value).map(|t| t + "\n").map_err(|e| e.to_string())
    } else {
        serde_yaml::to_string(value).map_err(|e| e.to_string())
    };
    write_text(path, &text.map_err(|e| FileError::new(path, format!("cannot serialise: {e}")))?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::repeat;

    use super::read_at_most;

    #[test]
    fn what_has_no_end_is_read_up_to_the_limit() {
        let most = 1 << 20;
        assert_eq!(read_at_most(repeat(b'x'), most, 0).unwrap(), None);
        assert_eq!(read_at_most(&[b'x'; 1 << 20][..], most, 9).unwrap().unwrap().len(), 1 << 20);
        assert_eq!(read_at_most(&b""[..], 0, 0).unwrap(), Some(Vec::new()));
        // A limit that cannot be reached: without an early look this would not end.
        let error = read_at_most(repeat(0), u64::MAX, 0).unwrap_err();
        assert!(error.to_string().contains("not text"), "{error}");
    }
}
