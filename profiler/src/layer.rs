//! What every layer can do: forward, backward_input and backward_weight as three separate functions,
//! with everything that is kept between them in the open.

use candle_core::{Result, Tensor};

/// A tensor that a forward keeps for the backward.
#[derive(Debug, Clone)]
pub struct SavedTensor {
    /// The tensor; it may share storage with another saved tensor or with a parameter.
    pub tensor: Tensor,
    /// Whether it may go to the host between forward and backward_input.
    pub offloadable: bool,
}

/// What a forward keeps for backward_input, in an order that the layer fixes.
#[derive(Debug, Clone, Default)]
pub struct Saved(pub Vec<SavedTensor>);

/// What backward_input keeps for backward_weight, in an order that the layer fixes: tensors of the
/// forward, gradients that arise in the backward.
#[derive(Debug, Clone, Default)]
pub struct WeightContext(pub Vec<Tensor>);

/// One microbatch's tokens.
#[derive(Debug, Clone)]
pub struct Microbatch {
    /// `[microbatch_size, sequence_length]`, u32.
    pub tokens: Tensor,
    /// The token to predict at each position: `[microbatch_size, sequence_length]`, u32.
    pub targets: Tensor,
}

/// A layer with its parameters. Shapes: hidden states are `[microbatch_size, sequence_length,
/// hidden]`; parameters keep the shapes of Hugging Face checkpoints' matrices.
///
/// For an input `x` and the gradient `g` of the loss by the output, calling the three functions in
/// order yields the gradient by `x` and by each parameter. Saved tensors and context are plain
/// detached tensors: nothing else is kept between the calls.
pub trait Layer: Send + Sync {
    /// Names of the parameters, as in a Hugging Face checkpoint without the layer's prefix.
    fn parameter_names(&self) -> Vec<&'static str>;

    /// The parameters, in the order of [`Layer::parameter_names`].
    fn parameters(&self) -> Vec<&Tensor>;

    /// Replaces the parameters (the optimizer step); same order and shapes.
    fn set_parameters(&mut self, parameters: Vec<Tensor>);

    /// The output and what to keep. An embedding ignores `input` (it is a scalar 0 there) and reads
    /// the microbatch's tokens; a head returns the mean loss over the microbatch, a scalar.
    fn forward(&self, input: &Tensor, microbatch: &Microbatch) -> Result<(Tensor, Saved)>;

    /// The gradient by the input and what backward_weight needs. `gradient` has the shape of the
    /// output. An embedding returns `None`: tokens have no gradient.
    fn backward_input(
        &self,
        saved: Saved,
        gradient: &Tensor,
        microbatch: &Microbatch,
    ) -> Result<(Option<Tensor>, WeightContext)>;

    /// The gradient of each parameter, in order.
    fn backward_weight(&self, context: WeightContext, microbatch: &Microbatch) -> Result<Vec<Tensor>>;
}
