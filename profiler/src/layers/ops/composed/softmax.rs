//! See [`super::super`] for what each function gives.

use super::super::Span;
use candle_core::{D, Result, Tensor};

/// 0 where a key is seen, minus infinity elsewhere: `[rows, keys]`.
fn mask(span: Span, scores: &Tensor) -> Result<Tensor> {
    let (_, rows, keys) = scores.dims3()?;
    let mut mask = vec![f32::NEG_INFINITY; rows * keys];
    for (row, mask) in mask.chunks_exact_mut(keys).enumerate() {
        let (first, end) = span.visible(row, keys);
        mask[first..end].fill(0.0);
    }
    Tensor::from_vec(mask, (rows, keys), scores.device())?.to_dtype(scores.dtype())
}

pub(in super::super) fn attend(scores: &Tensor, span: Span) -> Result<(Tensor, Tensor)> {
    let scores = scores.broadcast_add(&mask(span, scores)?)?;
    let log_sum = scores.log_sum_exp(D::Minus1)?;
    let probabilities = scores.broadcast_sub(&log_sum.unsqueeze(2)?)?.exp()?;
    Ok((probabilities, log_sum))
}

pub(in super::super) fn attend_backward(
    scores: &Tensor,
    span: Span,
    log_sum: &Tensor,
    dprobabilities: &Tensor,
    mean: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let masked = scores.broadcast_add(&mask(span, scores)?)?;
    let probabilities = masked.broadcast_sub(&log_sum.unsqueeze(2)?)?.exp()?;
    let dscores = (dprobabilities.broadcast_sub(&mean.unsqueeze(2)?)? * &probabilities)?;
    Ok((probabilities, dscores))
}

pub(in super::super) fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    x.log_sum_exp(D::Minus1)
}

pub(in super::super) fn cross_entropy_backward(
    logits: &Tensor,
    log_sum: &Tensor,
    targets: &Tensor,
    first: usize,
    scale: &Tensor,
) -> Result<Tensor> {
    let columns = logits.dim(1)?;
    let probabilities = logits.broadcast_sub(&log_sum.unsqueeze(1)?)?.exp()?;
    let tokens = Tensor::arange(first as u32, (first + columns) as u32, logits.device())?;
    let hit = targets.unsqueeze(1)?.broadcast_eq(&tokens.unsqueeze(0)?)?;
    (probabilities - hit.to_dtype(logits.dtype())?)?.broadcast_mul(scale)
}
