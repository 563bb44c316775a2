//! The activations of the MLPs.

use super::wide;
use candle_core::{Result, Tensor};

/// `silu(gate) * up`
pub(crate) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// The gradients by gate and up.
pub(crate) fn silu_mul_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let dtype = gate.dtype();
    let (gate, up, dy) = (wide(gate)?, wide(up)?, wide(dy)?);
    let sigmoid = (gate.neg()?.exp()? + 1.0)?.recip()?;
    let silu = (&gate * &sigmoid)?;
    // d silu = sigmoid * (1 + gate * (1 - sigmoid)) = sigmoid + silu * (1 - sigmoid)
    let slope = (&sigmoid + (&silu * sigmoid.affine(-1.0, 1.0)?)?)?;
    let dgate = ((&dy * &up)? * slope)?;
    Ok((dgate.to_dtype(dtype)?, (dy * silu)?.to_dtype(dtype)?))
}

/// GELU in its tanh form (Hendrycks and Gimpel, 2016), GPT-2's `gelu_new`.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu()
}

/// The gradient by x.
pub(crate) fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    const SCALE: f64 = 0.797_884_560_802_865_4; // sqrt(2 / pi)
    const CUBE: f64 = 0.044_715;
    let dtype = x.dtype();
    let (x, dy) = (wide(x)?, wide(dy)?);
    let square = x.sqr()?;
    let tanh = ((&x * square.affine(SCALE * CUBE, SCALE)?)?).tanh()?;
    let slope = (tanh.sqr()?.affine(-0.5, 0.5)? * (&x * square.affine(3.0 * SCALE * CUBE, SCALE)?)?)?;
    (dy * (tanh.affine(0.5, 0.5)? + slope)?)?.to_dtype(dtype)
}
