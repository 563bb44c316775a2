//! A schedule for others. Pictures: `trace.json` for Perfetto ([`trace_json`]), `timeline.svg` for people
//! ([`timeline_svg`]); both show a schedule as predicted and, where it ran, as measured. For trainers:
//! [`mod@torch`], [`mod@megatron`], [`mod@deepspeed`]. For readers of one's own: [`table`].

use optpipe_solver::schedule::OpKind;

pub mod bars;
pub mod deepspeed;
pub mod megatron;
pub mod memory;
pub mod table;
pub mod timeline;
pub mod torch;
pub mod trace;
pub mod units;

#[cfg(test)]
mod tests;

pub use deepspeed::deepspeed;
pub use megatron::megatron;
pub use timeline::{TimelineOptions, timeline_svg};
pub use trace::trace_json;

/// A schedule or a measurement that is not one of the problem it is shown with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// A list with one entry a device has another length.
    #[error("the {what} has {found} devices, the problem {expected}")]
    Devices {
        /// `schedule` or `measurement`.
        what: &'static str,
        /// Devices of the problem.
        expected: usize,
        /// Entries found.
        found: usize,
    },
    /// An op that the problem does not have, or has on another device.
    #[error("the {what} has {} of stage {stage}, microbatch {microbatch} on device {device}: no such op in the problem", .op.letter())]
    NoSuchOp {
        /// `schedule` or `measurement`.
        what: &'static str,
        /// What the op does.
        op: OpKind,
        /// Its stage.
        stage: usize,
        /// Its microbatch.
        microbatch: usize,
        /// The device that it is listed under.
        device: usize,
    },
    /// An op whose end lies before its start, or whose times cannot be subtracted without overflow.
    #[error("the {what} has {} of stage {stage}, microbatch {microbatch} at impossible times", .op.letter())]
    Times {
        /// `schedule` or `measurement`.
        what: &'static str,
        /// What the op does.
        op: OpKind,
        /// Its stage.
        stage: usize,
        /// Its microbatch.
        microbatch: usize,
    },
}
