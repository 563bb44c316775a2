//! The parts of the binary `optpipe`: the loop, the runner, export, report.

#![forbid(unsafe_code)]

pub mod analysis;
pub mod cache;
pub mod cli;
pub mod error;
pub mod export;
pub mod interrupt;
pub mod measured;
pub mod noise;
pub mod plan;
pub mod progress;
pub mod readers;
pub mod rehearsed;
mod replay;
pub mod report;
pub mod runner;
pub mod sensitivity;
pub mod solved;
pub mod structure;
pub mod summary;
pub mod table;
pub mod text;
pub mod tune;
pub mod watch;
