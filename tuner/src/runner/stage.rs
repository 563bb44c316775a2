//! A stage's layers at work.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};
use optpipe_configs::job::Optimizer;
use optpipe_configs::model::Model;
use optpipe_profiler::layer::{Layer, Microbatch, Saved, WeightContext, storage_id};
use optpipe_profiler::model::{BuildOptions, build_layer};

use super::optimizer::{Parameter, Update};

/// A matrix that embedding and head share, on two stages: each keeps a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TiedEnd {
    /// The embedding's.
    Embedding,
    /// The head's.
    Head,
}

/// Contiguous layers of a model.
pub(super) struct Stage {
    first_layer: usize,
    layers: Vec<Box<dyn Layer>>,
    parameters: Vec<Parameter>,
    /// For each layer, for each of its parameters: the place in `parameters`. A matrix that two layers
    /// of this stage share stands there once.
    places: Vec<Vec<usize>>,
    /// The parameter whose gradient is summed with that of another stage.
    tied: Option<(TiedEnd, usize)>,
}

/// A parameter's gradient, for those who check it.
#[derive(Debug, Clone)]
pub struct NamedGradient {
    /// Layer of the model: 0 is the embedding.
    pub layer: usize,
    /// The layer's name of the parameter.
    pub name: &'static str,
    /// The gradient of the mean loss over the step's microbatches, f32; a tied matrix has the sum of both
    /// its uses.
    pub gradient: Tensor,
}

impl Stage {
    /// Builds the layers `range` of a model (0 is the embedding, the last the head).
    pub(super) fn build(
        model: &Model,
        range: Range<usize>,
        options: &BuildOptions,
        optimizer: Optimizer,
    ) -> Result<Stage> {
        let first_layer = range.start;
        let mut layers = range.map(|index| build_layer(model, index, options)).collect::<Result<Vec<_>>>()?;
        let ends: Vec<(usize, usize)> =
            layers.iter().enumerate().filter_map(|(i, layer)| Some((i, layer.tied_parameter()?))).collect();
        let shared = match ends[..] {
            [(embedding, of), (head, to)] => {
                let matrix = layers[embedding].parameters()[of].clone();
                *layers[head].parameter_slots()[to] = matrix;
                Some(((embedding, of), (head, to)))
            }
            _ => None,
        };
        let mut parameters = Vec::new();
        let mut places: Vec<Vec<usize>> = Vec::with_capacity(layers.len());
        for (i, layer) in layers.iter_mut().enumerate() {
            let mut list = Vec::new();
            for (k, slot) in layer.parameter_slots().into_iter().enumerate() {
                if let Some(((embedding, of), head)) = shared
                    && head == (i, k)
                {
                    list.push(places[embedding][of]);
                    continue;
                }
                // Updates in place need every number in a place of its own.
                *slot = slot.contiguous()?.detach();
                list.push(parameters.len());
                parameters.push(Parameter::new(slot.clone(), optimizer)?);
            }
            places.push(list);
        }
        let tied = match ends[..] {
            [(layer, parameter)] => {
                let end = if first_layer + layer == 0 { TiedEnd::Embedding } else { TiedEnd::Head };
                Some((end, places[layer][parameter]))
            }
            _ => None,
        };
        Ok(Stage { first_layer, layers, parameters, places, tied })
    }

    /// Bytes of weights, gradients and optimizer states.
    pub(super) fn static_bytes(&self) -> u64 {
        self.parameters.iter().map(Parameter::bytes).sum()
    }

    /// The output and what each layer saved.
    pub(super) fn forward(&self, input: Tensor, microbatch: &Microbatch) -> Result<(Tensor, Vec<Saved>)> {
        let mut x = input;
        let mut saved = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let (output, kept) = layer.forward(&x, microbatch)?;
            x = output;
            saved.push(kept);
        }
        Ok((x, saved))
    }

    /// The gradient by the input, `None` on the first stage, and each layer's context, first layer first.
    pub(super) fn backward_input(
        &self,
        mut saved: Vec<Saved>,
        gradient: Tensor,
        microbatch: &Microbatch,
    ) -> Result<(Option<Tensor>, Vec<WeightContext>)> {
        let mut gradient = Some(gradient);
        let mut contexts = Vec::with_capacity(self.layers.len());
        for layer in self.layers.iter().rev() {
            let (Some(kept), Some(by_output)) = (saved.pop(), gradient.take()) else {
                bail!("a layer without saved tensors or gradient");
            };
            let (by_input, context) = layer.backward_input(kept, &by_output, microbatch)?;
            gradient = by_input;
            contexts.push(context);
        }
        contexts.reverse();
        Ok((gradient, contexts))
    }

    /// Adds the gradients of the parameters.
    pub(super) fn backward_weight(&mut self, contexts: Vec<WeightContext>, microbatch: &Microbatch) -> Result<()> {
        for ((layer, context), places) in self.layers.iter().zip(contexts).zip(&self.places) {
            let gradients = layer.backward_weight(context, microbatch)?;
            if gradients.len() != places.len() {
                bail!("{} gradients for {} parameters", gradients.len(), places.len());
            }
            for (gradient, &place) in gradients.iter().zip(places) {
                self.parameters[place].accumulate(gradient)?;
            }
        }
        Ok(())
    }

    /// The gradient that another stage needs: that of a matrix of which both keep a copy.
    pub(super) fn tied(&self) -> Option<(TiedEnd, &Tensor)> {
        self.tied.map(|(end, place)| (end, self.parameters[place].gradient()))
    }

    /// The optimizer step; `tied` is the sum of both stages' gradients of the shared matrix.
    pub(super) fn update(&mut self, update: Update, tied: Option<&Tensor>) -> Result<()> {
        let own = self.tied.map(|(_, place)| place);
        for (place, parameter) in self.parameters.iter_mut().enumerate() {
            parameter.update(update, tied.filter(|_| own == Some(place)))?;
        }
        Ok(())
    }

    /// Copies of the step's gradients.
    pub(super) fn gradients(&self, tied: Option<&Tensor>) -> Result<Vec<NamedGradient>> {
        let own = self.tied.map(|(_, place)| place);
        let mut list = Vec::new();
        for (i, (layer, places)) in self.layers.iter().zip(&self.places).enumerate() {
            for (name, &place) in layer.parameter_names().into_iter().zip(places) {
                let gradient = tied.filter(|_| own == Some(place)).unwrap_or_else(|| self.parameters[place].gradient());
                list.push(NamedGradient { layer: self.first_layer + i, name, gradient: gradient.copy()? });
            }
        }
        Ok(list)
    }
}

/// Tells tensors' bytes with storage that several share counted once; keeps its memory for the next
/// count.
#[derive(Debug, Default)]
pub(super) struct DistinctBytes {
    seen: Vec<(usize, u64)>,
}

impl DistinctBytes {
    /// Of tensors that fill their storage.
    pub(super) fn of<'a>(&mut self, tensors: impl Iterator<Item = &'a Tensor>) -> u64 {
        self.seen.clear();
        self.seen.extend(tensors.map(|tensor| (storage_id(tensor), tensor_bytes(tensor))));
        self.seen.sort_unstable();
        self.seen.dedup_by_key(|(id, _)| *id);
        self.seen.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Bytes of a tensor's numbers.
pub(super) fn tensor_bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

/// A scalar, on the device of the layers.
pub(super) fn scalar(value: f64, options: &BuildOptions) -> Result<Tensor> {
    Tensor::full(value as f32, (), &options.device)?.to_dtype(DType::F32)
}
