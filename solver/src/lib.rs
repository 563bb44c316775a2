//! The scheduling problem of pipeline-parallel training, and its solution.
//!
//! ```text
//! problem ─┬─ order (textbook, adaptive offload, search, MILP) ── simulate ── Schedule ── check
//!          └─ bound
//! ```

pub mod order;
pub mod problem;
pub mod schedule;
