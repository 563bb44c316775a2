#![allow(clippy::unwrap_used)]

mod failures;
pub(super) mod fixture;
mod proof;
mod reference;
