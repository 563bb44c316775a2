#![allow(clippy::unwrap_used)]

mod failures;
mod fixture;
mod proof;
mod reference;
