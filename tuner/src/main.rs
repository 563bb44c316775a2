//! The binary: see [`optpipe::cli`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: optpipe_kernels::alloc::Counting = optpipe_kernels::alloc::Counting::SYSTEM;

fn main() -> ExitCode {
    optpipe::cli::main()
}
