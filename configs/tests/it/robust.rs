//! Whatever a file holds, reading it ends soon, without a panic.

use std::path::Path;

use optpipe_configs::file::{self, Check};
use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::Job;
use optpipe_configs::model::{Model, PRESETS};
use optpipe_configs::profile::Profile;
use proptest::prelude::*;
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned + Check>(name: &str, text: &str) -> Result<(), String> {
    let path = Path::new(name);
    let value: T = file::parse(path, text).map_err(|e| e.to_string())?;
    file::checked(path, text, value).map(|_| ()).map_err(|e| e.to_string())
}

fn read_as_everything(text: &str) {
    for name in ["a.yaml", "a.json"] {
        for result in [read::<Job>(name, text), read::<Hardware>(name, text), read::<Profile>(name, text)] {
            let _ = result;
        }
    }
    let _ = Model::from_json("a", Path::new("config.json"), text);
}

#[test]
fn aliases_that_multiply_are_refused() {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, of) in ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k"].iter().zip("abcdefghij".chars()) {
        text += &format!("{name}: &{name} [*{of}, *{of}, *{of}, *{of}, *{of}, *{of}, *{of}, *{of}, *{of}, *{of}]\n");
    }
    text += "model: gpt2\npipeline:\n  placement: *k\n";
    let error = read::<Job>("job.yaml", &text).unwrap_err();
    assert!(error.contains("job.yaml"), "{error}");
}

#[test]
fn deep_nesting_is_refused() {
    for (name, open) in [("a.yaml", "["), ("a.yaml", "{a: "), ("a.json", "["), ("a.json", "{\"a\":")] {
        let text = format!("{{\"model\": {}", open.repeat(20_000));
        let error = read::<Job>(name, &text).unwrap_err();
        assert!(error.contains(name), "{error}");
    }
    // In block style too, and within the levels that the parser itself allows for.
    for (open, levels) in [("- ", 20_000), ("[", 500)] {
        let error = read::<Job>("a.yaml", &format!("model: gpt2\npipeline:\n  {}", open.repeat(levels))).unwrap_err();
        assert!(error.contains("a.yaml"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,80}") {
        read_as_everything(&text);
    }

    #[test]
    fn damaged_jobs_never_panic(at in 0.0_f64..1.0, length in 0_usize..12, with in "[\\PC\n]{0,6}") {
        let mut text: Vec<char> = Job::template("gpt2").chars().collect();
        let at = (at * text.len() as f64) as usize;
        text.splice(at..(at + length).min(text.len()), with.chars());
        read_as_everything(&text.into_iter().collect::<String>());
    }

    #[test]
    fn jobs_of_any_numbers_are_used_or_refused(
        devices in any::<usize>(), chunks in any::<usize>(), sequence in any::<u64>(), limit in 0_u64..1 << 53,
        placement in prop_oneof![Just("auto"), Just("vshape"), Just("linear"), Just("[0, 1]")],
    ) {
        for (devices, chunks) in [(devices, chunks), (devices % 5, chunks % 4)] {
            let text = format!(
                "model: gpt2\nbatch: {{sequence_length: {sequence}}}\nmemory_limit: {limit}\npipeline: {{devices: {devices}, chunks: {chunks}, placement: {placement}}}\n"
            );
            let job: Job = file::parse(Path::new("job.yaml"), &text).unwrap();
            if job.check().is_ok() {
                prop_assert_eq!(job.placement().len(), job.stages());
                prop_assert!(job.placement().iter().all(|&d| d < devices));
                prop_assert_eq!(job.memory_limits().unwrap().map(|l| l.len()), Some(devices));
            }
        }
    }

    #[test]
    fn configs_of_any_numbers_are_counted_or_refused(
        preset in 0..PRESETS.len(), key in 0_usize..8, value in any::<u64>(), shift in 0_u32..64,
    ) {
        let keys = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "vocab_size", "intermediate_size", "max_position_embeddings"];
        let mut config: serde_json::Value = serde_json::from_str(PRESETS[preset].1).unwrap();
        config[keys[key]] = (value >> shift).into();
        if let Ok(model) = Model::from_json("a", Path::new("config.json"), &config.to_string()) {
            prop_assert!(model.parameters() > 0);
            prop_assert_eq!(model.heads % model.kv_heads, 0);
        }
    }
}
