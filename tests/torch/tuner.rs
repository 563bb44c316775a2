//! The tuner with PyTorch as its engine: real ranks under torchrun.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use optpipe::measured::Measured;
use optpipe::summary::{StopReason, Summary};
use optpipe_configs::hardware::Hardware;
use optpipe_configs::profile::Profile;
use serde_json::{Value, json};

use super::support::{data, file, no_cache, optpipe, stderr, stdout, tiny_job};
use super::{Cases, problem, python, run_cases};

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Starts a command that the test will not let come to its end.
fn start(words: &[&str], job: &Path, more: &[&Path]) -> Child {
    std::process::Command::new(env!("CARGO_BIN_EXE_optpipe"))
        .args(words)
        .arg(job)
        .args(more)
        .env("OPTPIPE_CACHE_DIR", no_cache())
        .env("OPTPIPE_TORCH_PYTHON", python())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

/// Waits until something is so; a process that ends before is a failure.
fn wait_until(child: &mut Child, what: &str, so: impl Fn() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(child.try_wait().expect("a child").is_none(), "ended before {what}");
        assert!(started.elapsed() < Duration::from_secs(300), "{what} never came");
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

#[test]
fn the_tuner_survives_a_rank_that_runs_out_of_memory_and_one_that_dies_and_converges() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let limit = 740 << 10;
    let more = "memory_limit: [740KiB, 4MiB]\npipeline: {layer_split: [2, 1]}\n\
                run: {engine: torch, modules: plain, warmup_steps: 2, steps: 8}\n\
                stop: {tolerance: 0.3, patience: 2, max_rounds: 30}\n";
    let (job, out) = (tiny_job(folder.path(), more), folder.path().join("out"));
    // By OptPipe's own profile two microbatches fit on the first device; PyTorch keeps half as much again.
    let (hardware, profile) = (data("tiny/hardware.yaml"), data("tiny/profile.yaml"));
    let given = [&job, Path::new("--hardware"), &hardware, Path::new("--profile"), &profile];
    let mut child = start(&["tune", "--out"], &out, &given);
    wait_until(&mut child, "a first round", || out.join("rounds/01/round.yaml").exists());
    signal(&out.join("torchrun/session-2"), 1, "-KILL");
    let output = child.wait_with_output().expect("ends");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [
        "trainer: torch 2.",
        "layers in plain torch, 2 ranks on ",
        "round 1: rank 0 on ",
        " ran out of memory: OutOfMemory: stage 0",
        "for device 0 from now on",
        "error: rank 1 on ",
        " was ended by signal 9\n",
        "rank-1.log | ",
        "see `dmesg`",
        "--resume goes on from there",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    assert!(stdout(&output).contains("Failed after"), "{}", stdout(&output));
    let summary: Summary = read(&out.join("summary.yaml"));
    assert_eq!(summary.stop, StopReason::Failed);
    assert!(summary.failure.is_some_and(|failure| failure.lines().next().is_some_and(|line| said.contains(line))));
    optpipe().arg("check").arg(out.join("problem.yaml")).arg(out.join("schedule.yaml")).assert().success();
    assert_eq!(left_over(&out), Vec::<String>::new());

    let output = command(&["tune", "--resume", "--out"], &out).arg(&job).output().expect("runs");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("ran out of memory"), "what it learned stays: {said}");
    let planned: Value = read(&out.join("rounds/02/problem.yaml"));
    assert!(planned["bytes"]["capacity"][0].as_u64() < Some(limit), "{planned}");

    let summary: Summary = read(&out.join("summary.yaml"));
    assert_eq!(summary.stop, StopReason::Converged);
    assert!(summary.textbook.iter().any(|outcome| outcome.measured.is_some()));
    // The first stage has whole backwards.
    let first = summary.stages.first().expect("a stage");
    assert!(first.backward_weight_ns == 0 && first.backward_input_ns > 0, "{first:?}");
    optpipe().arg("check").arg(out.join("problem.yaml")).arg(out.join("schedule.yaml")).assert().success();
    for round in 1..=summary.rounds.len() {
        let measured: Measured = read(&out.join(format!("rounds/{round:02}/measured.yaml")));
        assert_eq!((measured.losses.len(), measured.steps_ns.len()), (10, 8));
        // Random tokens out of 256: the loss is near ln 256 = 5.545, and the same whatever the schedule.
        let first: Measured = read(&out.join("rounds/01/measured.yaml"));
        for (loss, same) in measured.losses.iter().zip(&first.losses) {
            assert!((5.0..6.0).contains(loss) && (loss - same).abs() < 1e-4, "{:?}", measured.losses);
        }
        assert!(measured.peak_bytes[0] <= limit, "the limit that was given holds: {:?}", measured.peak_bytes);
    }
    assert_eq!(left_over(&out), Vec::<String>::new());
    assert!(!out.join("torchrun/session-3").exists(), "logs of what went well do not stay");

    // Finished: nothing is started again.
    let resumed = command(&["tune", "--resume", "-q", "--out"], &out).arg(&job).output().expect("runs");
    assert_eq!(stdout(&resumed), stdout(&output));
    assert!(!out.join("torchrun/session-3").exists());
}

#[test]
fn a_tune_on_torchrun_calibrates_and_profiles_by_itself_and_converges() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let more = "pipeline: {layer_split: [2, 1]}\n\
                run: {engine: torch, modules: transformers, warmup_steps: 1, steps: 4, textbook: false}\n\
                stop: {tolerance: 0.3, patience: 2, max_rounds: 12}\n";
    let (job, out) = (tiny_job(folder.path(), more), folder.path().join("out"));
    let output = command(&["tune", "--out"], &out).arg(&job).output().expect("runs");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("layers of transformers 5."), "{said}");
    let summary: Summary = read(&out.join("summary.yaml"));
    assert_eq!((&summary.stop, summary.failure), (&StopReason::Converged, None));
    assert!(summary.rounds.len() >= 3, "two rounds without a gain: {said}");
    // What the first round planned with was measured on the ranks.
    let profile: Profile = read(&out.join("profile.yaml"));
    assert!(profile.clock == "perf_counter" && profile.layers.iter().all(|layer| layer.forward.median_ns > 0));
    let hardware: Hardware = read(&out.join("hardware.yaml"));
    assert_eq!((hardware.devices.len(), hardware.clock.as_str()), (2, "perf_counter"));
    optpipe().arg("check").arg(out.join("problem.yaml")).arg(out.join("schedule.yaml")).assert().success();
    assert_eq!(left_over(&out), Vec::<String>::new());
}

#[test]
fn a_rank_that_hangs_is_named_and_nodes_are_started_by_the_launcher() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // Two nodes, which happen to be this machine.
    let port = std::net::TcpListener::bind("localhost:0").and_then(|socket| socket.local_addr()).expect("a port");
    let more = format!(
        "run: {{engine: torch, modules: plain, steps: 60000, timeout: 20s, nnodes: 2, rdzv_endpoint: 'localhost:{}', \
         launcher: 'env OMP_NUM_THREADS=1 NODE={{node}}'}}\n",
        port.port()
    );
    let job = tiny_job(folder.path(), &more);
    let out = folder.path().join("out");
    let mut child = start(&["tune", "--out"], &out, &[&job]);
    let session = out.join("torchrun/session-1");
    let running = || {
        let progress = std::fs::read_to_string(session.join("progress.json"));
        progress.is_ok_and(|text| text.contains("running: step 3"))
    };
    wait_until(&mut child, "a step", running);
    let profile: Profile = read(&out.join("profile.yaml"));
    assert_eq!(profile.clock, "perf_counter");
    assert!(profile.layers.iter().all(|layer| layer.forward.count >= 9 && layer.forward.median_ns > 0));
    let hardware: Hardware = read(&out.join("hardware.yaml"));
    assert!(hardware.offload_neighbour.is_some() && hardware.send.bytes_per_second > 1e6, "{hardware:?}");
    assert!(session.join("torchrun-0.log").exists() && session.join("torchrun-1.log").exists());
    signal(&session, 1, "-STOP");
    let output = child.wait_with_output().expect("ends");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [
        "timed out: nothing after `running: step ",
        "` within 20.0 s; no answer from rank 1 on ",
        "rank-0.log | ",
        "run.timeout allows for more time",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    assert_eq!(left_over(folder.path()), Vec::<String>::new());
    assert!(session.join("rank-1.log").exists(), "logs of a failure stay");
}

#[test]
fn without_pytorch_one_error_says_what_to_do() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let job = tiny_job(folder.path(), "run: {engine: torch}\n");
    let bare = file(folder.path(), "python", &format!("#!/bin/sh\nexec '{}' -S \"$@\"\n", python().display()));
    let made = std::process::Command::new("chmod").arg("+x").arg(&bare).status();
    assert!(made.is_ok_and(|status| status.success()));
    for (python, words) in [(bare, "has no PyTorch"), (folder.path().join("none"), "cannot run `")] {
        for words_of_command in [&["profile"][..], &["calibrate", "--job"], &["solve"], &["search"]] {
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
