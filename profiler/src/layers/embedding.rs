//! Tokens to hidden states.

use super::TensorList;
use super::ops::add_rows;
use crate::layer::{Layer, Microbatch, Saved, WeightContext};
use candle_core::{Result, Tensor, bail};

/// Token embedding, plus learned positions (GPT-2).
///
/// It saves nothing: its backward_weight needs the tokens, which the microbatch holds, and the gradient by
/// its output.
#[derive(Debug)]
pub(crate) struct Embedding {
    pub(crate) names: Vec<&'static str>,
    /// `[vocabulary, hidden]`
    pub(crate) tokens: Tensor,
    /// `[max_positions, hidden]`
    pub(crate) positions: Option<Tensor>,
    /// Whether the head projects with the same matrix.
    pub(crate) tied: bool,
}

impl Layer for Embedding {
    fn parameter_names(&self) -> Vec<&'static str> {
        self.names.clone()
    }

    fn parameters(&self) -> Vec<&Tensor> {
        std::iter::once(&self.tokens).chain(&self.positions).collect()
    }

    fn parameter_slots(&mut self) -> Vec<&mut Tensor> {
        std::iter::once(&mut self.tokens).chain(&mut self.positions).collect()
    }

    fn tied_parameter(&self) -> Option<usize> {
        self.tied.then_some(0)
    }

    fn forward(&self, _: &Tensor, microbatch: &Microbatch) -> Result<(Tensor, Saved)> {
        let (count, sequence) = microbatch.tokens.dims2()?;
        let hidden = self.tokens.dim(1)?;
        let output = self.tokens.index_select(&microbatch.tokens.flatten_all()?, 0)?;
        let output = output.reshape((count, sequence, hidden))?;
        let output = match &self.positions {
            Some(positions) => {
                let longest = positions.dim(0)?;
                if sequence > longest {
                    bail!("a sequence of {sequence} tokens, but the model has {longest} positions");
                }
                output.broadcast_add(&positions.narrow(0, 0, sequence)?)?
            }
            None => output,
        };
        Ok((output, Saved::default()))
    }

    fn backward_input(&self, _: Saved, gradient: &Tensor, _: &Microbatch) -> Result<(Option<Tensor>, WeightContext)> {
        Ok((None, WeightContext(vec![gradient.contiguous()?])))
    }

    fn backward_weight(&self, context: WeightContext, microbatch: &Microbatch) -> Result<Vec<Tensor>> {
        let mut context = TensorList::of_context(context);
        let [gradient] = context.take()?;
        context.finish()?;
        let (_, sequence, hidden) = gradient.dims3()?;
        let rows = gradient.reshape(((), hidden))?;
        let mut gradients = vec![add_rows(self.tokens.dim(0)?, &microbatch.tokens.flatten_all()?, &rows)?];
        if let Some(positions) = &self.positions {
            let sum = if gradient.dim(0)? == 1 { gradient.squeeze(0)? } else { gradient.sum(0)? };
            gradients.push(sum.pad_with_zeros(0, 0, positions.dim(0)? - sequence)?);
        }
        Ok(gradients)
    }
}
