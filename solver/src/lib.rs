//! The scheduling problem of pipeline-parallel training, and its solution: which op runs when, and which
//! activations are offloaded to the host, within each device's memory, in the shortest time.
//!
//! ```text
//! problem ─┬─ order (textbook, adaptive offload, search, MILP) ── simulate ── Schedule ── check
//!          └─ bound
//! ```
//!
//! # Example
//! Two devices with one stage each train three microbatches. A device has room for the activations of
//! three; its link to the host is slower than its compute.
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//! use std::time::Duration;
//!
//! use optpipe_configs::file::Check;
//! use optpipe_solver::check::check;
//! use optpipe_solver::method::Method;
//! use optpipe_solver::problem::{Problem, Sizes, Times};
//! use optpipe_solver::solve::{SolveOptions, StopReason, solve};
//! use optpipe_solver::textbook;
//!
//! let mut problem = Problem {
//!     devices: 2,
//!     placement: vec![0, 1],
//!     microbatches: 3,
//!     split_backward: true,
//!     time_ns: Times {
//!         forward: vec![100, 100],
//!         backward_input: vec![100, 100],
//!         backward_weight: vec![100, 100],
//!         send_forward: vec![10],
//!         send_backward: vec![10],
//!         offload: vec![150, 150],
//!         reload: vec![150, 150],
//!     },
//!     bytes: Sizes {
//!         activation: vec![8, 8],
//!         weight_context: vec![4, 4],
//!         offloadable: vec![8, 8],
//!         r#static: vec![0, 0],
//!         capacity: vec![24, 24],
//!     },
//!     offload_channel: vec![0, 1],
//!     reload_channel: vec![2, 3],
//! };
//! problem.check().map_err(|invalid| invalid.message)?;
//!
//! // The shortest schedule takes 1010 ns: the bound proves it.
//! let never = AtomicBool::new(false);
//! let solution = solve(&problem, &SolveOptions::default(), &mut |event| println!("{event}"), &never)?;
//! assert_eq!((solution.makespan_ns, solution.bound_ns), (1010, 1010));
//! assert_eq!(solution.stop, StopReason::Optimal);
//!
//! // What the checker finds, it finds by the rules alone.
//! let report = check(&problem, &solution.schedule);
//! assert!(report.is_legal());
//! assert!(report.peak_bytes.iter().all(|&peak| peak <= 24));
//!
//! // 1F1B is longer.
//! let schedule = textbook::schedule(&problem, Method::OneFOneB)?;
//! assert!(check(&problem, &schedule).makespan_ns > 1010);
//!
//! // With half of the memory activations have to leave; with less than one microbatch's nothing can run.
//! problem.bytes.capacity = vec![12, 12];
//! let options = SolveOptions { time_limit: Duration::from_secs(1), ..SolveOptions::default() };
//! let tight = solve(&problem, &options, &mut |_| {}, &never)?;
//! assert!(tight.makespan_ns > 1010 && check(&problem, &tight.schedule).is_legal());
//! problem.bytes.capacity = vec![24, 7];
//! let refused = solve(&problem, &SolveOptions::default(), &mut |_| {}, &never).unwrap_err();
//! assert_eq!((refused.device, refused.missing_bytes), (1, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(unsafe_code)]

/// A fingerprint of this library's source: schedules and bounds of another build, where the search or
/// the bounds may have been others, are told apart by it.
pub const SOURCE: &str = env!("OPTPIPE_SOLVER_SOURCE");

#[cfg(test)]
extern crate self as optpipe_solver;

#[doc(hidden)]
pub mod bench;
pub mod bound;
pub mod check;
pub mod method;
pub mod milp;
pub mod objective;
pub mod order;
pub mod period;
pub mod problem;
pub mod schedule;
pub mod simulate;
pub mod solve;
pub mod textbook;

mod adaptive;
mod graph;
mod highs;
mod incumbent;
mod longest_path;
mod memory;
mod plan;
mod search;
mod windows;
// The random problems of the integration tests, for the tests of what is private.
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(test)]
mod testing;
