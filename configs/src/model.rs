//! A model, read from the `config.json` that Hugging Face distributes with it.

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

/// A decoder-only transformer.
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
