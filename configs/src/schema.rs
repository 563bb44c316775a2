//! JSON Schemas of the files, for editors: completion, doc lines and checks while writing.
//!
//! Copies are in `configs/schemas/`. In an editor with a YAML language server, a first line such as
//! `# yaml-language-server: $schema=.../configs/schemas/job.schema.json` turns one on.

use schemars::{Schema, schema_for};

use crate::hardware::Hardware;
use crate::job::Job;
use crate::profile::Profile;

/// Name and schema of every file type of this crate.
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![("job", schema_for!(Job)), ("hardware", schema_for!(Hardware)), ("profile", schema_for!(Profile))]
}

/// A schema's text, as in its file.
pub fn text(schema: &Schema) -> String {
    format!("{:#}\n", schema.as_value())
}
