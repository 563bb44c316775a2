//! The tuner with PyTorch as its engine: real ranks under torchrun.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use optpipe::measured::Measured;
use optpipe::summary::{StopReason, Summary};
use optpipe_configs::profile::Profile;
use serde_json::{Value, json};

use super::support::{data, file, no_cache, optpipe, stderr, stdout, tiny_job};
use super::{Cases, problem, python, run_cases};

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Measurements of the tiny model by OptPipe's own engine, for tests that are not about measuring. Its layers keep
/// less than PyTorch's.
fn measured() -> [OsString; 4] {
    let (hardware, profile) = (data("tiny/hardware.yaml"), data("tiny/profile.yaml"));
    ["--hardware".into(), hardware.into(), "--profile".into(), profile.into()]
}

fn start(job: &Path, out: &Path, more: &[&str]) -> Child {
    std::process::Command::new(env!("CARGO_BIN_EXE_optpipe"))
        .arg("tune")
        .arg(job)
        .arg("--out")
        .arg(out)
        .args(more)
        .args(measured())
        .env("OPTPIPE_CACHE_DIR", no_cache())
        .env("OPTPIPE_TORCH_PYTHON", python())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

fn wait_for(child: &mut Child, path: &Path) {
    let started = Instant::now();
    while !path.exists() {
        assert!(child.try_wait().expect("a child").is_none(), "ended before {} was there", path.display());
        assert!(started.elapsed() < Duration::from_secs(240), "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal to a rank.
fn signal(session: &Path, rank: usize, name: &str) {
    let process: Value = read(&session.join(format!("rank-{rank}.json")));
    let killed = std::process::Command::new("kill").args([name, &process["pid"].to_string()]).status();
    assert!(killed.is_ok_and(|status| status.success()));
}

/// Processes whose command lines name a folder.
fn left_over(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&folder)).collect()
}

fn command(words: &[&str], job: &Path) -> assert_cmd::Command {
    let mut command = optpipe();
    command.args(words).arg(job).env("OPTPIPE_TORCH_PYTHON", python());
    command
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}

#[test]
fn the_tuner_converges_on_torchrun() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let more = "memory_limit: [900KiB, 2MiB]\n\
                run: {engine: torch, modules: plain, warmup_steps: 2, steps: 3}\n\
                stop: {tolerance: 0.1, patience: 1, max_rounds: 20}\n";
    let (job, out) = (tiny_job(folder.path(), more), folder.path().join("out"));
    let output = command(&["tune"], &job).arg("--out").arg(&out).output().expect("runs");
    succeeded(&output);
    let said = stderr(&output);
    assert!(said.contains("trainer: torch 2.") && said.contains("layers in plain torch, 2 ranks"), "{said}");
    let summary: Summary = read(&out.join("summary.yaml"));
    assert_eq!(summary.stop, StopReason::Converged);
    assert!(summary.best.measured.is_some() && summary.textbook.iter().any(|outcome| outcome.measured.is_some()));
    optpipe().arg("check").arg(out.join("problem.yaml")).arg(out.join("schedule.yaml")).assert().success();

    // Measured by PyTorch: the first stage has whole backwards, times are those of the ranks.
    let profile: Profile = read(&out.join("profile.yaml"));
    assert_eq!(profile.clock, "perf_counter");
    assert!(profile.layers.iter().all(|layer| layer.forward.count >= 9 && layer.forward.median_ns > 0));
    let measured: Measured = read(&out.join("rounds/01/measured.yaml"));
    assert_eq!((measured.losses.len(), measured.steps_ns.len()), (5, 3));
    // Random tokens out of 256: the loss is near ln 256 = 5.545.
    assert!(measured.losses.iter().all(|loss| (5.0..6.0).contains(loss)), "{:?}", measured.losses);
    for (peak, limit) in measured.peak_bytes.iter().zip([900 << 10, 2 << 20]) {
        assert!(*peak <= limit, "{peak} of {limit}");
    }
    let whole = summary.stages.first().expect("a stage");
    assert!(whole.backward_weight_ns == 0 && whole.backward_input_ns > whole.forward_ns / 4, "{whole:?}");

    assert_eq!(left_over(&out), Vec::<String>::new());
    assert!(!out.join("torchrun/session-1").exists(), "logs of what went well stay");

    // Finished: nothing is started again.
    let before = Instant::now();
    let resumed = command(&["tune", "--resume", "-q"], &job).arg("--out").arg(&out).output().expect("runs");
    assert_eq!(stdout(&resumed), stdout(&output));
    assert!(before.elapsed() < Duration::from_secs(60) && !out.join("torchrun/session-1").exists());

    let again = folder.path().join("again.yaml");
    let output = command(&["run"], &job)
        .arg(out.join("schedule.yaml"))
        .arg("--problem")
        .arg(out.join("problem.yaml"))
        .arg("-o")
        .arg(&again)
        .output()
        .expect("runs");
    succeeded(&output);
    assert!(stdout(&output).contains("tokens/s"), "{}", stdout(&output));
    let again: Measured = read(&again);
    // The same seed: the same training, whatever the schedule.
    assert!((again.losses[4] - measured.losses[4]).abs() < 1e-4, "{:?} {:?}", again.losses, measured.losses);
}

#[test]
fn a_rank_that_runs_out_of_memory_makes_the_tuner_plan_with_less() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // By the profile two microbatches fit on the first device; PyTorch keeps half as much again.
    let more = "memory_limit: [740KiB, 4MiB]\npipeline: {layer_split: [2, 1]}\nstop: {max_rounds: 1}\n\
                run: {engine: torch, modules: plain, steps: 1, warmup_steps: 0, textbook: false}\n";
    let (job, out) = (tiny_job(folder.path(), more), folder.path().join("out"));
    let output = command(&["tune"], &job).arg("--out").arg(&out).args(measured()).output().expect("runs");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("rank 0 on ") && said.contains("ran out of memory: OutOfMemory: stage 0"), "{said}");
    assert!(said.contains("for device 0 from now on"), "{said}");
    let problem: Value = read(&out.join("problem.yaml"));
    assert!(problem["bytes"]["capacity"][0].as_u64() < Some(740 << 10), "{problem}");
    let summary: Summary = read(&out.join("summary.yaml"));
    let peak = summary.best.measured.expect("was measured").peak_bytes[0];
    assert!(peak <= 740 << 10, "the limit that was given holds: {peak}");
    assert_eq!(left_over(&out), Vec::<String>::new());
}

#[test]
fn ranks_that_die_or_hang_are_named_and_what_was_measured_stays() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // Never converges by itself in the time of a test.
    let more = "run: {engine: torch, modules: plain, steps: 2, warmup_steps: 0, textbook: false, timeout: 5s}\n\
                stop: {max_rounds: 1000, patience: 1000}\n";
    let (job, out) = (tiny_job(folder.path(), more), folder.path().join("out"));
    for (round, how, words) in [
        ("rounds/01/round.yaml", "-KILL", vec!["rank 1 on ", " was ended by signal 9", "runs out"]),
        (
            "rounds/02/round.yaml",
            "-STOP",
            vec!["timed out: nothing after `", "no answer from rank 1 on ", "rank-0.log |"],
        ),
    ] {
        let mut child = start(&job, &out, &["--resume"]);
        let session = out.join(if how == "-KILL" { "torchrun/session-1" } else { "torchrun/session-2" });
        wait_for(&mut child, &session.join("reply-0.json"));
        wait_for(&mut child, &out.join(round));
        signal(&session, 1, how);
        let output = child.wait_with_output().expect("ends");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in &words[..2] {
            assert!(said.contains(word), "{word} in {said}");
        }
        assert!(said.contains(" | ") && said.contains("--resume goes on from there"), "{said}");
        assert!(stdout(&output).contains("Failed after"), "{}", stdout(&output));
        let summary: Summary = read(&out.join("summary.yaml"));
        assert_eq!(summary.stop, StopReason::Failed);
        assert!(summary.failure.is_some_and(|failure| said.contains(&failure)));
        optpipe().arg("check").arg(out.join("problem.yaml")).arg(out.join("schedule.yaml")).assert().success();
        assert_eq!(left_over(&out), Vec::<String>::new());
    }
}

#[test]
fn without_pytorch_one_error_says_what_to_do() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let job = tiny_job(folder.path(), "run: {engine: torch}\n");
    let bare = file(folder.path(), "python", &format!("#!/bin/sh\nexec '{}' -S \"$@\"\n", python().display()));
    let made = std::process::Command::new("chmod").arg("+x").arg(&bare).status();
    assert!(made.is_ok_and(|status| status.success()));
    for (python, words) in [(bare, "has no PyTorch"), (folder.path().join("none"), "cannot run `")] {
        for words_of_command in [&["profile"][..], &["calibrate", "--job"], &["solve"]] {
            let output = command(words_of_command, &job).env("OPTPIPE_TORCH_PYTHON", &python).output().expect("runs");
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(
                said.contains(words) && said.contains("pip install torch") && said.contains("run.python"),
                "{said}"
            );
        }
    }
}

/// A small model as the ranks are told of it.
fn model(more: Value) -> Value {
    let mut model = json!({
        "hidden": 32, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 64, "vocabulary": 97,
        "max_positions": 64, "norm": "rms", "norm_epsilon": 1e-5, "mlp": "gated_silu", "rope_theta": 10000.0,
        "rope_scaling": null, "qkv_bias": false, "output_bias": false, "mlp_bias": false, "qk_norm": false,
        "tied_embeddings": false, "sliding_window": null,
    });
    for (key, value) in more.as_object().expect("an object") {
        model[key] = value.clone();
    }
    model
}

#[test]
fn the_tuners_stages_train_the_model_without_a_pipeline_and_its_layers_are_those_of_transformers() {
    let mut cases = Cases { folder: tempfile::tempdir().expect("temporary folder"), list: Vec::new() };
    let llama = model(json!({}));
    let qwen = model(json!({
        "qk_norm": true, "tied_embeddings": true, "sliding_window": 5,
        "rope_scaling": {"factor": 8.0, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0,
                         "original_positions": 16},
    }));
    let gpt2 = model(json!({
        "norm": "layer", "mlp": "dense_gelu", "rope_theta": null, "qkv_bias": true, "output_bias": true,
        "mlp_bias": true, "tied_embeddings": true, "kv_heads": 4, "head_dim": 8,
    }));
    let shapes: [(&str, &Value, &[usize], &[usize]); 4] = [
        ("llama", &llama, &[0, 1], &[3, 1]),
        ("qwen", &qwen, &[0, 1], &[2, 2]),
        ("gpt2", &gpt2, &[0, 1, 1, 0], &[1, 1, 2, 0]),
        ("loop", &qwen, &[0, 1, 0, 1], &[0, 2, 1, 1]),
    ];
    let mut pipelines: Vec<&str> = Vec::new();
    for (name, model, placement, split) in shapes {
        let (problem, schedule) = cases.solve(name, &problem(placement, 1.6, true));
        let request = json!({
            "model": model, "config": {}, "modules": "plain", "precision": "f64", "seed": 3, "sequence_length": 16,
            "microbatch_size": 2, "layer_split": split,
        });
        cases.add(name, "harness", placement, json!({"problem": problem, "schedule": schedule, "request": request}));
        pipelines.push(name);
    }
    cases.add("transformers", "transformers", &[0], json!({"model": llama}));
    let results = run_cases(&cases, &Path::new(env!("CARGO_MANIFEST_DIR")).join("python"));
    let mut offloaded = 0;
    for name in pipelines {
        for rank in results[name].as_array().expect("a list") {
            let errors = rank["errors"].as_array().unwrap_or_else(|| panic!("{name}: {rank}"));
            let worst = errors.iter().map(|e| e.as_f64().unwrap_or(f64::INFINITY)).fold(0.0, f64::max);
            assert!(worst < 1e-10, "{name}: {rank}");
            assert!(rank["offset_error_ns"].as_u64() < Some(50_000_000), "{name}: {rank}");
            offloaded += rank["offloaded"].as_u64().unwrap_or(0);
        }
    }
    assert!(offloaded > 0, "no schedule offloads: {results}");
    let found = &results["transformers"][0];
    let families = found["families"].as_object().unwrap_or_else(|| panic!("{found}"));
    assert_eq!(families.len(), 6, "{found}");
    for (family, error) in families {
        assert!(error.as_f64().is_some_and(|error| error < 1e-5), "{family}: {error}");
    }
}
