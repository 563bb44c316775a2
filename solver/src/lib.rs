//! The scheduling problem of pipeline-parallel training, and its solution.
//!
//! ```text
//! problem ─┬─ order (textbook, adaptive offload, search, MILP) ── simulate ── Schedule ── check
//!          └─ bound
//! ```

pub mod adaptive;
pub mod bound;
pub mod check;
pub mod method;
pub mod milp;
pub mod order;
pub mod problem;
pub mod schedule;
pub mod simulate;
pub mod textbook;

mod graph;
mod longest_path;
mod memory;
mod plan;
#[cfg(test)]
mod testing;
