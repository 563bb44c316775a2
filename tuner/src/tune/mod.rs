//! The loop: profile, solve, run, feed the measured times back, until throughput stops gaining.

pub mod folder;
pub mod machine;
pub mod update;
