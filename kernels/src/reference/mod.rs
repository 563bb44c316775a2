//! What the kernels compute, as plain loops in f64: what they are tested against.

pub mod norm;
