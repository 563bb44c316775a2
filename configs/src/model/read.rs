//! From the text of a `config.json` to a [`Model`], with the defaults that the transformers library
//! gives to absent keys (`configuration_*.py` of each family).

use std::path::Path;

use serde_json::{Map, Value};

use super::{Family, Mlp, Model, Norm, RopeScaling};
use crate::file::{self, FileError, Invalid};

/// Sizes beyond these are typing errors; within them no product of sizes leaves 64 bits.
const LARGEST_WIDTH: usize = 1 << 20;
const LARGEST_HEADS_WIDTH: usize = 1 << 22;
/// The most blocks of a model.
pub const MOST_LAYERS: usize = 1_000;
const LARGEST_VOCABULARY: usize = 1 << 24;
const LARGEST_POSITION: usize = 1 << 30;

pub(super) fn from_text(name: &str, path: &Path, text: &str) -> Result<Model, FileError> {
    let keys: Map<String, Value> = file::parse_json(path, text)?;
    let model = Keys(&keys).family().and_then(|family| match family {
        Family::Gpt2 => Keys(&keys).gpt2(name),
        rotary => Keys(&keys).rotary(name, rotary),
    });
    model.and_then(consistent).map_err(|invalid| file::located(path, text, invalid))
}

/// The keys of a `config.json`; `null` counts as absent, as in transformers.
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// A whole number in `1..=most`, if there.
    fn optional_size(&self, key: &str, most: usize) -> Result<Option<usize>, Invalid> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=most).contains(&n) => Ok(Some(n)),
            _ => Err(Invalid::new(key, format!("expected a whole number from 1 to {most}, found {value}"))),
        }
    }

    /// A whole number in `1..=most`. The sizes of a model have defaults in transformers too, but a file
    /// without them is a damaged one, not a description of the default model.
    fn size(&self, key: &str, most: usize) -> Result<usize, Invalid> {
        self.optional_size(key, most)?
            .ok_or_else(|| Invalid::new(key, format!("missing; expected a whole number from 1 to {most}")))
    }

    fn boolean(&self, key: &str, default: bool) -> Result<bool, Invalid> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(Invalid::new(key, format!("expected true or false, found {other}"))),
        }
    }

    /// A number above 0.
    fn positive(&self, key: &str, default: f64) -> Result<f64, Invalid> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| Invalid::new(key, format!("expected a number above 0, found {value}"))),
        }
    }

    fn word(&self, key: &str, default: &'a str) -> Result<&'a str, Invalid> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => {
                value.as_str().ok_or_else(|| Invalid::new(key, format!("expected a word in quotes, found {value}")))
            }
        }
    }

    /// Sub-keys, under their full names in errors.
    fn nested(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, Invalid> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(Invalid::new(key, format!("expected keys and values in braces, found {other}"))),
        }
    }

    fn family(&self) -> Result<Family, Invalid> {
        let known = || {
            let list: Vec<_> = Family::ALL.iter().map(|f| f.architecture()).collect();
            list.join(", ")
        };
        let by_type = match self.value("model_type") {
            None => None,
            Some(_) => Some(self.word("model_type", "")?),
        };
        let (key, found, family) = match self.value("architectures") {
            Some(list) => {
                let first = list.as_array().and_then(|l| l.first()).and_then(Value::as_str).ok_or_else(|| {
                    Invalid::new("architectures", format!("expected a list with one of {}, found {list}", known()))
                })?;
                ("architectures", first, Family::ALL.into_iter().find(|f| f.architecture() == first))
            }
            None => match by_type {
                Some(word) => ("model_type", word, Family::ALL.into_iter().find(|f| f.model_type() == word)),
                None => {
                    return Err(Invalid::new("architectures", format!("missing; expected one of {}", known()))
                        .hint("is this a model's config.json? Other files of a checkpoint have no such key"));
                }
            },
        };
        let Some(family) = family else {
            return Err(Invalid::new(key, format!("unknown architecture {found:?}; known are {}", known())));
        };
        match by_type {
            Some(word) if word != family.model_type() => Err(Invalid::new(
                "model_type",
                format!("expected {:?} to go with {}, found {word:?}", family.model_type(), family.architecture()),
            )),
            _ => Ok(family),
        }
    }

    fn activation(&self, key: &str, default: &'static str, accepted: &[&str]) -> Result<(), Invalid> {
        let found = self.word(key, default)?;
        if accepted.contains(&found) {
            return Ok(());
        }
        Err(Invalid::new(key, format!("expected {}, found {found:?}", accepted.join(" or "))))
    }

    fn gpt2(&self, name: &str) -> Result<Model, Invalid> {
        self.activation("activation_function", "gelu_new", &["gelu_new", "gelu_pytorch_tanh", "gelu_fast"])?;
        for (key, supported) in
            [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
        {
            if self.boolean(key, supported)? != supported {
                return Err(Invalid::new(key, format!("expected {supported}: the other way is not supported")));
            }
        }
        let hidden = self.size("n_embd", LARGEST_WIDTH)?;
        let heads = self.size("n_head", LARGEST_WIDTH)?;
        Ok(Model {
            name: name.to_owned(),
            family: Family::Gpt2,
            hidden,
            layers: self.size("n_layer", MOST_LAYERS)?,
            heads,
            kv_heads: heads,
            head_dim: divide(hidden, heads, "n_embd", "n_head")?,
            intermediate: self.optional_size("n_inner", 16 * LARGEST_WIDTH)?.unwrap_or(4 * hidden),
            vocabulary: self.size("vocab_size", LARGEST_VOCABULARY)?,
            max_positions: self.optional_size("n_positions", LARGEST_POSITION)?.unwrap_or(1024),
            norm: Norm::Layer,
            norm_epsilon: self.positive("layer_norm_epsilon", 1e-5)?,
            mlp: Mlp::DenseGelu,
            rope_theta: None,
            rope_scaling: None,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            qk_norm: false,
            tied_embeddings: self.boolean("tie_word_embeddings", true)?,
            sliding_window: None,
        })
    }

    fn rotary(&self, name: &str, family: Family) -> Result<Model, Invalid> {
        self.activation("hidden_act", "silu", &["silu", "swish"])?;
        let hidden = self.size("hidden_size", LARGEST_WIDTH)?;
        let layers = self.size("num_hidden_layers", MOST_LAYERS)?;
        let heads = self.size("num_attention_heads", LARGEST_WIDTH)?;
        // In transformers an absent key means the class's default, an explicit null one a head.
        let kv_default = match family {
            _ if self.0.contains_key("num_key_value_heads") => heads,
            Family::Mistral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
            Family::Llama | Family::Gpt2 => heads,
        };
        let kv_heads = self.optional_size("num_key_value_heads", LARGEST_WIDTH)?.unwrap_or(kv_default);
        let head_dim = match self.optional_size("head_dim", LARGEST_WIDTH)? {
            Some(width) => width,
            None if family == Family::Qwen3 => 128,
            None => divide(hidden, heads, "hidden_size", "num_attention_heads")?,
        };
        let attention_bias = match family {
            Family::Llama | Family::Qwen3 => self.boolean("attention_bias", false)?,
            Family::Mistral | Family::Qwen2 | Family::Gpt2 => false,
        };
        let max_positions = match family {
            Family::Llama => 2048,
            Family::Mistral => 131_072,
            Family::Qwen2 | Family::Qwen3 | Family::Gpt2 => 32_768,
        };
        let (rope_theta, rope_scaling) = self.rope()?;
        Ok(Model {
            name: name.to_owned(),
            family,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate: self.size("intermediate_size", 16 * LARGEST_WIDTH)?,
            vocabulary: self.size("vocab_size", LARGEST_VOCABULARY)?,
            max_positions: self.optional_size("max_position_embeddings", LARGEST_POSITION)?.unwrap_or(max_positions),
            norm: Norm::Rms,
            norm_epsilon: self.positive("rms_norm_eps", 1e-6)?,
            mlp: Mlp::GatedSilu,
            rope_theta: Some(rope_theta),
            rope_scaling,
            qkv_bias: attention_bias || family == Family::Qwen2,
            output_bias: attention_bias,
            mlp_bias: family == Family::Llama && self.boolean("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            tied_embeddings: self.boolean("tie_word_embeddings", false)?,
            sliding_window: self.window(family, layers)?,
        })
    }

    /// Base and stretching of the rotary embedding: `rope_theta` and `rope_scaling`, or both in
    /// `rope_parameters` as transformers 5 writes them.
    fn rope(&self) -> Result<(f64, Option<RopeScaling>), Invalid> {
        let parameters = self.nested("rope_parameters")?;
        let theta = match parameters {
            Some(map) => Keys(map).positive("rope_theta", 10_000.0).map_err(|e| under("rope_parameters", e))?,
            None => self.positive("rope_theta", 10_000.0)?,
        };
        let (key, map) = match (parameters, self.nested("rope_scaling")?) {
            (Some(map), _) => ("rope_parameters", map),
            (None, Some(map)) => ("rope_scaling", map),
            (None, None) => return Ok((theta, None)),
        };
        let scaling = Keys(map).scaling().map_err(|e| under(key, e))?;
        Ok((theta, scaling))
    }

    fn scaling(&self) -> Result<Option<RopeScaling>, Invalid> {
        let key = if self.0.contains_key("rope_type") { "rope_type" } else { "type" };
        match self.word(key, "default")? {
            "default" => return Ok(None),
            "llama3" => {}
            other => return Err(Invalid::new(key, format!("expected llama3 or default, found {other:?}"))),
        }
        let needed = |key: &str| match self.value(key) {
            Some(_) => self.positive(key, 1.0),
            None => Err(Invalid::new(key, "missing; expected a number above 0, for rope_type llama3")),
        };
        let scaling = RopeScaling {
            factor: needed("factor")?,
            low_frequency_factor: needed("low_freq_factor")?,
            high_frequency_factor: needed("high_freq_factor")?,
            original_positions: self.size("original_max_position_embeddings", LARGEST_POSITION)?,
        };
        if scaling.factor < 1.0 {
            return Err(Invalid::new("factor", format!("expected at least 1, found {}", scaling.factor)));
        }
        if scaling.low_frequency_factor >= scaling.high_frequency_factor {
            return Err(Invalid::new(
                "high_freq_factor",
                format!(
                    "expected more than low_freq_factor = {}, found {}",
                    scaling.low_frequency_factor, scaling.high_frequency_factor
                ),
            ));
        }
        Ok(Some(scaling))
    }

    /// The window that all layers share. Qwen's windows start at `max_window_layers`, and newer files
    /// list `layer_types`; a mixture within a model is an error rather than an approximation.
    fn window(&self, family: Family, layers: usize) -> Result<Option<usize>, Invalid> {
        let enabled = match family {
            Family::Mistral => true,
            Family::Qwen2 | Family::Qwen3 => self.boolean("use_sliding_window", false)?,
            Family::Llama | Family::Gpt2 => false,
        };
        // An absent key is the class's 4096, an explicit null means no window.
        let default = (!self.0.contains_key("sliding_window")).then_some(4096);
        let window = match self.optional_size("sliding_window", LARGEST_POSITION)?.or(default) {
            Some(window) if enabled => window,
            _ => return Ok(None),
        };
        let mixed = |key: &str, sliding: usize| {
            Invalid::new(
                key,
                format!(
                    "expected all {layers} layers with the sliding window or none, found {sliding} with it: mixtures are not supported"
                ),
            )
        };
        if let Some(types) = self.value("layer_types") {
            let types = types.as_array().filter(|list| list.len() == layers).ok_or_else(|| {
                Invalid::new("layer_types", format!("expected a list of {layers} words, found {types}"))
            })?;
            return match types.iter().filter(|t| t.as_str() == Some("sliding_attention")).count() {
                0 => Ok(None),
                sliding if sliding == layers => Ok(Some(window)),
                sliding => Err(mixed("layer_types", sliding)),
            };
        }
        if family == Family::Mistral {
            return Ok(Some(window));
        }
        let first = match self.value("max_window_layers") {
            None => 28,
            Some(value) => value.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
                Invalid::new("max_window_layers", format!("expected a whole number, 0 or more, found {value}"))
            })?,
        };
        match first {
            0 => Ok(Some(window)),
            first if first >= layers => Ok(None),
            first => Err(mixed("max_window_layers", layers - first)),
        }
    }
}

fn under(prefix: &str, invalid: Invalid) -> Invalid {
    Invalid { field: format!("{prefix}.{}", invalid.field), ..invalid }
}

fn divide(whole: usize, parts: usize, whole_key: &str, parts_key: &str) -> Result<usize, Invalid> {
    if whole.is_multiple_of(parts) {
        return Ok(whole / parts);
    }
    Err(Invalid::new(
        whole_key,
        format!("expected a multiple of {parts_key} = {parts}, as there is no head_dim, found {whole}"),
    ))
}

/// The conditions that span several keys.
fn consistent(model: Model) -> Result<Model, Invalid> {
    let rotary = model.rope_theta.is_some();
    if !model.heads.is_multiple_of(model.kv_heads) {
        return Err(Invalid::new(
            "num_key_value_heads",
            format!("expected a divisor of num_attention_heads = {}, found {}", model.heads, model.kv_heads),
        ));
    }
    if rotary && !model.head_dim.is_multiple_of(2) {
        return Err(Invalid::new(
            "head_dim",
            format!("expected an even number, as rotary positions turn pairs, found {}", model.head_dim),
        ));
    }
    // Both factors are at most 2^20: no overflow.
    if model.query_width() > LARGEST_HEADS_WIDTH {
        return Err(Invalid::new(
            if rotary { "num_attention_heads" } else { "n_head" },
            format!(
                "expected heads times head_dim of at most {LARGEST_HEADS_WIDTH}, found {} x {}",
                model.heads, model.head_dim
            ),
        ));
    }
    Ok(model)
}
