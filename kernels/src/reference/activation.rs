//! SwiGLU (Shazeer, GLU variants, 2020) and GELU in its tanh form (Hendrycks and Gimpel, 2016), of one element.

use std::f64::consts::PI;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `silu(gate) * up`
pub fn swiglu(gate: f64, up: f64) -> f64 {
    gate * sigmoid(gate) * up
}

/// The gradients by gate and up.
pub fn swiglu_backward(gate: f64, up: f64, dy: f64) -> (f64, f64) {
    let s = sigmoid(gate);
    (dy * up * (s + gate * s * (1.0 - s)), dy * gate * s)
}

fn gelu_inner(x: f64) -> f64 {
    (2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))
}

/// `gelu(x)`
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + gelu_inner(x).tanh())
}

/// The gradient by x.
pub fn gelu_backward(x: f64, dy: f64) -> f64 {
    let t = gelu_inner(x).tanh();
    let slope = (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
    dy * 0.5 * (1.0 + t + x * (1.0 - t * t) * slope)
}
