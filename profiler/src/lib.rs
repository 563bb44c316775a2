//! Layers whose forward, backward_input and backward_weight can be run and measured apart; timing,
//! memory, calibration.

#![forbid(unsafe_code)]

pub mod calibrate;
mod conditions;
pub mod layer;
mod layers;
pub mod model;
pub mod profile;
pub mod timing;
