//! The files that OptPipe reads and writes, as types with their checks.
//!
//! | file | type |
//! | --- | --- |
//! | a model's `config.json`, as downloaded from Hugging Face | [`model::Model`] |
//! | `job.yaml`, what to tune | [`job::Job`] |
//! | `hardware.yaml`, what a calibration measured | [`hardware::Hardware`] |
//! | `profile.yaml`, what profiling a model's layers measured | [`profile::Profile`] |
//!
//! Problems and schedules have their types in the solver; they are read and written with the same
//! [`file`] functions.

pub mod file;
pub mod hardware;
pub mod job;
pub mod memory;
pub mod model;
pub mod profile;
pub mod size;
pub mod split;
