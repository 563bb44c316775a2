//! The binary: see [`optpipe::cli`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: optpipe_kernels::alloc::Counting = optpipe_kernels::alloc::Counting::SYSTEM;

fn main() -> ExitCode {
    optpipe::cli::main()
}
