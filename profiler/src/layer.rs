//! What every layer can do: forward, backward_input and backward_weight as three separate functions,
//! with everything that is kept between them in the open.

use candle_core::{Result, Storage, Tensor};
use std::collections::HashSet;

/// A tensor that a forward keeps for the backward.
#[derive(Debug, Clone)]
pub struct SavedTensor {
    /// The tensor: contiguous, and it fills its storage. That storage may be the layer's input, and so be
    /// held by others too; it is never a parameter's.
    pub tensor: Tensor,
    /// Whether it may go to the host between forward and backward_input.
    pub offloadable: bool,
}

impl SavedTensor {
    /// One that may go to the host.
    pub fn offloadable(tensor: Tensor) -> Self {
        Self { tensor, offloadable: true }
    }

    /// One that stays: too small to be worth a copy.
    pub fn resident(tensor: Tensor) -> Self {
        Self { tensor, offloadable: false }
    }
}

/// What a forward keeps for backward_input, in an order that the layer fixes.
#[derive(Debug, Clone, Default)]
pub struct Saved(pub Vec<SavedTensor>);

impl Saved {
    /// Bytes in all; storage that several tensors share counts once.
    pub fn bytes(&self) -> u64 {
        distinct_bytes(self.0.iter().map(|saved| &saved.tensor))
    }

    /// Bytes of the tensors that may go to the host, counted in the same way.
    pub fn offloadable_bytes(&self) -> u64 {
        distinct_bytes(self.0.iter().filter(|saved| saved.offloadable).map(|saved| &saved.tensor))
    }
}

/// What backward_input keeps for backward_weight, in an order that the layer fixes: tensors of the
/// forward, gradients that arise in the backward.
#[derive(Debug, Clone, Default)]
pub struct WeightContext(pub Vec<Tensor>);

impl WeightContext {
    /// Bytes in all; storage that several tensors share counts once.
    pub fn bytes(&self) -> u64 {
        distinct_bytes(&self.0)
    }
}

/// What tells a tensor's storage from others that live at the same time: equal for two tensors that share it.
pub fn storage_id(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    let storage: &Storage = &storage;
    std::ptr::from_ref(storage).addr()
}

/// Bytes of tensors that fill their storage each, those that share it counted once.
fn distinct_bytes<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> u64 {
    let mut seen = HashSet::new();
    tensors
        .into_iter()
        .filter(|tensor| seen.insert(storage_id(tensor)))
        .map(|tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64)
        .sum()
}

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
/// detached tensors: nothing else is kept between the calls, so that a saved tensor may be replaced by
/// an equal one (a copy that went to the host and came back).
pub trait Layer: Send + Sync {
    /// Names of the parameters, as in a Hugging Face checkpoint without the layer's prefix.
    fn parameter_names(&self) -> Vec<&'static str>;

    /// The parameters, in the order of [`Layer::parameter_names`].
    fn parameters(&self) -> Vec<&Tensor>;

    /// The places of the parameters, in the same order.
    fn parameter_slots(&mut self) -> Vec<&mut Tensor>;

    /// Replaces the parameters (the optimizer step); same order and shapes.
    ///
    /// # Panics
    /// If there are more or fewer than the layer has.
    fn set_parameters(&mut self, parameters: Vec<Tensor>) {
        let slots = self.parameter_slots();
        assert_eq!(slots.len(), parameters.len(), "as many parameters as the layer has");
        for (slot, parameter) in slots.into_iter().zip(parameters) {
            *slot = parameter.detach();
        }
    }

    /// The parameter that is the same matrix as one at the model's other end: the token matrix of an
    /// embedding and the projection of a head that are tied. Each layer has it as a tensor of its own and
    /// gives the gradient of its own use; who trains the model adds the two.
    fn tied_parameter(&self) -> Option<usize> {
        None
    }

    /// The output and what to keep. An embedding ignores `input` (it is a scalar 0 there) and reads
    /// the microbatch's tokens; a head returns the mean loss over the microbatch, a scalar in f32 (f64 in a
    /// model of f64).
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
