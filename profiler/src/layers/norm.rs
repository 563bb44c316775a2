//! RMSNorm (Zhang and Sennrich, 2019) and LayerNorm (Ba, Kiros and Hinton, 2016).

use super::ops;
use candle_core::{Result, Tensor};
use optpipe_configs::model::Norm as Kind;

/// A normalisation of rows with its scale and, for LayerNorm, its shift.
///
/// Between forward and backward it needs its input and a few numbers a row, [`Norm::statistics`]:
/// the output is recomputed from the two where it is needed again ([`Norm::apply`]).
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) kind: Kind,
    pub(crate) epsilon: f64,
    /// `[width]`
    pub(crate) weight: Tensor,
    /// `[width]`; LayerNorm only.
    pub(crate) bias: Option<Tensor>,
}

impl Norm {
    /// Of `x` `[rows, width]`: `[rows, 1]`, one over the root mean square; for LayerNorm `[rows, 2]`,
    /// mean and one over the standard deviation. In f32, f64 for f64.
    pub(crate) fn statistics(&self, x: &Tensor) -> Result<Tensor> {
        ops::norm_statistics(self.kind, x, self.epsilon)
    }

    /// What [`Norm::apply`] and [`Norm::statistics`] give, at once.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        ops::norm_forward(self.kind, x, &self.weight, self.bias.as_ref(), self.epsilon)
    }

    /// The normed, scaled and shifted rows, in the type of `x`.
    pub(crate) fn apply(&self, x: &Tensor, statistics: &Tensor) -> Result<Tensor> {
        ops::norm(self.kind, x, statistics, &self.weight, self.bias.as_ref())
    }

    /// The gradient by `x`, with `residual` added to it where there is one, and the gradients by the
    /// parameters in their order.
    ///
    /// Both come from one pass over the rows, since the parameters' gradients are sums over what the
    /// input's gradient reads anyway; to make them in backward_weight the gradient by the output would
    /// have to be kept: as many bytes as the input.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        statistics: &Tensor,
        dy: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        ops::norm_backward(self.kind, x, statistics, &self.weight, dy, residual)
    }

    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    pub(crate) fn slots(&mut self) -> impl Iterator<Item = &mut Tensor> {
        std::iter::once(&mut self.weight).chain(&mut self.bias)
    }
}
