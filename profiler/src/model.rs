//! A model's layers with random weights.

use crate::layer::Layer;
use crate::layers::{
    Attention, Block, Embedding, Head, HeadNorms, Linear, Mlp, MlpInto, Norm, Projection, QUERY_BLOCK, Rotary,
    WeightLayout, block_logits,
};
use candle_core::{DType, Device, Result, Tensor, bail};
use optpipe_configs::model::{Family, Mlp as MlpKind, Model, Norm as NormKind};
use optpipe_kernels::cpu::cores;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use std::thread;

/// Standard deviation of the weights at the start, GPT-2's and most of its successors'.
const DEVIATION: f64 = 0.02;

/// How to make the layers.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Number format of parameters and hidden states: f32, bf16, or f64 for checks.
    pub dtype: DType,
    /// Decides the weights.
    pub seed: u64,
    /// Where they live.
    pub device: Device,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self { dtype: DType::F32, seed: 0, device: Device::Cpu }
    }
}

/// Number of layers of a model: embedding, blocks, head.
pub fn layer_count(model: &Model) -> usize {
    model.layers + 2
}

/// All layers in order: embedding, blocks, head.
///
/// # Errors
/// Those of [`build_layer`].
pub fn build(model: &Model, options: &BuildOptions) -> Result<Vec<Box<dyn Layer>>> {
    (0..layer_count(model)).map(|index| build_layer(model, index, options)).collect()
}

/// Layer `index` of [`build`]'s: 0 is the embedding, `layers + 1` the head, between them the blocks.
///
/// Weights are normal with deviation 0.02, shifts 0, scales 1. A weight depends on the seed, the index and
/// its place among the layer's parameters alone, so that a stage that builds only its own layers has the
/// weights of the whole model's; a tied head has the embedding's matrix.
///
/// # Errors
/// An index out of range, a model whose heads do not divide, an odd head width under rotary embeddings, or no
/// memory on the device.
pub fn build_layer(model: &Model, index: usize, options: &BuildOptions) -> Result<Box<dyn Layer>> {
    let parameters = Parameters { options, layer: index as u64, next: 0 };
    match index {
        0 => Ok(Box::new(embedding(model, parameters)?)),
        _ if index <= model.layers => Ok(Box::new(block(model, parameters)?)),
        _ if index == model.layers + 1 => Ok(Box::new(head(model, parameters)?)),
        _ => bail!("{} has layers 0 to {}, asked for {index}", model.name, model.layers + 1),
    }
}

/// Makes a layer's parameters in their order.
struct Parameters<'a> {
    options: &'a BuildOptions,
    layer: u64,
    next: u64,
}

impl Parameters<'_> {
    fn normal(&mut self, rows: usize, columns: usize) -> Result<Tensor> {
        let key = [self.options.seed, self.layer, self.next].into_iter().fold(0, |key, part| mix(key ^ mix(part)));
        self.next += 1;
        // On the CPU each device's layers are built by a thread of its own already.
        let threads = if self.options.device.is_cpu() { 1 } else { cores() };
        let values = normal_numbers(key, rows * columns, threads)?;
        Tensor::from_vec(values, (rows, columns), &self.options.device)?.to_dtype(self.options.dtype)
    }

    fn zeros(&mut self, width: usize) -> Result<Tensor> {
        self.next += 1;
        Tensor::zeros(width, self.options.dtype, &self.options.device)
    }

    fn ones(&mut self, width: usize) -> Result<Tensor> {
        self.next += 1;
        Tensor::ones(width, self.options.dtype, &self.options.device)
    }

    fn linear(&mut self, input: usize, output: usize, bias: bool, layout: WeightLayout) -> Result<Linear> {
        let weight = match layout {
            WeightLayout::OutIn => self.normal(output, input)?,
            WeightLayout::InOut => self.normal(input, output)?,
        };
        Ok(Linear { weight, bias: bias.then(|| self.zeros(output)).transpose()?, layout })
    }

    fn norm(&mut self, kind: NormKind, epsilon: f64, width: usize) -> Result<Norm> {
        let weight = self.ones(width)?;
        let bias = (kind == NormKind::Layer).then(|| self.zeros(width)).transpose()?;
        Ok(Norm { kind, epsilon, weight, bias })
    }
}

/// Normal numbers, drawn by several threads; the same ones whatever their number.
fn normal_numbers(key: u64, count: usize, threads: usize) -> Result<Vec<f32>> {
    // Fewer are drawn sooner than a thread starts.
    const LEAST: usize = 1 << 16;
    let mut values = vec![0.0; count];
    let share = count.div_ceil(threads.max(1)).max(LEAST).next_multiple_of(2);
    thread::scope(|scope| {
        let mut parts = values.chunks_mut(share).enumerate();
        let first = parts.next();
        for (index, part) in parts {
            let mut rng = Pcg64::seed_from_u64(key);
            // One uniform number is drawn for each normal one.
            rng.advance((index * share) as u128);
            thread::Builder::new().spawn_scoped(scope, move || fill_normal(rng, part))?;
        }
        if let Some((_, part)) = first {
            fill_normal(Pcg64::seed_from_u64(key), part);
        }
        Result::<()>::Ok(())
    })?;
    Ok(values)
}

/// Box and Muller: two normal numbers from two uniform ones, the first of (0, 1].
fn fill_normal(mut rng: Pcg64, values: &mut [f32]) {
    for pair in values.chunks_mut(2) {
        let (first, second) = (1.0 - rng.random::<f32>(), rng.random::<f32>());
        let radius = DEVIATION as f32 * (-2.0 * first.ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * second).sin_cos();
        pair.iter_mut().zip([radius * cos, radius * sin]).for_each(|(value, number)| *value = number);
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): neighbouring keys give unrelated seeds.
fn mix(key: u64) -> u64 {
    let key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

/// GPT-2's names differ from those of the later families.
fn is_gpt2(model: &Model) -> bool {
    model.family == Family::Gpt2
}

fn embedding(model: &Model, mut parameters: Parameters) -> Result<Embedding> {
    let learned = model.rope_theta.is_none();
    let mut names = vec![if is_gpt2(model) { "wte.weight" } else { "embed_tokens.weight" }];
    let tokens = parameters.normal(model.vocabulary, model.hidden)?;
    if learned {
        names.push(if is_gpt2(model) { "wpe.weight" } else { "embed_positions.weight" });
    }
    let positions = learned.then(|| parameters.normal(model.max_positions, model.hidden)).transpose()?;
    Ok(Embedding { names, tokens, positions, tied: model.tied_embeddings })
}

fn block(model: &Model, mut parameters: Parameters) -> Result<Block> {
    Ok(Block { attention: attention(model, &mut parameters)?, mlp: mlp(model, &mut parameters)? })
}

fn norm_names(kind: NormKind, names: [&'static str; 2]) -> Vec<&'static str> {
    names[..if kind == NormKind::Layer { 2 } else { 1 }].to_vec()
}

fn attention(model: &Model, parameters: &mut Parameters) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (model.heads, model.kv_heads, model.head_dim);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        bail!("{}: {heads} query heads cannot share {kv_heads} key heads evenly", model.name);
    }
    let (hidden, query, kv) = (model.hidden, heads * head_dim, kv_heads * head_dim);
    let norm = parameters.norm(model.norm, model.norm_epsilon, hidden)?;
    let (mut names, projection, output_names, layout);
    if is_gpt2(model) {
        names = norm_names(model.norm, ["ln_1.weight", "ln_1.bias"]);
        layout = WeightLayout::InOut;
        projection = Projection::Fused(parameters.linear(hidden, query + 2 * kv, model.qkv_bias, layout)?);
        names.push("attn.c_attn.weight");
        names.extend(model.qkv_bias.then_some("attn.c_attn.bias"));
        output_names = ["attn.c_proj.weight", "attn.c_proj.bias"];
    } else {
        names = norm_names(model.norm, ["input_layernorm.weight", "input_layernorm.bias"]);
        layout = WeightLayout::OutIn;
        let mut linear = |output| parameters.linear(hidden, output, model.qkv_bias, layout);
        projection = Projection::Separate([linear(query)?, linear(kv)?, linear(kv)?]);
        for [weight, bias] in [
            ["self_attn.q_proj.weight", "self_attn.q_proj.bias"],
            ["self_attn.k_proj.weight", "self_attn.k_proj.bias"],
            ["self_attn.v_proj.weight", "self_attn.v_proj.bias"],
        ] {
            names.push(weight);
            names.extend(model.qkv_bias.then_some(bias));
        }
        output_names = ["self_attn.o_proj.weight", "self_attn.o_proj.bias"];
    }
    let head_norms = if model.qk_norm {
        names.extend(["self_attn.q_norm.weight", "self_attn.k_norm.weight"]);
        let mut norm = || parameters.norm(NormKind::Rms, model.norm_epsilon, head_dim);
        Some(HeadNorms { query: norm()?, key: norm()? })
    } else {
        None
    };
    let output = parameters.linear(query, hidden, model.output_bias, layout)?;
    names.push(output_names[0]);
    names.extend(model.output_bias.then_some(output_names[1]));
    let rotary = model.rope_theta.map(|theta| Rotary::new(head_dim, theta, model.rope_scaling)).transpose()?;
    Ok(Attention {
        names,
        norm,
        projection,
        head_norms,
        output,
        rotary,
        heads,
        kv_heads,
        head_dim,
        window: model.sliding_window,
        query_block: QUERY_BLOCK,
    })
}

fn mlp(model: &Model, parameters: &mut Parameters) -> Result<Mlp> {
    let (hidden, inner, bias) = (model.hidden, model.intermediate, model.mlp_bias);
    let norm = parameters.norm(model.norm, model.norm_epsilon, hidden)?;
    let (norm_pair, layout) = if is_gpt2(model) {
        (["ln_2.weight", "ln_2.bias"], WeightLayout::InOut)
    } else {
        (["post_attention_layernorm.weight", "post_attention_layernorm.bias"], WeightLayout::OutIn)
    };
    let mut names = norm_names(model.norm, norm_pair);
    let mut linear = |input, output| parameters.linear(input, output, bias, layout);
    let into = match model.mlp {
        MlpKind::GatedSilu => MlpInto::Gated { gate: linear(hidden, inner)?, up: linear(hidden, inner)? },
        MlpKind::DenseGelu => MlpInto::Dense { up: linear(hidden, inner)? },
    };
    let down = linear(inner, hidden)?;
    let projections: &[[&'static str; 2]] = match (model.mlp, is_gpt2(model)) {
        (MlpKind::GatedSilu, _) => &[
            ["mlp.gate_proj.weight", "mlp.gate_proj.bias"],
            ["mlp.up_proj.weight", "mlp.up_proj.bias"],
            ["mlp.down_proj.weight", "mlp.down_proj.bias"],
        ],
        (MlpKind::DenseGelu, true) => &[["mlp.c_fc.weight", "mlp.c_fc.bias"], ["mlp.c_proj.weight", "mlp.c_proj.bias"]],
        (MlpKind::DenseGelu, false) => {
            &[["mlp.up_proj.weight", "mlp.up_proj.bias"], ["mlp.down_proj.weight", "mlp.down_proj.bias"]]
        }
    };
    for [weight, shift] in projections {
        names.push(weight);
        names.extend(bias.then_some(shift));
    }
    Ok(Mlp { names, norm, into, down })
}

fn head(model: &Model, mut parameters: Parameters) -> Result<Head> {
    let norm = parameters.norm(model.norm, model.norm_epsilon, model.hidden)?;
    let pair = if is_gpt2(model) { ["ln_f.weight", "ln_f.bias"] } else { ["norm.weight", "norm.bias"] };
    let mut names = norm_names(model.norm, pair);
    names.push("lm_head.weight");
    if model.tied_embeddings {
        parameters = Parameters { layer: 0, next: 0, ..parameters };
    }
    let projection = parameters.normal(model.vocabulary, model.hidden)?;
    let block_logits = block_logits(projection.device());
    Ok(Head { names, norm, projection, tied: model.tied_embeddings, block_logits })
}

#[cfg(test)]
mod tests;
