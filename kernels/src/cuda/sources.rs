//! OptPipe's own kernels as CUDA C.
//!
//! What all share stands in `sources/common.cuh`, which is put before each of them: NVRTC brings no headers.

/// What every source begins with: bf16, vectors of 16 bytes, reductions.
pub const COMMON: &str = include_str!("sources/common.cuh");

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Its name, e.g. `norm`.
    pub name: &'static str,
    /// CUDA C without [`COMMON`].
    pub text: &'static str,
    /// The names of its kernels, which are `extern "C"`.
    pub kernels: &'static [&'static str],
}

/// RMSNorm and LayerNorm.
pub const NORM: Source = Source {
    name: "norm",
    text: include_str!("sources/norm.cu"),
    kernels: &[
        "rms_norm_forward_f32",
        "rms_norm_forward_bf16",
        "rms_norm_apply_f32",
        "rms_norm_apply_bf16",
        "rms_norm_backward_input_f32",
        "rms_norm_backward_input_bf16",
        "rms_norm_backward_weight_f32",
        "rms_norm_backward_weight_bf16",
        "layer_norm_forward_f32",
        "layer_norm_forward_bf16",
        "layer_norm_apply_f32",
        "layer_norm_apply_bf16",
        "layer_norm_backward_input_f32",
        "layer_norm_backward_input_bf16",
        "layer_norm_backward_weight_f32",
        "layer_norm_backward_weight_bf16",
        "sum_shares_f32",
        "sum_shares_bf16",
    ],
};

/// SwiGLU, GELU and rotary position embedding.
pub const ACTIVATION: Source = Source {
    name: "activation",
    text: include_str!("sources/activation.cu"),
    kernels: &[
        "swiglu_forward_f32",
        "swiglu_forward_bf16",
        "swiglu_backward_f32",
        "swiglu_backward_bf16",
        "gelu_forward_f32",
        "gelu_forward_bf16",
        "gelu_backward_f32",
        "gelu_backward_bf16",
        "rope_f32",
        "rope_bf16",
    ],
};

/// Softmax cross-entropy over blocks of the vocabulary.
pub const CROSS_ENTROPY: Source = Source {
    name: "cross_entropy",
    text: include_str!("sources/cross_entropy.cu"),
    kernels: &[
        "cross_entropy_forward_f32",
        "cross_entropy_forward_bf16",
        "cross_entropy_backward_f32",
        "cross_entropy_backward_bf16",
        "cross_entropy_mean_f32",
    ],
};

/// AdamW, SGD, and sums of gradients.
pub const OPTIMIZER: Source = Source {
    name: "optimizer",
    text: include_str!("sources/optimizer.cu"),
    kernels: &["adamw_f32", "adamw_bf16", "sgd_f32", "sgd_bf16", "accumulate_f32", "accumulate_bf16"],
};

/// Attention in bf16.
pub const ATTENTION_FORWARD: Source = Source {
    name: "attention_forward",
    text: concat!(
        include_str!("sources/attention.cuh"),
        "\n#line 1 \"attention_forward.cu\"\n",
        include_str!("sources/attention_forward.cu")
    ),
    kernels: &["attention_forward_64_bf16", "attention_forward_128_bf16"],
};

/// The gradients of attention in bf16.
pub const ATTENTION_BACKWARD: Source = Source {
    name: "attention_backward",
    text: concat!(
        include_str!("sources/attention.cuh"),
        "\n#line 1 \"attention_backward.cu\"\n",
        include_str!("sources/attention_backward.cu")
    ),
    kernels: &[
        "attention_backward_keys_64_bf16",
        "attention_backward_queries_64_bf16",
        "attention_backward_keys_128_bf16",
        "attention_backward_queries_128_bf16",
    ],
};

/// Attention and its gradients in f32, and what the gradients need of the output in both formats.
pub const ATTENTION_F32: Source = Source {
    name: "attention_f32",
    text: include_str!("sources/attention_f32.cu"),
    kernels: &[
        "attention_forward_64_f32",
        "attention_backward_keys_64_f32",
        "attention_backward_queries_64_f32",
        "attention_mean_64_f32",
        "attention_mean_64_bf16",
        "attention_forward_128_f32",
        "attention_backward_keys_128_f32",
        "attention_backward_queries_128_f32",
        "attention_mean_128_f32",
        "attention_mean_128_bf16",
    ],
};

/// Keeping a device busy.
pub const WAIT: Source = Source { name: "wait", text: include_str!("sources/wait.cu"), kernels: &["hold_u32"] };

/// All files of kernels.
pub const ALL: &[Source] =
    &[NORM, ACTIVATION, CROSS_ENTROPY, OPTIMIZER, ATTENTION_FORWARD, ATTENTION_BACKWARD, ATTENTION_F32, WAIT];

impl Source {
    /// The whole program, with line numbers of the two files it comes from.
    pub fn program(&self) -> String {
        format!("#line 1 \"common.cuh\"\n{COMMON}\n#line 1 \"{}.cu\"\n{}", self.name, self.text)
    }

    /// The file that a kernel is in.
    pub fn of(kernel: &str) -> Option<Source> {
        ALL.iter().find(|source| source.kernels.contains(&kernel)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique() {
        let names: Vec<_> = ALL.iter().flat_map(|source| source.kernels).collect();
        assert_eq!(names.len(), names.iter().collect::<HashSet<_>>().len());
        assert!(ALL.iter().all(|source| source.kernels.iter().all(|kernel| Source::of(kernel) == Some(*source))));
        assert_eq!(Source::of("unheard_of"), None);
    }
}
