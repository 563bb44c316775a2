//! A projection with its weight in either of the two layouts that checkpoints use.

use candle_core::{Result, Tensor};

/// How a weight lies in its checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightLayout {
    /// `[out, in]`, as `torch.nn.Linear`.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D`.
    InOut,
}

/// `y = x·Wᵀ + b` over rows.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) layout: WeightLayout,
}

impl Linear {
    /// `[rows, in]` to `[rows, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match self.layout {
            WeightLayout::OutIn => x.matmul(&self.weight.t()?)?,
            WeightLayout::InOut => x.matmul(&self.weight)?,
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// The gradient by `x` from the gradient by `y`: `[rows, out]` to `[rows, in]`.
    pub(crate) fn backward_input(&self, dy: &Tensor) -> Result<Tensor> {
        match self.layout {
            WeightLayout::OutIn => dy.matmul(&self.weight),
            WeightLayout::InOut => dy.matmul(&self.weight.t()?),
        }
    }

    /// Appends the gradients by weight and bias, from `x` `[rows, in]` and the gradient by `y`
    /// `[rows, out]`.
    pub(crate) fn backward_weight(&self, x: &Tensor, dy: &Tensor, gradients: &mut Vec<Tensor>) -> Result<()> {
        gradients.push(match self.layout {
            WeightLayout::OutIn => dy.t()?.matmul(x)?,
            WeightLayout::InOut => x.t()?.matmul(dy)?,
        });
        if self.bias.is_some() {
            gradients.push(dy.sum(0)?);
        }
        Ok(())
    }

    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    pub(crate) fn slots(&mut self) -> impl Iterator<Item = &mut Tensor> {
        std::iter::once(&mut self.weight).chain(&mut self.bias)
    }
}
