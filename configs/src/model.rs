//! A model, read from the `config.json` that Hugging Face distributes with it.
//!
//! ```
//! use optpipe_configs::model::Model;
//!
//! let model = Model::read("llama-3.1-8b", None)?;
//! assert_eq!((model.layers, model.heads, model.kv_heads), (32, 32, 8));
//! assert_eq!(model.parameters(), 8_030_261_248);
//! # Ok::<(), optpipe_configs::file::FileError>(())
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

use crate::file::{self, FileError};

mod presets;
mod read;

pub use presets::PRESETS;
pub use read::MOST_LAYERS;

/// The families whose `config.json` is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`
    Llama,
    /// `MistralForCausalLM`
    Mistral,
    /// `Qwen2ForCausalLM`
    Qwen2,
    /// `Qwen3ForCausalLM`
    Qwen3,
    /// `GPT2LMHeadModel`
    Gpt2,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 5] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3, Family::Gpt2];

    /// The entry of `architectures` in `config.json`.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
            Family::Gpt2 => "GPT2LMHeadModel",
        }
    }

    /// The `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gpt2 => "gpt2",
        }
    }
}

/// Which normalisation the blocks use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Root mean square, scale only.
    Rms,
    /// Mean and variance, scale and shift.
    Layer,
}

/// The MLP of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// `down(silu(gate(x)) * up(x))`
    GatedSilu,
    /// `down(gelu_tanh(up(x)))`
    DenseGelu,
}

/// The rotary frequencies' stretching of Llama 3.1 and later (`rope_type: llama3`).
///
/// With the wavelength `2 pi / f` of a frequency `f`: unchanged if shorter than `original_positions /
/// high_frequency_factor`, divided by `factor` if longer than `original_positions /
/// low_frequency_factor`, a linear blend in `original_positions / wavelength` between.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// What low frequencies are divided by; at least 1.
    pub factor: f64,
    /// See above; below `high_frequency_factor`.
    pub low_frequency_factor: f64,
    /// See above.
    pub high_frequency_factor: f64,
    /// Longest sequence of the training before the stretching.
    pub original_positions: usize,
}

/// A decoder-only transformer.
///
/// Dropout is not part of it: pre-training recipes of these families run without, and profiles do too.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Where it came from: path or preset name.
    pub name: String,
    /// The family.
    pub family: Family,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// The blocks' normalisation.
    pub norm: Norm,
    /// Its epsilon.
    pub norm_epsilon: f64,
    /// The blocks' MLP.
    pub mlp: Mlp,
    /// Base of the rotary embedding; `None` with learned positions.
    pub rope_theta: Option<f64>,
    /// Stretching of the rotary frequencies; `None` for none.
    pub rope_scaling: Option<RopeScaling>,
    /// Bias on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub output_bias: bool,
    /// Bias on the MLP's projections.
    pub mlp_bias: bool,
    /// RMS norm of each query and key head (Qwen3).
    pub qk_norm: bool,
    /// The output projection is the embedding's matrix.
    pub tied_embeddings: bool,
    /// Attention reaches back this many tokens (itself included); `None` for all.
    pub sliding_window: Option<usize>,
}

impl Model {
    /// Reads a model: the name of a preset ([`PRESETS`]), the path of a `config.json`, or the path of
    /// the folder that holds one. A relative path starts at the folder `relative_to`, by default the
    /// current one.
    ///
    /// Keys that say nothing about the layers are ignored: published files have many. What the layers
    /// need and cannot be (an architecture that is not known, heads that do not divide, ...) is an error
    /// that names the file, the line where there is one, the field and what was expected.
    pub fn read(reference: &str, relative_to: Option<&Path>) -> Result<Model, FileError> {
        let (path, text) = Model::source(reference, relative_to)?;
        read::from_text(reference, &path, &text)
    }

    /// The path and the text of the `config.json` that [`Model::read`] reads.
    pub fn source(reference: &str, relative_to: Option<&Path>) -> Result<(PathBuf, String), FileError> {
        if let Some((_, text)) = PRESETS.iter().find(|(name, _)| *name == reference) {
            return Ok((format!("configs/models/{reference}/config.json").into(), (*text).to_owned()));
        }
        let mut path: PathBuf = relative_to.map_or_else(|| reference.into(), |folder| folder.join(reference));
        if path.is_dir() {
            path.push("config.json");
        }
        let looks_like_a_path = reference.contains(['/', '\\']) || reference.ends_with(".json");
        if !looks_like_a_path && !path.exists() {
            return Err(FileError::new(
                Path::new(reference),
                format!("expected a preset or the path of a config.json; the presets are {}", preset_names()),
            ));
        }
        let text = file::read_text(&path)?;
        Ok((path, text))
    }

    /// Reads the text of a `config.json`. The path is for messages; see [`Model::read`].
    pub fn from_json(name: &str, path: &Path, text: &str) -> Result<Model, FileError> {
        read::from_text(name, path, text)
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Parameters (numbers, not bytes) of the embedding: tokens, and positions where they are learned.
    pub fn embedding_parameters(&self) -> u64 {
        let positions = if self.rope_theta.is_none() { self.max_positions } else { 0 };
        (self.vocabulary + positions) as u64 * self.hidden as u64
    }

    /// Parameters of one transformer block.
    pub fn block_parameters(&self) -> u64 {
        let (hidden, inner) = (self.hidden as u64, self.intermediate as u64);
        let (query, kv) = (self.query_width() as u64, self.kv_width() as u64);
        let bias = |present: bool, width: u64| if present { width } else { 0 };
        let attention = hidden * (query + 2 * kv)
            + bias(self.qkv_bias, query + 2 * kv)
            + query * hidden
            + bias(self.output_bias, hidden)
            + bias(self.qk_norm, 2 * self.head_dim as u64);
        let into = match self.mlp {
            Mlp::GatedSilu => 2 * inner,
            Mlp::DenseGelu => inner,
        };
        let mlp = hidden * into + inner * hidden + bias(self.mlp_bias, into + hidden);
        attention + mlp + 2 * self.norm_parameters()
    }

    /// Parameters of the head: the final norm, and the output projection unless it is the embedding's
    /// matrix.
    pub fn head_parameters(&self) -> u64 {
        let projection = if self.tied_embeddings { 0 } else { self.projection_parameters() };
        self.norm_parameters() + projection
    }

    /// Parameters of the output projection, tied or not.
    pub fn projection_parameters(&self) -> u64 {
        self.vocabulary as u64 * self.hidden as u64
    }

    /// Parameters of the model; a tied matrix counts once.
    pub fn parameters(&self) -> u64 {
        self.embedding_parameters() + self.layers as u64 * self.block_parameters() + self.head_parameters()
    }

    fn norm_parameters(&self) -> u64 {
        match self.norm {
            Norm::Rms => self.hidden as u64,
            Norm::Layer => 2 * self.hidden as u64,
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {} parameters, {} layers, hidden {})",
            self.name,
            self.family.architecture(),
            self.parameters(),
            self.layers,
            self.hidden
        )
    }
}

/// The presets' names, for messages.
fn preset_names() -> String {
    PRESETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
