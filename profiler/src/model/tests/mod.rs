#![allow(clippy::unwrap_used, clippy::expect_used)]

mod gradients;
mod memory;
mod reference;
mod weights;

use super::*;
use crate::layer::Microbatch;

pub(super) const FAMILIES: [Family; 5] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3, Family::Gpt2];

/// A model of the family in small, with what is peculiar to it.
pub(super) fn tiny(family: Family) -> Model {
    let gpt2 = family == Family::Gpt2;
    Model {
        name: format!("tiny {family:?}"),
        family,
        hidden: 24,
        layers: 2,
        heads: 4,
        kv_heads: if gpt2 { 4 } else { 2 },
        head_dim: if family == Family::Qwen3 { 8 } else { 6 },
        intermediate: 40,
        vocabulary: 37,
        max_positions: 16,
        norm: if gpt2 { NormKind::Layer } else { NormKind::Rms },
        norm_epsilon: 1e-5,
        mlp: if gpt2 { MlpKind::DenseGelu } else { MlpKind::GatedSilu },
        rope_theta: (!gpt2).then_some(100.0),
        rope_scaling: (family == Family::Llama).then_some(optpipe_configs::model::RopeScaling {
            factor: 4.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_positions: 64,
        }),
        qkv_bias: gpt2 || family == Family::Qwen2,
        output_bias: gpt2,
        mlp_bias: gpt2,
        qk_norm: family == Family::Qwen3,
        tied_embeddings: gpt2 || family == Family::Qwen2,
        sliding_window: (family == Family::Mistral).then_some(5),
    }
}

pub(super) fn options(dtype: DType) -> BuildOptions {
    BuildOptions { dtype, seed: 7, device: Device::Cpu }
}

/// Normal numbers, deterministic.
pub(super) fn random(seed: u64, shape: &[usize], deviation: f64, dtype: DType) -> Tensor {
    let options = BuildOptions { dtype: DType::F32, seed, device: Device::Cpu };
    let count = shape.iter().product();
    let values = Parameters { options: &options, layer: 1 << 40, next: 0 }.normal(1, count).unwrap();
    (values * (deviation / DEVIATION)).unwrap().reshape(shape).unwrap().to_dtype(dtype).unwrap()
}

/// Gives every parameter, scales and shifts too, a value that a gradient can go wrong on.
pub(super) fn scramble(layer: &mut dyn Layer, seed: u64) {
    let names = layer.parameter_names();
    for (index, (slot, name)) in layer.parameter_slots().into_iter().zip(names).enumerate() {
        let noise = random(seed + index as u64, slot.dims(), 0.3, slot.dtype());
        let is_scale = name.contains("norm") || name.contains("ln_");
        *slot = if is_scale && name.ends_with("weight") { (noise + 1.0).unwrap() } else { noise };
    }
}

pub(super) fn microbatch(model: &Model, size: usize, sequence: usize) -> Microbatch {
    let mut rng = Pcg64::seed_from_u64(3);
    let mut tokens = || {
        let tokens = (0..size * sequence).map(|_| rng.random_range(0..model.vocabulary as u32)).collect();
        Tensor::from_vec(tokens, (size, sequence), &Device::Cpu).unwrap()
    };
    Microbatch { tokens: tokens(), targets: tokens() }
}

/// Embedding, first block and head with scrambled weights, and blocks of queries and of the vocabulary
/// smaller than what is there.
pub(super) fn small_layers(model: &Model, dtype: DType, query_block: usize) -> [Box<dyn Layer>; 3] {
    let options = options(dtype);
    let at = |layer| Parameters { options: &options, layer, next: 0 };
    let mut embedding = embedding(model, at(0)).unwrap();
    let mut block = block(model, at(1)).unwrap();
    block.attention.query_block = query_block;
    let mut head = head(model, at(2)).unwrap();
    head.block_logits = 200;
    scramble(&mut embedding, 100);
    scramble(&mut block, 200);
    scramble(&mut head, 300);
    [Box::new(embedding), Box::new(block), Box::new(head)]
}

/// Output, gradient by the input and gradients by the parameters.
pub(super) fn run(
    layer: &dyn Layer,
    input: &Tensor,
    gradient: &Tensor,
    batch: &Microbatch,
) -> (Tensor, Option<Tensor>, Vec<Tensor>) {
    let (output, saved) = layer.forward(input, batch).unwrap();
    let (dx, context) = layer.backward_input(saved, gradient, batch).unwrap();
    (output, dx, layer.backward_weight(context, batch).unwrap())
}

/// The largest difference, by the largest of the expected numbers.
pub(super) fn relative_error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims());
    let largest = |x: &Tensor| {
        let values = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(values.iter().all(|value| value.is_finite()));
        values.into_iter().fold(0.0, |largest: f64, value| largest.max(value.abs()))
    };
    let expected_largest = largest(expected);
    assert!(expected_largest > 0.0, "a gradient of zeros shows nothing");
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    largest(&(wide(got) - wide(expected)).unwrap()) / expected_largest
}
