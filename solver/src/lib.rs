//! The scheduling problem of pipeline-parallel training, and its solution.
//!
//! ```text
//! problem ─┬─ order (textbook, adaptive offload, search, MILP) ── simulate ── Schedule ── check
//!          └─ bound
//! ```

pub mod bound;
pub mod check;
pub mod method;
pub mod milp;
pub mod order;
pub mod problem;
pub mod schedule;
pub mod simulate;
pub mod solve;
pub mod textbook;

mod adaptive;
mod graph;
mod longest_path;
mod memory;
mod plan;
mod search;
#[cfg(test)]
mod testing;
