//! Every kind of file that OptPipe reads, in one place: its reader, its checks and its schema.
//!
//! `optpipe schema` prints from this table, and whatever damages files to see whether readers hold goes through it: a
//! kind that is added here is tried there.

use std::path::Path;

use optpipe_configs::file::{self, Check, FileError};
use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::Job;
use optpipe_configs::model::Model;
use optpipe_configs::profile::Profile;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::ScheduleFile;
use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;

use crate::measured::Measured;
use crate::rehearsed::Rehearsed;
use crate::sensitivity::file::SensitivityFile;
use crate::solved::Solved;
use crate::structure;
use crate::summary::{Round, Summary};
use crate::tune::folder::Marker;

/// A kind of file.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// Its name in `optpipe schema`.
    pub name: &'static str,
    read: fn(&Path, &str) -> Result<(), FileError>,
    schema: Option<fn() -> Schema>,
}

/// Every kind of file that is read.
pub const READERS: [Reader; 14] = [
    // Hugging Face's format.
    Reader { name: "model", read: model, schema: None },
    reader::<Job>("job"),
    reader::<Hardware>("hardware"),
    reader::<Profile>("profile"),
    reader::<Problem>("problem"),
    reader::<ScheduleFile>("schedule"),
    reader::<Measured>("measured"),
    reader::<Rehearsed>("rehearsed"),
    reader::<Round>("round"),
    reader::<Solved>("solve"),
    reader::<SensitivityFile>("sensitivity"),
    reader::<Summary>("summary"),
    reader::<Marker>("tune"),
    reader::<structure::report::Report>("search"),
];

const fn reader<T: DeserializeOwned + Check + JsonSchema>(name: &'static str) -> Reader {
    Reader { name, read: read::<T>, schema: Some(schema::<T>) }
}

fn read<T: DeserializeOwned + Check>(path: &Path, text: &str) -> Result<(), FileError> {
    file::checked::<T>(path, text, file::parse(path, text)?).map(|_| ())
}

fn schema<T: JsonSchema>() -> Schema {
    schema_for!(T)
}

fn model(path: &Path, text: &str) -> Result<(), FileError> {
    Model::from_json("model", path, text).map(|_| ())
}

impl Reader {
    /// Reads a text as this kind of file, with its checks. The path is for messages, and its ending tells JSON from
    /// YAML.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn read(&self, path: &Path, text: &str) -> Result<(), FileError> {
        (self.read)(path, text)
    }

    /// Whether the format is OptPipe's own.
    pub fn has_schema(&self) -> bool {
        self.schema.is_some()
    }

    /// Its JSON Schema, where the format is OptPipe's own.
    pub fn schema(&self) -> Option<Schema> {
        self.schema.map(|schema| schema())
    }
}
