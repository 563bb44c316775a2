//! Layers whose forward, backward_input and backward_weight can be run and measured apart; timing,
//! memory, calibration.
//!
//! | module | holds |
//! | --- | --- |
//! | [`layer`] | what a layer can do: the three functions, and what is kept between them |
//! | [`model`] | a model as a list of layers |
//! | [`mod@profile`] | times and bytes of each layer |
//! | [`mod@calibrate`] | copies between devices and host, and their fit |
//! | [`timing`] | samples, until they have settled |
//!
//! # Example
//! What a calibration makes of the times of copies: a latency and a bandwidth, from which a copy of any size follows.
//!
//! ```
//! use optpipe_configs::hardware::CopyPoint;
//! use optpipe_configs::profile::Sample;
//! use optpipe_profiler::calibrate::fit::fit;
//!
//! // Ten microseconds, and a byte each 50 picoseconds: 20 GB/s.
//! let measured = (12..28).map(|power| {
//!     let bytes = 1_u64 << power;
//!     let ns = 10_000 + bytes / 20;
//!     let time = Sample { median_ns: ns, mad_ns: ns / 100, p05_ns: ns, p95_ns: ns, count: 9, stable: true };
//!     CopyPoint { bytes, time }
//! });
//! let link = fit(measured.collect());
//! assert!((link.bytes_per_second / 20e9 - 1.0).abs() < 0.01 && (link.latency_ns - 10_000.0).abs() < 100.0);
//! // Copies of 3 MB take 160 us.
//! assert!(link.copy_ns(3_000_000).abs_diff(160_000) < 2_000);
//! ```

#![forbid(unsafe_code)]

pub mod calibrate;
mod conditions;
pub mod layer;
mod layers;
pub mod model;
pub mod profile;
pub mod timing;
