//! See [`super::super`] for what each function gives.

use super::super::{Angles, Heads};
use candle_core::{D, Result, Tensor};

/// Turns each pair `(x[i], x[i + width / 2])` of `x` `[.., sequence, heads, width]` by its angle, back
/// where `back` says so.
fn rotate(x: &Tensor, (cos, sin): &Angles, back: bool) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let cos = cos.unsqueeze(1)?;
    let sin = if back { sin.neg()? } else { sin.clone() }.unsqueeze(1)?;
    let turned_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let turned_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    Tensor::cat(&[turned_low, turned_high], D::Minus1)
}

pub(in super::super) fn split(x: &Tensor, heads: Heads, angles: Option<&Angles>, scale: f64) -> Result<Tensor> {
    let Heads { microbatch, sequence, kv, group, width } = heads;
    let mut y = x.reshape((microbatch, sequence, kv * group, width))?;
    if let Some(angles) = angles {
        y = rotate(&y, angles, false)?;
    }
    if scale != 1.0 {
        y = (y * scale)?;
    }
    y.reshape((microbatch, sequence, kv, group * width))?.transpose(1, 2)?.contiguous()?.reshape((
        microbatch * kv,
        sequence * group,
        width,
    ))
}

pub(in super::super) fn merge(x: &Tensor, heads: Heads, angles: Option<&Angles>, scale: f64) -> Result<Tensor> {
    let Heads { microbatch, sequence, kv, group, width } = heads;
    let mut y = x.reshape((microbatch, kv, sequence, group * width))?.transpose(1, 2)?.contiguous()?.reshape((
        microbatch,
        sequence,
        kv * group,
        width,
    ))?;
    if let Some(angles) = angles {
        y = rotate(&y, angles, true)?;
    }
    if scale != 1.0 {
        y = (y * scale)?;
    }
    y.reshape((microbatch * sequence, kv * group * width))
}
