//! Bad files, and the whole text of what is said about them.

use std::path::PathBuf;

use optpipe_configs::file;
use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::Job;
use optpipe_configs::model::Model;
use optpipe_configs::profile::Profile;

/// The error of reading `text` as a file, without the folder's path.
fn said<T: std::fmt::Debug>(name: &str, text: &str, read: impl Fn(&PathBuf) -> Result<T, file::FileError>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    read(&path).unwrap_err().to_string().replace(&format!("{}/", folder.path().display()), "")
}

fn job(text: &str) -> String {
    said("job.yaml", text, |path| Job::read(path))
}

#[test]
fn jobs() {
    for (text, message) in [
        ("", "job.yaml: the file is empty"),
        ("batch: {}\n", "job.yaml:1:1: model: missing; it has no default"),
        (
            "model: gpt2\nbatch:\n  microbatch: 4\n",
            "job.yaml:3:3: batch.microbatch: unknown field; known are sequence_length, microbatch_size, microbatches, global_batch\n  hint: did you mean `microbatches`?",
        ),
        (
            "model: gpt2\nbatch:\n  microbatches: eight\n",
            "job.yaml:3:17: batch.microbatches: expected a whole number, 0 or more, found \"eight\"",
        ),
        ("model: gpt2\nbatch:\n  microbatches: 0\n", "job.yaml:3:3: batch.microbatches: expected 1 to 65536, found 0"),
        (
            "model: gpt2\npipeline:\n  placement: interleavd\n",
            "job.yaml:3:14: pipeline.placement: expected auto, linear, interleaved, vshape or a list with the device of each stage, found \"interleavd\"\n  hint: did you mean `interleaved`?",
        ),
        (
            "model: gpt2\npipeline:\n  placement: [0, one]\n",
            "job.yaml:3:18: pipeline.placement[1]: expected a whole number, 0 or more, found \"one\"",
        ),
        (
            "model: gpt2\npipeline:\n  placement: [0, 7]\n",
            "job.yaml:3:18: pipeline.placement[1]: expected a device from 0 to 1, found 7",
        ),
        (
            "model: gpt2\nmemory_limit: 80G\n",
            "job.yaml:2:15: memory_limit: expected a size such as 512MiB, 1.5GiB, 80GB or 1073741824, found \"80G\": write GiB for powers of 1024 or GB for powers of 1000",
        ),
        (
            "model: gpt2\nmemory_limit: [1GiB, -4]\n",
            "job.yaml:2:22: memory_limit[1]: expected a size such as 512MiB, found -4",
        ),
        (
            "model: gpt2\nprecision: fp16\n",
            "job.yaml:2:12: precision: expected f32 or bf16, found fp16\n  hint: did you mean `bf16`?",
        ),
        (
            "model: gpt2\nversion: 3\n",
            "job.yaml:2:1: version: expected 1, found 3\n  hint: another release of OptPipe wrote this file, or `version` was changed by hand",
        ),
        (
            "model: gpt2\npipeline:\n  layer_split: [6, 5]\n",
            "job.yaml:3:3: pipeline.layer_split: expected a sum of 12, the blocks of gpt2, found 11\n  hint: embedding and head are not counted here: they come with the first and the last stage",
        ),
        (
            "model: gpt2\npipeline: {devices: 15}\n",
            "job.yaml:2:12: pipeline.devices: expected at most 14 stages, as gpt2 has 14 layers (embedding, 12 blocks, head), found 15 devices x 1 chunks = 15",
        ),
        (
            "model: gpt2\nbatch: {sequence_length: 2048}\n",
            "job.yaml:2:9: batch.sequence_length: expected at most the 1024 positions of gpt2, found 2048",
        ),
        ("model: gpt2\nmodel: gpt2\n", "job.yaml:1:1: model: given twice"),
    ] {
        assert_eq!(job(text), message);
    }
}

#[test]
fn a_syntax_error_keeps_what_was_being_read() {
    let message = job("model: gpt2\nbatch: {microbatches: 4]\n");
    assert!(message.starts_with("job.yaml:2:"), "{message}");
    assert!(
        message.ends_with("did not find expected ',' or '}', while parsing a flow mapping at line 2 column 8"),
        "{message}"
    );
}

#[test]
fn a_model_that_cannot_be_found_is_the_fault_of_the_jobs_line() {
    let message = job("batch: {}\nmodel: gpt3\n");
    assert!(
        message.starts_with("job.yaml:2:1: model: gpt3: expected a preset or the path of a config.json"),
        "{message}"
    );
    assert!(message.contains("llama-15m, gpt2, qwen2.5-0.5b"), "{message}");
    let message = job("model: there/config.json\n");
    assert!(message.starts_with("job.yaml:1:1: model: there/config.json: cannot read: No such file"), "{message}");
}

#[test]
fn models() {
    let config = |text| said("config.json", text, |path| Model::read(path.to_str().unwrap(), None));
    for (text, message) in [
        ("{\n  \"architectures\": [\"LlamaForCausalLM\"],\n}", "config.json:3:1: trailing comma"),
        ("[]", "config.json:1: expected keys and values, found a list"),
        (
            "{\n  \"architectures\": [\"GPT2LMHeadModel\"],\n  \"n_embd\": 10,\n  \"n_head\": 3,\n  \"n_layer\": 1,\n  \"vocab_size\": 9\n}",
            "config.json:3: n_embd: expected a multiple of n_head = 3, as there is no head_dim, found 10",
        ),
        (
            "{\n  \"architectures\": [\"GPT2LMHeadModel\"],\n  \"n_embd\": 1.5\n}",
            "config.json:3: n_embd: expected a whole number from 1 to 1048576, found 1.5",
        ),
    ] {
        assert_eq!(config(text), message);
    }
    let folder = tempfile::tempdir().unwrap();
    let message = Model::read(folder.path().to_str().unwrap(), None).unwrap_err().to_string();
    assert!(message.contains("config.json: cannot read: No such file"), "{message}");
}

const LINK: &str = "{latency_ns: 1.0, bytes_per_second: 1.0e9, residual: 0.0, points: []}";

fn hardware(changes: &[(&str, &str)]) -> String {
    let mut text =
        "version: 1\nbackend: cpu\nclock: monotonic\ndevices:\n- {name: a, memory_bytes: 8, cores: 1}\n".to_owned();
    for link in ["offload", "reload", "offload_duplex", "reload_duplex", "send"] {
        text += &format!("{link}: {LINK}\n");
    }
    text += "offload_channel: [0]\nreload_channel: [1]\ncost_ns: 5\n";
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    text
}

#[test]
fn hardware_files() {
    let read = |path: &PathBuf| file::read_checked::<Hardware>(path);
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("hardware.yaml");
    std::fs::write(&good, hardware(&[])).unwrap();
    read(&good).unwrap();
    for (from, to, message) in [
        ("backend: cpu", "backend: tpu", "hardware.yaml:2:1: backend: expected cpu or cuda, found \"tpu\""),
        (
            "memory_bytes: 8",
            "memory_bytes: 0",
            "hardware.yaml:5:13: devices[0].memory_bytes: expected 1 to 9007199254740992, found 0",
        ),
        (
            "bytes_per_second: 1.0e9",
            "bytes_per_second: 0",
            "hardware.yaml:6:28: offload.bytes_per_second: expected at least 1 byte a second, found 0",
        ),
        (
            "reload_channel: [1]",
            "reload_channel: []",
            "hardware.yaml:12:1: reload_channel: expected 1 channels, one a device, found 0",
        ),
        (
            "cost_ns: 5",
            "cost_ns: fast",
            "hardware.yaml:13:10: cost_ns: expected a whole number, 0 or more, found \"fast\"",
        ),
        (
            "cores: 1",
            "core: 1",
            "hardware.yaml:5:30: devices[0].core: unknown field; known are name, memory_bytes, cores\n  hint: did you mean `cores`?",
        ),
    ] {
        assert_eq!(said("hardware.yaml", &hardware(&[(from, to)]), read), message);
    }
}

fn profile(from: &str, to: &str) -> String {
    let mut text = "version: 1\nmodel: gpt2\nbackend: cpu\nprecision: f32\nsequence_length: 8\nmicrobatch_size: 1\nclock: monotonic\ncost_ns: 1\nlayers:\n".to_owned();
    for (kind, count) in [("embedding", 1), ("block", 12), ("head", 1)] {
        text += &format!("- kind: {kind}\n  count: {count}\n");
        for op in ["forward", "backward_input", "backward_weight"] {
            text += &format!("  {op}: {{median_ns: 5, mad_ns: 1, p05_ns: 4, p95_ns: 6, count: 9, stable: true}}\n");
        }
        text +=
            "  bytes: {activation: 8, weight_context: 4, offloadable: 8, output: 2, workspace: 1}\n  parameters: 3\n";
    }
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

#[test]
fn profile_files() {
    let read = |path: &PathBuf| file::read_checked::<Profile>(path);
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("profile.yaml");
    std::fs::write(&good, profile("cpu", "cpu")).unwrap();
    assert_eq!(read(&good).unwrap().each_layer().count(), 14);
    for (from, to, message) in [
        (
            "kind: block",
            "kind: blocks",
            "profile.yaml:17:9: layers[1].kind: expected embedding or block or head, found blocks\n  hint: did you mean `block`?",
        ),
        ("kind: block", "kind: head", "profile.yaml:17:3: layers[1].kind: expected block, found head"),
        (
            "weight_context: 4",
            "weight_context: 9",
            "profile.yaml:15:26: layers[0].bytes.weight_context: expected at most activation = 8, found 9",
        ),
        (
            "p05_ns: 4",
            "p05_ns: 7",
            "profile.yaml:12:38: layers[0].forward.p05_ns: expected at most p95_ns = 6, found 7",
        ),
        ("stable: true", "stable: 3", "profile.yaml:12:78: layers[0].forward.stable: expected true or false, found 3"),
    ] {
        assert_eq!(said("profile.yaml", &profile(from, to), read), message);
    }
}

#[test]
fn files_that_are_no_text_files() {
    let folder = tempfile::tempdir().unwrap();
    let message = file::read_text(folder.path()).unwrap_err().message;
    assert_eq!(message, "expected a file, found a folder");
    let path = folder.path().join("binary.yaml");
    std::fs::write(&path, b"model: gpt2\n\xff\xfe").unwrap();
    let error = file::read_text(&path).unwrap_err();
    assert_eq!((error.line, error.message.as_str()), (Some(2), "not UTF-8 text"));
}
