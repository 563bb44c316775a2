//! See [`super::super`] for what each function gives.

use candle_core::{D, Result, Tensor};
use optpipe_configs::model::Norm as Kind;

pub(in super::super) fn statistics(kind: Kind, x: &Tensor, epsilon: f64) -> Result<Tensor> {
    match kind {
        Kind::Rms => (x.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?.recip(),
        Kind::Layer => {
            let mean = x.mean_keepdim(D::Minus1)?;
            let variance = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(D::Minus1)?;
            Tensor::cat(&[mean, (variance + epsilon)?.sqrt()?.recip()?], 1)
        }
    }
}

/// `(x - mean) / deviation`, and one over the deviation.
fn normed(kind: Kind, x: &Tensor, statistics: &Tensor) -> Result<(Tensor, Tensor)> {
    match kind {
        Kind::Rms => Ok((x.broadcast_mul(statistics)?, statistics.clone())),
        Kind::Layer => {
            let mean = statistics.narrow(1, 0, 1)?;
            let inverse = statistics.narrow(1, 1, 1)?;
            Ok((x.broadcast_sub(&mean)?.broadcast_mul(&inverse)?, inverse))
        }
    }
}

pub(in super::super) fn apply(
    kind: Kind,
    x: &Tensor,
    statistics: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (normed, _) = normed(kind, x, statistics)?;
    let y = normed.broadcast_mul(weight)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

pub(in super::super) fn backward(
    kind: Kind,
    x: &Tensor,
    statistics: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    residual: Option<&Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let (normed, inverse) = normed(kind, x, statistics)?;
    let mut parameters = vec![(dy * &normed)?.sum(0)?];
    if kind == Kind::Layer {
        parameters.push(dy.sum(0)?);
    }
    let dnormed = dy.broadcast_mul(weight)?;
    let along = (&dnormed * &normed)?.mean_keepdim(D::Minus1)?;
    let mut dx = (&dnormed - normed.broadcast_mul(&along)?)?;
    if kind == Kind::Layer {
        dx = dx.broadcast_sub(&dnormed.mean_keepdim(D::Minus1)?)?;
    }
    let mut dx = dx.broadcast_mul(&inverse)?;
    if let Some(residual) = residual {
        dx = (dx + residual)?;
    }
    Ok((dx, parameters))
}
