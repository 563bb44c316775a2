//! See [`super::super`] for what each function gives.

use super::super::{GELU_CUBE, GELU_SCALE};
use candle_core::{Result, Tensor};

pub(in super::super) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

pub(in super::super) fn silu_mul_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let sigmoid = (gate.neg()?.exp()? + 1.0)?.recip()?;
    let silu = (gate * &sigmoid)?;
    // d silu = sigmoid * (1 + gate * (1 - sigmoid)) = sigmoid + silu * (1 - sigmoid)
    let slope = (&sigmoid + (&silu * sigmoid.affine(-1.0, 1.0)?)?)?;
    Ok((((dy * up)? * slope)?, (dy * silu)?))
}

pub(in super::super) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu()
}

pub(in super::super) fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let square = x.sqr()?;
    let tanh = (x * square.affine(GELU_SCALE * GELU_CUBE, GELU_SCALE)?)?.tanh()?;
    let slope = (tanh.sqr()?.affine(-0.5, 0.5)? * (x * square.affine(3.0 * GELU_SCALE * GELU_CUBE, GELU_SCALE)?)?)?;
    dy * (tanh.affine(0.5, 0.5)? + slope)?
}
