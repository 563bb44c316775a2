//! The last layer: final norm, projection to the vocabulary, mean cross-entropy.

use super::norm::Norm;
use super::ops::{self, wide, wide_type};
use super::{TensorList, flatten};
use crate::layer::{Layer, Microbatch, Saved, SavedTensor, WeightContext};
use candle_core::{D, Device, Result, Tensor};

/// Logits made at a time on a processor: 4 MiB in f32, so that they stay in a cache between the product that
/// makes them and the one that uses them.
const BLOCK_LOGITS: usize = 1 << 20;
/// The same on other devices: 256 MiB, so that each product is large enough to run at full speed.
const DEVICE_BLOCK_LOGITS: usize = 1 << 26;

/// Logits made at a time on a device.
pub(crate) fn block_logits(device: &Device) -> usize {
    if device.is_cpu() { BLOCK_LOGITS } else { DEVICE_BLOCK_LOGITS }
}

/// Final norm, projection and loss.
///
/// Neither logits nor probabilities are kept or held as a whole: the projection runs over blocks of the
/// vocabulary (so that each row of its matrix is read once, and each row of its gradient written once), and
/// the log-sum-exp of a token's logits is all that is kept of them (Wijmans et al., Cut Your Losses, 2024).
/// backward_input and backward_weight each make the logits again: one product of three on the way to two
/// gradients. Handing the gradient by the logits from one to the other would save one product of four,
/// and would keep `vocabulary` numbers a token in between, a hundred times what is kept now.
///
/// | kept for | tensors, by token |
/// | --- | --- |
/// | backward_input | input `hidden`, statistics of the norm, log-sum-exp 1 |
/// | backward_weight | the same, the gradient by the loss and those by the norm's parameters |
///
/// The loss and its gradient are f32, f64 in a model of f64.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) names: Vec<&'static str>,
    pub(crate) norm: Norm,
    /// `[vocabulary, hidden]`
    pub(crate) projection: Tensor,
    /// Whether the projection is the embedding's matrix.
    pub(crate) tied: bool,
    pub(crate) block_logits: usize,
}

impl Head {
    /// The blocks of the vocabulary for so many tokens: the first token and the rows of the projection's
    /// matrix.
    fn blocks(&self, rows: usize) -> Result<Vec<(usize, Tensor)>> {
        let vocabulary = self.projection.dim(0)?;
        let size = (self.block_logits / rows.max(1)).clamp(1, vocabulary.max(1));
        (0..vocabulary)
            .step_by(size)
            .map(|first| Ok((first, self.projection.narrow(0, first, size.min(vocabulary - first))?)))
            .collect()
    }

    /// The logits of a block in the wide type.
    fn logits(&self, normed: &Tensor, block: &Tensor) -> Result<Tensor> {
        wide(&normed.matmul(&operand(block)?.t()?)?)
    }

    /// `gradient / tokens`: what the sum of the tokens' losses is scaled by.
    fn scale(gradient: &Tensor, rows: usize) -> Result<Tensor> {
        wide(&gradient.reshape(())?)? / rows as f64
    }
}

/// The tensor as matrix products take it: wide on the CPU, which has no products of its own in bf16 and
/// would widen all of what a view's storage holds; as it is elsewhere.
fn operand(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { wide(x) } else { Ok(x.clone()) }
}

impl Layer for Head {
    fn parameter_names(&self) -> Vec<&'static str> {
        self.names.clone()
    }

    fn parameters(&self) -> Vec<&Tensor> {
        self.norm.parameters().chain([&self.projection]).collect()
    }

    fn parameter_slots(&mut self) -> Vec<&mut Tensor> {
        self.norm.slots().chain([&mut self.projection]).collect()
    }

    fn tied_parameter(&self) -> Option<usize> {
        self.tied.then(|| self.norm.parameters().count())
    }

    fn forward(&self, input: &Tensor, microbatch: &Microbatch) -> Result<(Tensor, Saved)> {
        let x = flatten(input)?;
        let rows = x.dim(0)?;
        let (normed, statistics) = self.norm.forward(&x)?;
        let normed = operand(&normed)?;
        let mut parts = Vec::new();
        for (_, block) in self.blocks(rows)? {
            parts.push(ops::log_sum_exp(&self.logits(&normed, &block)?)?);
        }
        let log_sum = Tensor::stack(&parts, 1)?.log_sum_exp(1)?;
        let targets = self.projection.index_select(&microbatch.targets.flatten_all()?, 0)?;
        let hits = (wide(&normed)? * wide(&targets)?)?.sum(D::Minus1)?;
        let loss = (&log_sum - hits)?.mean_all()?;
        let small = [statistics, log_sum].map(SavedTensor::resident);
        Ok((loss, Saved(std::iter::once(SavedTensor::offloadable(x)).chain(small).collect())))
    }

    fn backward_input(
        &self,
        saved: Saved,
        gradient: &Tensor,
        microbatch: &Microbatch,
    ) -> Result<(Option<Tensor>, WeightContext)> {
        let mut saved = TensorList::of_saved(saved);
        let [x, statistics, log_sum] = saved.take()?;
        saved.finish()?;
        let rows = x.dim(0)?;
        let targets = microbatch.targets.flatten_all()?;
        let scale = Self::scale(gradient, rows)?;
        let normed = operand(&self.norm.apply(&x, &statistics)?)?;
        let mut dnormed = Tensor::zeros(x.shape(), wide_type(x.dtype()), x.device())?;
        for (first, block) in self.blocks(rows)? {
            let logits = self.logits(&normed, &block)?;
            let dlogits = ops::cross_entropy_backward(&logits, &log_sum, &targets, first, &scale)?;
            let block = operand(&block)?;
            dnormed = (dnormed + wide(&dlogits.to_dtype(block.dtype())?.matmul(&block)?)?)?;
        }
        let (dx, parameters) = self.norm.backward(&x, &statistics, &dnormed.to_dtype(x.dtype())?, None)?;
        let (count, sequence) = microbatch.targets.dims2()?;
        let dx = dx.reshape((count, sequence, ()))?;
        let context = [x, statistics, log_sum, gradient.clone()].into_iter().chain(parameters).collect();
        Ok((Some(dx), WeightContext(context)))
    }

    fn backward_weight(&self, context: WeightContext, microbatch: &Microbatch) -> Result<Vec<Tensor>> {
        let mut context = TensorList::of_context(context);
        let [x, statistics, log_sum, gradient] = context.take()?;
        let mut gradients = context.take_some(self.norm.parameters().count())?;
        context.finish()?;
        let rows = x.dim(0)?;
        let targets = microbatch.targets.flatten_all()?;
        let scale = Self::scale(&gradient, rows)?;
        let normed = operand(&self.norm.apply(&x, &statistics)?)?;
        let mut parts = Vec::new();
        for (first, block) in self.blocks(rows)? {
            let logits = self.logits(&normed, &block)?;
            let dlogits = ops::cross_entropy_backward(&logits, &log_sum, &targets, first, &scale)?;
            parts.push(dlogits.to_dtype(normed.dtype())?.t()?.matmul(&normed)?.to_dtype(x.dtype())?);
        }
        gradients.push(Tensor::cat(&parts, 0)?);
        Ok(gradients)
    }
}
