//! The parts of the binary `optpipe`: the loop, the runner, export, report.

pub mod export;
pub mod measured;
