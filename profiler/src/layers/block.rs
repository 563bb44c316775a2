//! A transformer block: layers one after another.

use super::attention::Attention;
use super::mlp::Mlp;
use crate::layer::{Layer, Microbatch, Saved, WeightContext};
use candle_core::{Result, Tensor, bail};

/// `y = x + attention(norm1(x))`, then `y + mlp(norm2(y))`.
///
/// What it saves and what its backward_weight needs are those of the attention, then those of the MLP. With
/// one head width for queries, keys and values and `d = hidden`, `i = intermediate`, a token keeps `6 d + 2 i`
/// numbers from forward to backward_input and `8 d + 2 i` from there to backward_weight, a few by row aside.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention: Attention,
    pub(crate) mlp: Mlp,
}

impl Layer for Block {
    fn parameter_names(&self) -> Vec<&'static str> {
        [self.attention.parameter_names(), self.mlp.parameter_names()].concat()
    }

    fn parameters(&self) -> Vec<&Tensor> {
        [self.attention.parameters(), self.mlp.parameters()].concat()
    }

    fn parameter_slots(&mut self) -> Vec<&mut Tensor> {
        let mut slots = self.attention.parameter_slots();
        slots.extend(self.mlp.parameter_slots());
        slots
    }

    fn forward(&self, input: &Tensor, microbatch: &Microbatch) -> Result<(Tensor, Saved)> {
        let (middle, mut saved) = self.attention.forward(input, microbatch)?;
        let (output, second) = self.mlp.forward(&middle, microbatch)?;
        saved.0.extend(second.0);
        Ok((output, saved))
    }

    fn backward_input(
        &self,
        mut saved: Saved,
        gradient: &Tensor,
        microbatch: &Microbatch,
    ) -> Result<(Option<Tensor>, WeightContext)> {
        let first = self.attention.saved_tensors();
        if saved.0.len() < first {
            bail!("a block's backward_input got {} tensors, its attention alone saved {first}", saved.0.len());
        }
        let second = Saved(saved.0.split_off(first));
        let (middle, second) = self.mlp.backward_input(second, gradient, microbatch)?;
        let Some(middle) = middle else { bail!("an MLP has a gradient by its input") };
        let (dx, mut context) = self.attention.backward_input(saved, &middle, microbatch)?;
        context.0.extend(second.0);
        Ok((dx, context))
    }

    fn backward_weight(&self, mut context: WeightContext, microbatch: &Microbatch) -> Result<Vec<Tensor>> {
        let first = self.attention.context_tensors();
        if context.0.len() < first {
            bail!("a block's backward_weight got {} tensors, its attention alone kept {first}", context.0.len());
        }
        let second = WeightContext(context.0.split_off(first));
        let mut gradients = self.attention.backward_weight(context, microbatch)?;
        gradients.extend(self.mlp.backward_weight(second, microbatch)?);
        Ok(gradients)
    }
}
