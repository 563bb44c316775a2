//! Softmax over rows: with the causal mask for attention, over blocks of the vocabulary for the loss.

use candle_core::{D, Result, Tensor};

/// Which keys the queries of a block see.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// Position of the first query.
    pub(crate) first_query: usize,
    /// Rows a query: its heads that share a key head.
    pub(crate) group: usize,
    /// Position of the first key.
    pub(crate) first_key: usize,
    /// How far back a query sees, itself included.
    pub(crate) window: Option<usize>,
}

impl Span {
    /// First and one past the last of `keys` columns that `row` sees.
    fn visible(&self, row: usize, keys: usize) -> (usize, usize) {
        let query = self.first_query + row / self.group;
        let first = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
        let end = (query + 1).saturating_sub(self.first_key).min(keys);
        (first.saturating_sub(self.first_key).min(end), end)
    }

    /// 0 where a key is seen, minus infinity elsewhere: `[rows, keys]`.
    fn mask(&self, scores: &Tensor) -> Result<Tensor> {
        let (_, rows, keys) = scores.dims3()?;
        let mut mask = vec![f32::NEG_INFINITY; rows * keys];
        for (row, mask) in mask.chunks_exact_mut(keys).enumerate() {
            let (first, end) = self.visible(row, keys);
            mask[first..end].fill(0.0);
        }
        Tensor::from_vec(mask, (rows, keys), scores.device())?.to_dtype(scores.dtype())
    }
}

/// Of scores `[heads, rows, keys]` in f32 or f64: the probabilities, and the log of the sum of the
/// exponentials `[heads, rows]`.
pub(crate) fn attend(scores: &Tensor, span: Span) -> Result<(Tensor, Tensor)> {
    let scores = scores.broadcast_add(&span.mask(scores)?)?;
    let log_sum = scores.log_sum_exp(D::Minus1)?;
    let probabilities = scores.broadcast_sub(&log_sum.unsqueeze(2)?)?.exp()?;
    Ok((probabilities, log_sum))
}

/// Of the same scores, the log-sum-exp, the gradient by the probabilities `[heads, rows, keys]` and its
/// mean under them `[heads, rows]`: the probabilities again, and the gradient by the scores.
pub(crate) fn attend_backward(
    scores: &Tensor,
    span: Span,
    log_sum: &Tensor,
    dprobabilities: &Tensor,
    mean: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let masked = scores.broadcast_add(&span.mask(scores)?)?;
    let probabilities = masked.broadcast_sub(&log_sum.unsqueeze(2)?)?.exp()?;
    let dscores = (dprobabilities.broadcast_sub(&mean.unsqueeze(2)?)? * &probabilities)?;
    Ok((probabilities, dscores))
}

/// The log of the sum of the exponentials of each row: `[rows, columns]` to `[rows]`.
pub(crate) fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    x.log_sum_exp(D::Minus1)
}

/// The gradient of `scale` times the sum over rows of the cross-entropy, by a block of the logits
/// `[rows, columns]` whose first column is token `first`: `(softmax - one_hot(target)) * scale`.
///
/// `log_sum` `[rows]` is over the whole vocabulary; `targets` `[rows]`, u32; `scale` a scalar.
pub(crate) fn cross_entropy_backward(
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
    (probabilities - hit.to_dtype(logits.dtype())?)?.broadcast_mul(&scale.to_dtype(logits.dtype())?)
}
