//! What the kernels compute, as plain loops in f64: what they are tested against.
//!
//! Matrices are row by row in slices, as in the operands of [`crate::cuda::ops`].

pub mod activation;
pub mod attention;
pub mod cross_entropy;
pub mod norm;
pub mod optimizer;
pub mod rotary;
