//! The parts of the binary `optpipe`: the loop, the runner, export, report.
//!
//! | module | holds |
//! | --- | --- |
//! | [`mod@tune`] | the loop: profile, solve, run, until throughput converges; its folder |
//! | [`plan`] | the problem that job, profile and hardware make |
//! | [`runner`] | a schedule on real tensors, device by device |
//! | [`structure`] | the search over what a job leaves open |
//! | [`sensitivity`], [`noise`] | what more memory would buy; which schedule holds up best |
//! | [`cache`] | problems solved before |
//! | [`analysis`] | what ops wait for, where devices idle and why |
//! | [`export`], [`mod@report`] | pictures, traces, trainers' files; the page |
//! | [`cli`] | the commands |
//!
//! # Example
//! A problem is solved, and where the time of its schedule goes is found out and drawn.
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//!
//! use optpipe::analysis::{idle, waits};
//! use optpipe::export::bars::Bars;
//! use optpipe::export::{TimelineOptions, timeline_svg};
//! use optpipe_solver::problem::{Problem, Sizes, Times};
//! use optpipe_solver::solve::{SolveOptions, solve};
//!
//! let problem = Problem {
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
//! let solution = solve(&problem, &SolveOptions::default(), &mut |_| {}, &AtomicBool::new(false))?;
//!
//! // Every device computes for 900 ns; what is left of the step is accounted for, by cause.
//! let bars = Bars::predicted(&problem, &solution.schedule)?;
//! for (device, idle) in idle(&problem, &bars, &waits(&problem, &bars)).into_iter().enumerate() {
//!     assert_eq!(idle.total_ns(), solution.makespan_ns - 900);
//!     println!("device {device}: {:?}", idle.parts());
//! }
//! let picture = timeline_svg(&problem, &solution.schedule, None, &TimelineOptions::default())?;
//! assert!(picture.starts_with("<svg"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
