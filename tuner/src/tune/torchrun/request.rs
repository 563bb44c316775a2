//! What the ranks are asked: `request-N.json`.

use std::path::Path;

use optpipe_configs::job::{Job, Modules, Optimizer, Precision};
use optpipe_configs::model::{Mlp, Model, Norm};
use serde::Serialize;

/// That of the own runner: schedules are measured, models are not trained to an end.
pub(super) const LEARNING_RATE: f64 = 1e-3;

/// One request.
#[derive(Debug, Serialize)]
pub(super) struct Request<'a> {
    version: u32,
    model: Layers,
    /// The model's config.json, for transformers.
    config: &'a serde_json::Value,
    modules: Modules,
    precision: Precision,
    seed: u64,
    sequence_length: usize,
    microbatch_size: usize,
    #[serde(flatten)]
    command: Command<'a>,
}

/// What to do.
#[derive(Debug, Serialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub(super) enum Command<'a> {
    /// Time copies.
    Calibrate,
    /// Time layers.
    Profile,
    /// Run a schedule.
    Run {
        /// Where its files are and go.
        folder: &'a Path,
        placement: &'a [usize],
        layer_split: &'a [usize],
        optimizer: Optimizer,
        learning_rate: f64,
        warmup_steps: usize,
        steps: usize,
        limit_bytes: Option<&'a [i64]>,
    },
}

/// The model as layers of plain torch need it; see [`Model`].
#[derive(Debug, Serialize)]
struct Layers {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    vocabulary: usize,
    max_positions: usize,
    norm: &'static str,
    norm_epsilon: f64,
    mlp: &'static str,
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
    qkv_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
    qk_norm: bool,
    tied_embeddings: bool,
    sliding_window: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Scaling {
    factor: f64,
    low_frequency_factor: f64,
    high_frequency_factor: f64,
    original_positions: usize,
}

impl<'a> Request<'a> {
    pub(super) fn new(
        job: &Job,
        model: &Model,
        config: &'a serde_json::Value,
        modules: Modules,
        sequence_length: usize,
        microbatch_size: usize,
        command: Command<'a>,
    ) -> Self {
        Request {
            version: 1,
            model: layers(model),
            config,
            modules,
            precision: job.precision,
            // Python's generators take 63 bits.
            seed: job.solver.seed >> 1,
            sequence_length,
            microbatch_size,
            command,
        }
    }
}

fn layers(model: &Model) -> Layers {
    Layers {
        hidden: model.hidden,
        layers: model.layers,
        heads: model.heads,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim,
        intermediate: model.intermediate,
        vocabulary: model.vocabulary,
        max_positions: model.max_positions,
        norm: match model.norm {
            Norm::Rms => "rms",
            Norm::Layer => "layer",
        },
        norm_epsilon: model.norm_epsilon,
        mlp: match model.mlp {
            Mlp::GatedSilu => "gated_silu",
            Mlp::DenseGelu => "dense_gelu",
        },
        rope_theta: model.rope_theta,
        rope_scaling: model.rope_scaling.map(|scaling| Scaling {
            factor: scaling.factor,
            low_frequency_factor: scaling.low_frequency_factor,
            high_frequency_factor: scaling.high_frequency_factor,
            original_positions: scaling.original_positions,
        }),
        qkv_bias: model.qkv_bias,
        output_bias: model.output_bias,
        mlp_bias: model.mlp_bias,
        qk_norm: model.qk_norm,
        tied_embeddings: model.tied_embeddings,
        sliding_window: model.sliding_window,
    }
}
