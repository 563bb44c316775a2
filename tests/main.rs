//! The built binary from end to end, in one test program: each file of tests that is a program of its own costs
//! a build another link.

mod support;

mod cache;
mod cli;
mod damage;
mod disk;
// A program with CUDA compute is linked against the whole driver, which the tests' stand-in is not.
#[cfg(all(target_os = "linux", not(feature = "cuda")))]
mod gpus;
mod help;
mod hostile;
mod outputs;
mod rehearse;
mod report;
mod search;
mod terminal;
mod tune;
