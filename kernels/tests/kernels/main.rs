//! Runs every launch of the kernels on this machine's processor and compares with the references in f64.
#![allow(clippy::unwrap_used)]

mod activation;
mod cross_entropy;
mod emulator;
mod norm;
mod numbers;
mod optimizer;
