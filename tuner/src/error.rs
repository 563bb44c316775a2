//! What can go wrong in a command, and the exit code that says so.

use std::path::PathBuf;

use optpipe_configs::file::{FileError, Invalid};

use crate::text;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or an argument that cannot be used as it is.
    #[error("{message}")]
    Input {
        /// What was found where, and what was expected.
        message: String,
        /// What to do about it.
        hint: Option<String>,
        /// The line to show, where one is to blame.
        place: Option<Place>,
    },
    /// A device cannot hold even one microbatch.
    #[error("{message}")]
    Infeasible {
        /// Which device lacks how much.
        message: String,
        /// What would make it fit.
        hint: String,
    },
    /// Anything else.
    #[error("{message}")]
    Failed {
        /// What failed.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A device's memory did not suffice for a schedule that was to fit: what was predicted was too little.
    #[error("{message}")]
    OutOfMemory {
        /// The device.
        device: usize,
        /// By how much it did not suffice, where that is known.
        over_bytes: Option<u64>,
        /// Where it happened.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// What measures is gone, or hangs.
    #[error("{message}")]
    Lost {
        /// What is known of it.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// Stopped by the user.
    #[error("interrupted{0}")]
    Interrupted(
        /// What was kept, starting with a separator, or nothing.
        String,
    ),
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, where known.
    pub column: Option<usize>,
}

impl Error {
    /// An unusable argument.
    pub fn input(message: impl Into<String>) -> Self {
        Error::Input { message: message.into(), hint: None, place: None }
    }

    /// A failure.
    pub fn failed(message: impl Into<String>) -> Self {
        Error::Failed { message: message.into(), hint: None }
    }

    /// A file that could not be written: nothing is wrong with the input.
    pub fn write(error: FileError) -> Self {
        let FileError { path, message, hint, .. } = error;
        Error::Failed { message: format!("{}: {message}", path.display()), hint: hint.map(Into::into) }
    }

    /// A job's or a problem's condition that does not hold, where no file is to blame.
    pub fn invalid(what: &str, invalid: Invalid) -> Self {
        Error::Input {
            message: format!("{what}: {}: {}", invalid.field, invalid.message),
            hint: invalid.hint,
            place: None,
        }
    }

    /// The same error with advice.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Error::Input { hint, .. } | Error::Failed { hint, .. } => *hint = Some(text.into()),
            Error::Infeasible { hint, .. } | Error::OutOfMemory { hint, .. } | Error::Lost { hint, .. } => {
                *hint = text.into();
            }
            Error::Interrupted(_) => {}
        }
        self
    }

    /// The advice.
    pub fn advice(&self) -> Option<&str> {
        match self {
            Error::Input { hint, .. } | Error::Failed { hint, .. } => hint.as_deref(),
            Error::Infeasible { hint, .. } | Error::OutOfMemory { hint, .. } | Error::Lost { hint, .. } => Some(hint),
            Error::Interrupted(_) => None,
        }
    }

    /// The line to show, where one is to blame.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Error::Input { place, .. } => place.as_ref(),
            _ => None,
        }
    }

    /// 1 failed, 2 bad input, 3 infeasible, 130 interrupted. What is meant to be interrupted, as `solve --watch` is, makes
    /// no error of it and ends with 0.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Failed { .. } | Error::OutOfMemory { .. } | Error::Lost { .. } => 1,
            Error::Input { .. } => 2,
            Error::Infeasible { .. } => 3,
            Error::Interrupted(_) => 130,
        }
    }
}

impl From<FileError> for Error {
    fn from(mut error: FileError) -> Self {
        let hint = error.hint.take();
        let place = error.line.map(|line| Place { path: error.path.clone(), line, column: error.column });
        Error::Input { message: error.to_string(), hint: hint.map(Into::into), place }
    }
}

impl From<optpipe_solver::problem::Infeasible> for Error {
    fn from(e: optpipe_solver::problem::Infeasible) -> Self {
        Error::Infeasible {
            message: format!(
                "infeasible: device {} lacks {}: one microbatch at a time, with everything offloaded at once, needs \
                 {} and the capacity is {}",
                e.device,
                text::bytes(e.missing_bytes.unsigned_abs()),
                text::bytes(e.needed_bytes.unsigned_abs()),
                text::bytes(e.capacity.unsigned_abs()),
            ),
            hint: format!("raise bytes.capacity[{}] to at least {}", e.device, e.needed_bytes),
        }
    }
}

/// The outcome of a command.
pub type Result<T> = std::result::Result<T, Error>;
