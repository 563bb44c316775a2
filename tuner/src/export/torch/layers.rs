//! The modules of each stage, by the names that trainers know them by.

use std::ops::Range;

use optpipe_configs::model::{Family, Model};
use optpipe_configs::split::layer_ranges;

/// Whose names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Hugging Face transformers' `...ForCausalLM`, which NeMo AutoModel takes too.
    HuggingFace,
    /// torchtitan's Llama.
    Torchtitan,
}

/// The names of the modules of each stage. Hugging Face's rotary embedding has no weights, and every stage
/// has one.
pub fn modules(model: &Model, split: &[usize], naming: Naming) -> Vec<Vec<String>> {
    layer_ranges(split).into_iter().map(|range| stage(model, range, naming)).collect()
}

fn stage(model: &Model, range: Range<usize>, naming: Naming) -> Vec<String> {
    let (embedding, block, norm, head, everywhere): (&[&str], &str, &str, &str, &[&str]) = match (naming, model.family)
    {
        (Naming::Torchtitan, _) => (&["tok_embeddings"], "layers", "norm", "output", &[]),
        (Naming::HuggingFace, Family::Gpt2) => {
            (&["transformer.wte", "transformer.wpe"], "transformer.h", "transformer.ln_f", "lm_head", &[])
        }
        (Naming::HuggingFace, _) => {
            (&["model.embed_tokens"], "model.layers", "model.norm", "lm_head", &["model.rotary_emb"])
        }
    };
    let mut names = Vec::new();
    for layer in range {
        if layer == 0 {
            names.extend(embedding.iter().map(|&name| name.to_owned()));
        } else if layer <= model.layers {
            names.push(format!("{block}.{}", layer - 1));
        } else {
            names.extend([norm.to_owned(), head.to_owned()]);
        }
    }
    names.extend(everywhere.iter().map(|&name| name.to_owned()));
    names
}
