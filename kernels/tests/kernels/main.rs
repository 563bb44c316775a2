//! Runs every launch of the kernels and compares with the references in f64.
//!
//! On this machine's processor, by an emulator. With OPTPIPE_TEST_DEVICE=cuda on the first NVIDIA device: the test
//! program can be carried to a machine that has one, and needs the driver and NVRTC there.
#![allow(clippy::unwrap_used)]

mod activation;
mod attention;
mod cross_entropy;
mod emulator;
mod executor;
mod norm;
mod numbers;
mod optimizer;
