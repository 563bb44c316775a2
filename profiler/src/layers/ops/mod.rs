//! The operations between the matrix products, for tensors in any type: as loops on the CPU, own kernels on
//! NVIDIA GPUs for f32 and bf16 ([`optpipe_kernels::cuda::tensors`]), composed of tensor operations elsewhere.
//! Sums and exponentials are taken in f32, f64 for f64.

mod composed;
mod cpu;
#[cfg(test)]
mod tests;

use candle_core::{DType, Result, Tensor};
use cpu::heads::Way;
use optpipe_configs::model::Norm;
#[cfg(feature = "cuda")]
use optpipe_kernels::cuda::{ops::norm::Norm as OwnNorm, ops::rotary::Direction, tensors as own};

/// The type that statistics, exponentials and long sums are taken in: f32, f64 for f64.
pub(crate) fn wide_type(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The tensor in its [`wide_type`], contiguous; itself where it is so already.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(wide_type(x.dtype()))?.contiguous()
}

/// Of `x` `[rows, width]`: `[rows, 1]`, one over the root mean square, or for LayerNorm `[rows, 2]`, mean and
/// one over the deviation; in the wide type.
pub(crate) fn norm_statistics(kind: Norm, x: &Tensor, epsilon: f64) -> Result<Tensor> {
    let x = wide(x)?;
    if x.device().is_cpu() {
        cpu::norm::statistics(kind, &x, epsilon)
    } else {
        composed::norm::statistics(kind, &x, epsilon)
    }
}

/// [`norm`] and [`norm_statistics`] at once.
pub(crate) fn norm_forward(
    kind: Norm,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f64,
) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if own::takes(x) {
        return own::norm_forward(own_norm(kind), x, weight, bias, epsilon);
    }
    let statistics = norm_statistics(kind, x, epsilon)?;
    Ok((norm(kind, x, &statistics, weight, bias)?, statistics))
}

#[cfg(feature = "cuda")]
fn own_norm(kind: Norm) -> OwnNorm {
    match kind {
        Norm::Rms => OwnNorm::Rms,
        Norm::Layer => OwnNorm::Layer,
    }
}

/// The rows of `x` normed by their statistics, scaled by `weight` and shifted by `bias` (`[width]`).
pub(crate) fn norm(
    kind: Norm,
    x: &Tensor,
    statistics: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if own::takes(x) {
        return own::norm_apply(own_norm(kind), x, weight, bias, statistics);
    }
    let (rows, weight, bias) = (wide(x)?, wide(weight)?, bias.map(wide).transpose()?);
    if x.device().is_cpu() {
        cpu::norm::apply(kind, &rows, statistics, &weight, bias.as_ref())
    } else {
        composed::norm::apply(kind, &rows, statistics, &weight, bias.as_ref())
    }?
    .to_dtype(x.dtype())
}

/// From the gradient `dy` by the output of [`norm`]: the gradient by `x`, `residual` added, and those by
/// weight and, for LayerNorm, bias.
pub(crate) fn norm_backward(
    kind: Norm,
    x: &Tensor,
    statistics: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    residual: Option<&Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    #[cfg(feature = "cuda")]
    if own::takes(x) {
        let norm = own_norm(kind);
        let dx = own::norm_backward_input(norm, x, weight, statistics, dy, residual)?;
        return Ok((dx, own::norm_backward_weight(norm, x, statistics, dy)?));
    }
    let (rows, scales, dy, residual) = (wide(x)?, wide(weight)?, wide(dy)?, residual.map(wide).transpose()?);
    let (dx, parameters) = if x.device().is_cpu() {
        cpu::norm::backward(kind, &rows, statistics, &scales, &dy, residual.as_ref())
    } else {
        composed::norm::backward(kind, &rows, statistics, &scales, &dy, residual.as_ref())
    }?;
    let parameters = parameters.iter().map(|gradient| gradient.to_dtype(weight.dtype())).collect::<Result<_>>()?;
    Ok((dx.to_dtype(x.dtype())?, parameters))
}

/// `silu(gate) * up`
pub(crate) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if own::takes(gate) {
        return own::swiglu(&gate.contiguous()?, &up.contiguous()?);
    }
    let (wide_gate, up) = (wide(gate)?, wide(up)?);
    if gate.device().is_cpu() {
        cpu::activation::silu_mul(&wide_gate, &up)
    } else {
        composed::activation::silu_mul(&wide_gate, &up)
    }?
    .to_dtype(gate.dtype())
}

/// The gradients by gate and up.
pub(crate) fn silu_mul_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if own::takes(gate) {
        return own::swiglu_backward(&gate.contiguous()?, &up.contiguous()?, &dy.contiguous()?);
    }
    let (wide_gate, up, dy) = (wide(gate)?, wide(up)?, wide(dy)?);
    let (dgate, dup) = if gate.device().is_cpu() {
        cpu::activation::silu_mul_backward(&wide_gate, &up, &dy)
    } else {
        composed::activation::silu_mul_backward(&wide_gate, &up, &dy)
    }?;
    Ok((dgate.to_dtype(gate.dtype())?, dup.to_dtype(gate.dtype())?))
}

/// sqrt(2 / pi), of the GELU's tanh form.
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
/// The factor of the cube in it.
const GELU_CUBE: f64 = 0.044_715;

/// GELU in its tanh form (Hendrycks and Gimpel, 2016), GPT-2's `gelu_new`.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if own::takes(x) {
        return own::gelu(&x.contiguous()?);
    }
    let wide = wide(x)?;
    if x.device().is_cpu() { cpu::activation::gelu(&wide) } else { composed::activation::gelu(&wide) }?
        .to_dtype(x.dtype())
}

/// The gradient by x.
pub(crate) fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if own::takes(x) {
        return own::gelu_backward(&x.contiguous()?, &dy.contiguous()?);
    }
    let (wide, dy) = (wide(x)?, wide(dy)?);
    if x.device().is_cpu() {
        cpu::activation::gelu_backward(&wide, &dy)
    } else {
        composed::activation::gelu_backward(&wide, &dy)
    }?
    .to_dtype(x.dtype())
}

/// Heads of a query, key or value projection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) microbatch: usize,
    pub(crate) sequence: usize,
    /// Key and value heads.
    pub(crate) kv: usize,
    /// Query heads that share one of them; 1 for keys and values.
    pub(crate) group: usize,
    /// Width of a head.
    pub(crate) width: usize,
}

/// Cosines and sines of the angles by position: two of `[sequence, width / 2]`, in the wide type.
pub(crate) type Angles = (Tensor, Tensor);

/// A projection's output `[microbatch * sequence, kv * group * width]` as `[microbatch * kv, sequence * group,
/// width]`, scaled, and each pair `(x[i], x[i + width / 2])` turned by its angle where there are angles. The
/// rows of the queries that share a key head follow one another, so that one matrix product serves the group.
pub(crate) fn split_heads(x: &Tensor, heads: Heads, angles: Option<&Angles>, scale: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if own::takes(x) && (angles.is_some() || scale == 1.0) {
        let turned = turned(&x.contiguous()?, angles, scale, Direction::Forward)?;
        return composed::heads::split(&turned, heads, None, 1.0);
    }
    let wide = wide(x)?;
    if x.device().is_cpu() {
        cpu::heads::rearrange(&wide, heads, angles, Way::Split, scale)
    } else {
        composed::heads::split(&wide, heads, angles, scale)
    }?
    .to_dtype(x.dtype())
}

/// The transpose of [`split_heads`] as a linear map: what takes the gradient by its output to the gradient by
/// its input. With neither angles nor scale also its inverse.
pub(crate) fn merge_heads(x: &Tensor, heads: Heads, angles: Option<&Angles>, scale: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if own::takes(x) && (angles.is_some() || scale == 1.0) {
        let merged = composed::heads::merge(x, heads, None, 1.0)?;
        return turned(&merged, angles, scale, Direction::Backward);
    }
    let wide = wide(x)?;
    if x.device().is_cpu() {
        cpu::heads::rearrange(&wide, heads, angles, Way::Merge, scale)
    } else {
        composed::heads::merge(&wide, heads, angles, scale)
    }?
    .to_dtype(x.dtype())
}

/// Rows turned by their angles, and scaled by way of these, so that they are rounded once.
#[cfg(feature = "cuda")]
fn turned(x: &Tensor, angles: Option<&Angles>, scale: f64, direction: Direction) -> Result<Tensor> {
    let Some((cosines, sines)) = angles else { return Ok(x.clone()) };
    own::rope(x, &cosines.affine(scale, 0.0)?, &sines.affine(scale, 0.0)?, direction)
}

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
}

/// Of scores `[heads, rows, keys]` in the wide type: the probabilities, and the log of the sum of the
/// exponentials `[heads, rows]`. Each row must see a key.
pub(crate) fn attend(scores: &Tensor, span: Span) -> Result<(Tensor, Tensor)> {
    if scores.device().is_cpu() { cpu::softmax::attend(scores, span) } else { composed::softmax::attend(scores, span) }
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
    let (log_sum, mean) = (log_sum.contiguous()?, mean.contiguous()?);
    if scores.device().is_cpu() {
        cpu::softmax::attend_backward(scores, span, &log_sum, dprobabilities, &mean)
    } else {
        composed::softmax::attend_backward(scores, span, &log_sum, dprobabilities, &mean)
    }
}

/// The log of the sum of the exponentials of each row: `[rows, columns]` in the wide type to `[rows]`.
pub(crate) fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if own::takes(x) {
        return own::log_sum_exp(x);
    }
    if x.device().is_cpu() { cpu::softmax::log_sum_exp(x) } else { composed::softmax::log_sum_exp(x) }
}

/// The gradient of `scale` times the sum over rows of the cross-entropy, by a block of the logits
/// `[rows, columns]` whose first column is token `first`: `(softmax - one_hot(target)) * scale`.
///
/// `log_sum` `[rows]` is over the whole vocabulary; `targets` `[rows]`, u32; `scale` a scalar; all but the
/// targets in the wide type. The logits hold nothing of use afterwards: where there is an own kernel, the gradient
/// takes their place.
pub(crate) fn cross_entropy_backward(
    logits: &Tensor,
    log_sum: &Tensor,
    targets: &Tensor,
    first: usize,
    scale: &Tensor,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if own::takes(logits) {
        let gradient = logits.contiguous()?;
        own::cross_entropy_backward(&gradient, log_sum, targets, first, scale)?;
        return Ok(gradient);
    }
    if logits.device().is_cpu() {
        cpu::softmax::cross_entropy_backward(logits, log_sum, targets, first, scale)
    } else {
        composed::softmax::cross_entropy_backward(logits, log_sum, targets, first, scale)
    }
}

/// `[count, width]` with each of `rows` `[n, width]` added at its index (`[n]`, u32), in the rows' type.
pub(crate) fn add_rows(count: usize, indices: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let wide = wide(rows)?;
    if rows.device().is_cpu() {
        cpu::scatter::add_rows(count, indices, &wide)
    } else {
        composed::scatter::add_rows(count, indices, &wide)
    }?
    .to_dtype(rows.dtype())
}
