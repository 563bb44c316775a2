//! The files that OptPipe reads and writes, as types with their checks.
//!
//! | file | type |
//! | --- | --- |
//! | a model's `config.json`, as downloaded from Hugging Face | [`model::Model`] |
//! | `job.yaml`, what to tune | [`job::Job`] |
//! | `hardware.yaml`, what a calibration measured | [`hardware::Hardware`] |
//! | `profile.yaml`, what profiling a model's layers measured | [`profile::Profile`] |
//!
//! Measurements of machines that were at hand are [recorded](record) under names.
//!
//! Problems and schedules have their types in the solver; they are read and written with the same
//! [`mod@file`] functions.
//!
//! # From a job to stages
//!
//! A job names a model and a pipeline. Its file is read with everything checked: ranges, lists against
//! devices and chunks, the job against the model.
//!
//! ```
//! use optpipe_configs::{job::Job, memory, size::format_bytes, split};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("job.yaml");
//! std::fs::write(&path, "model: llama-3.1-8b\nprecision: bf16\npipeline: {devices: 4}\nmemory_limit: 80GiB\n")?;
//! let (job, model) = Job::read(&path)?;
//!
//! // The split balances times; here a block takes 10, embedding and head 1 and 20 (milliseconds, say).
//! let mut times = vec![10; model.layers + 2];
//! (times[0], times[model.layers + 1]) = (1, 20);
//! let placement = job.placement();
//! let split = split::balance(&times, &placement)?;
//! assert_eq!(split.iter().sum::<usize>(), model.layers);
//!
//! // What each device holds all the time: weights, gradients, optimizer states.
//! let stages = memory::stages(&model, &split, job.precision, job.optimizer);
//! let devices = memory::devices(&stages, &placement, job.pipeline.devices);
//! assert_eq!(format_bytes(devices[0].total()), "38.1 GiB");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Errors
//!
//! Every reader returns a [`file::FileError`]: file, line, field, what was expected, what was found, and
//! often what to do.
//!
//! ```
//! use optpipe_configs::{file, job::Job};
//!
//! let text = "model: gpt2\nbatch:\n  microbatch: 4\n";
//! let error = file::parse::<Job>("job.yaml".as_ref(), text).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "job.yaml:3:3: batch.microbatch: unknown field; known are sequence_length, microbatch_size, microbatches, global_batch\n  \
//!      hint: did you mean `microbatches`?"
//! );
//! ```

#![forbid(unsafe_code)]

pub mod file;
pub mod hardware;
pub mod job;
pub mod memory;
pub mod model;
pub mod profile;
pub mod record;
pub mod schema;
pub mod size;
pub mod split;
