use std::path::Path;

use optpipe_configs::file::FileError;
use optpipe_configs::model::{Family, Mlp, Model, Norm, PRESETS};
use serde_json::{Value, json};

/// Sizes of the published checkpoints (the tensors in their safetensors files; a tied matrix once).
const PUBLISHED: [(&str, u64); 10] = [
    ("llama-15m", 15_191_712),
    ("gpt2", 124_439_808),
    ("qwen2.5-0.5b", 494_032_768),
    ("qwen3-0.6b", 596_049_920),
    ("llama-3.2-1b", 1_235_814_400),
    ("mistral-7b", 7_241_732_096),
    ("llama-3.1-8b", 8_030_261_248),
    ("qwen3-8b", 8_190_735_360),
    ("llama-3.1-70b", 70_553_706_496),
    ("llama-3.1-405b", 405_853_388_800),
];

#[test]
fn presets_have_the_published_number_of_parameters() {
    assert_eq!(PRESETS.len(), PUBLISHED.len());
    for (name, parameters) in PUBLISHED {
        let model = Model::read(name, None).unwrap();
        assert_eq!(model.parameters(), parameters, "{name}");
        assert_eq!(model.name, name);
    }
}

fn config(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn preset(name: &str) -> Value {
    config(PRESETS.iter().find(|(n, _)| *n == name).unwrap().1)
}

/// A preset's config with keys changed; `Value::Null` removes one.
fn with(name: &str, changes: Value) -> Result<Model, FileError> {
    let mut config = preset(name);
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => config.as_object_mut().unwrap().remove(key),
            value => config.as_object_mut().unwrap().insert(key.clone(), value.clone()),
        };
    }
    Model::from_json("changed", Path::new("config.json"), &serde_json::to_string_pretty(&config).unwrap())
}

#[test]
fn families_differ_where_they_really_do() {
    let gpt2 = Model::read("gpt2", None).unwrap();
    assert_eq!((gpt2.family, gpt2.norm, gpt2.mlp), (Family::Gpt2, Norm::Layer, Mlp::DenseGelu));
    assert_eq!((gpt2.rope_theta, gpt2.intermediate, gpt2.max_positions), (None, 3072, 1024));
    assert!(gpt2.qkv_bias && gpt2.output_bias && gpt2.mlp_bias && gpt2.tied_embeddings && !gpt2.qk_norm);

    let qwen2 = Model::read("qwen2.5-0.5b", None).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.mlp_bias && qwen2.tied_embeddings);
    assert_eq!((qwen2.head_dim, qwen2.kv_heads, qwen2.sliding_window), (64, 2, None));

    let qwen3 = Model::read("qwen3-0.6b", None).unwrap();
    assert!(qwen3.qk_norm && !qwen3.qkv_bias);
    assert_eq!((qwen3.query_width(), qwen3.kv_width(), qwen3.hidden), (2048, 1024, 1024));

    assert_eq!(Model::read("mistral-7b", None).unwrap().sliding_window, Some(4096));
    let scaling = Model::read("llama-3.2-1b", None).unwrap().rope_scaling.unwrap();
    assert_eq!((scaling.factor, scaling.original_positions), (32.0, 8192));
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let llama = with(
        "llama-15m",
        json!({"num_key_value_heads": null, "max_position_embeddings": null, "rms_norm_eps": null,
               "rope_theta": null, "tie_word_embeddings": null, "hidden_act": null}),
    )
    .unwrap();
    assert_eq!((llama.kv_heads, llama.max_positions, llama.tied_embeddings), (6, 2048, false));
    assert_eq!((llama.norm_epsilon, llama.rope_theta), (1e-6, Some(10_000.0)));

    let mistral = with("mistral-7b", json!({"num_key_value_heads": null, "sliding_window": null})).unwrap();
    assert_eq!((mistral.kv_heads, mistral.sliding_window), (8, Some(4096)));
    assert_eq!(with("qwen3-8b", json!({"head_dim": null})).unwrap().head_dim, 128);
    assert_eq!(with("gpt2", json!({"n_positions": null})).unwrap().max_positions, 1024);
    assert!(!with("gpt2", json!({"tie_word_embeddings": false})).unwrap().tied_embeddings);
}

#[test]
fn an_explicit_null_window_or_head_number_is_none() {
    let text = serde_json::to_string(&preset("mistral-7b")).unwrap();
    let text = text.replace("\"sliding_window\":4096", "\"sliding_window\":null");
    let text = text.replace("\"num_key_value_heads\":8", "\"num_key_value_heads\":null");
    let model = Model::from_json("m", Path::new("config.json"), &text).unwrap();
    assert_eq!((model.sliding_window, model.kv_heads), (None, 32));
}

#[test]
fn biases_windows_and_rope_are_read_where_the_family_has_them() {
    let llama = with("llama-15m", json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    assert!(llama.qkv_bias && llama.output_bias && llama.mlp_bias);
    let extra = llama.parameters() - Model::read("llama-15m", None).unwrap().parameters();
    assert_eq!(extra, 6 * (4 * 288 + 2 * 768 + 288));

    let all = json!({"use_sliding_window": true, "max_window_layers": 0, "sliding_window": 1024});
    assert_eq!(with("qwen2.5-0.5b", all).unwrap().sliding_window, Some(1024));
    let none = json!({"use_sliding_window": true, "max_window_layers": 24});
    assert_eq!(with("qwen2.5-0.5b", none).unwrap().sliding_window, None);

    let new = json!({"rope_theta": null, "rope_scaling": null,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}});
    let model = with("llama-3.1-8b", new).unwrap();
    assert_eq!((model.rope_theta, model.rope_scaling), (Some(5e5), None));
}

#[test]
fn contradictions_name_line_field_and_expectation() {
    for (name, changes, field, message) in [
        ("llama-15m", json!({"hidden_size": 290}), "hidden_size", "expected a multiple of num_attention_heads = 6"),
        (
            "llama-3.1-8b",
            json!({"num_key_value_heads": 5}),
            "num_key_value_heads",
            "a divisor of num_attention_heads = 32",
        ),
        ("llama-15m", json!({"hidden_act": "relu"}), "hidden_act", "expected silu or swish, found \"relu\""),
        ("gpt2", json!({"activation_function": "gelu"}), "activation_function", "expected gelu_new or"),
        ("gpt2", json!({"scale_attn_weights": false}), "scale_attn_weights", "expected true"),
        ("gpt2", json!({"vocab_size": 0}), "vocab_size", "expected a whole number from 1 to 16777216, found 0"),
        ("gpt2", json!({"n_layer": "12"}), "n_layer", "expected a whole number from 1 to 1000, found \"12\""),
        ("qwen3-8b", json!({"head_dim": 127}), "head_dim", "expected an even number"),
        ("qwen3-8b", json!({"head_dim": 1_048_576}), "num_attention_heads", "32 x 1048576"),
        ("qwen3-8b", json!({"rms_norm_eps": -1}), "rms_norm_eps", "expected a number above 0, found -1"),
        ("qwen3-8b", json!({"tie_word_embeddings": 1}), "tie_word_embeddings", "expected true or false, found 1"),
        ("llama-15m", json!({"rope_scaling": {"rope_type": "yarn"}}), "rope_scaling.rope_type", "found \"yarn\""),
        ("llama-15m", json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.type", "expected llama3 or default"),
        ("llama-15m", json!({"rope_scaling": {"rope_type": "llama3"}}), "rope_scaling.factor", "missing"),
        ("llama-15m", json!({"model_type": "mistral"}), "model_type", "expected \"llama\" to go with LlamaForCausalLM"),
        (
            "qwen2.5-0.5b",
            json!({"use_sliding_window": true, "max_window_layers": 20}),
            "max_window_layers",
            "found 4 with it",
        ),
        (
            "qwen2.5-0.5b",
            json!({"use_sliding_window": true, "layer_types": ["full_attention"]}),
            "layer_types",
            "24 words",
        ),
    ] {
        let error = with(name, changes).unwrap_err();
        assert_eq!(error.field.as_deref(), Some(field), "{error}");
        assert!(error.line.is_some_and(|line| line > 1), "{error}");
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.to_string().starts_with("config.json:"), "{error}");
    }
}

#[test]
fn a_size_that_is_absent_is_an_error_not_the_default_model() {
    for (name, key) in [("llama-15m", "hidden_size"), ("llama-15m", "intermediate_size"), ("gpt2", "n_layer")] {
        let error = with(name, json!({key: null})).unwrap_err();
        assert_eq!(error.field.as_deref(), Some(key));
        assert!(error.message.starts_with("missing; expected a whole number"), "{error}");
    }
}

#[test]
fn an_unknown_architecture_is_named_with_the_known_ones() {
    let error = with("llama-15m", json!({"architectures": ["MambaForCausalLM"]})).unwrap_err().to_string();
    assert!(error.contains("unknown architecture \"MambaForCausalLM\""), "{error}");
    for family in Family::ALL {
        assert!(error.contains(family.architecture()), "{error}");
    }
    let error = with("llama-15m", json!({"architectures": null, "model_type": "mamba"})).unwrap_err().to_string();
    assert!(error.contains("model_type: unknown architecture \"mamba\""), "{error}");
    assert_eq!(with("gpt2", json!({"architectures": null})).unwrap().family, Family::Gpt2);
    let error = with("llama-15m", json!({"architectures": null, "model_type": null})).unwrap_err().to_string();
    assert!(error.contains("architectures: missing") && error.contains("hint: is this a model's config.json?"));
}
