//! What the times of a schedule say about it, predicted or measured alike: what each op waited for
//! ([`mod@waits`]), where devices idle and why ([`mod@idle`]), and how much the channels carry ([`channels`]).
//!
//! All of it is told from the [`Bars`](crate::export::bars::Bars) of a run and the rules of its problem;
//! nothing is simulated again.

pub mod channels;
pub mod idle;
pub mod waits;

#[cfg(test)]
mod tests;

pub use channels::{ChannelLoad, channel_loads};
pub use idle::{Idle, idle};
pub use waits::{Cause, OpPlace, Wait, Waits, waits};
