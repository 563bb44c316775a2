//! What a user meets: shipped files, models as downloaded, and what errors say.

#![allow(clippy::unwrap_used)]

mod errors;
mod jobs;
mod models;
mod robust;
mod schemas;
