//! The commands on the built binary: what they print, where, and with which exit code.

use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use crate::support::{data, file, no_cache, optpipe, stderr, stdout};
use assert_cmd::Command;

fn instance(name: &str) -> std::path::PathBuf {
    data(&format!("instances/{name}.yaml"))
}

fn json(output: &std::process::Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("stdout is JSON")
}

#[test]
fn solve_proves_the_small_example_and_check_agrees() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let schedule = folder.path().join("schedule.yaml");
    let problem = instance("a_spec_example");
    let solved = optpipe()
        .arg("solve")
        .arg(&problem)
        .arg("-o")
        .arg(&schedule)
        .args(["--time-limit", "5s", "--json"])
        .output()
        .expect("runs");
    assert!(solved.status.success(), "{}", stderr(&solved));
    let value = json(&solved);
    assert_eq!(value["makespan_ns"], 1010);
    assert_eq!(value["bound_ns"], 1010);
    assert_eq!(value["proven"], true);
    let checked = optpipe().arg("check").arg(&problem).arg(&schedule).output().expect("runs");
    assert!(checked.status.success(), "{}", stderr(&checked));
    assert!(stdout(&checked).starts_with("legal\nmakespan   1.01 us (1010 ns)"), "{}", stdout(&checked));
}

#[test]
fn solve_minimises_the_period_where_that_is_the_objective() {
    // Three devices with memory to spare, 1800 ns of work each: 2040 ns from the first start to the last end,
    // but less from the first to the last of any one device.
    let problem = instance("b_p3m6_free_memory");
    let solved = optpipe()
        .arg("solve")
        .arg(&problem)
        .args(["--objective", "period", "--time-limit", "10s", "--json"])
        .output()
        .expect("runs");
    assert!(solved.status.success(), "{}", stderr(&solved));
    let value = json(&solved);
    assert_eq!(value["objective"], "period");
    assert_eq!(value["bound_ns"], 1800);
    let period = value["period_ns"].as_i64().expect("a number");
    assert!((1800..=1860).contains(&period), "{period}");
    assert!(value["makespan_ns"].as_i64() >= Some(2040));
}

#[test]
fn check_lists_what_is_broken_and_exits_with_1() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let schedule = folder.path().join("schedule.yaml");
    let problem = instance("a_spec_example");
    optpipe().arg("solve").arg(&problem).arg("-o").arg(&schedule).args(["--time-limit", "2s"]).assert().success();
    let text = std::fs::read_to_string(&schedule).expect("written");
    let broken: Vec<&str> = text.lines().filter(|line| !line.contains("op: W, stage: 0, microbatch: 1")).collect();
    assert_eq!(broken.len() + 1, text.lines().count());
    std::fs::write(&schedule, broken.join("\n")).expect("written");
    let output = optpipe().arg("check").arg(&problem).arg(&schedule).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("W(0,1)"), "{}", stdout(&output));
    assert!(stderr(&output).contains("illegal"), "{}", stderr(&output));
}

#[test]
fn infeasible_problems_exit_with_3_and_name_device_and_bytes() {
    for command in ["solve", "compare"] {
        let output = optpipe().arg(command).arg(instance("j_p2v2m3_infeasible")).output().expect("runs");
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        let text = stderr(&output);
        assert!(text.contains("device 0 lacks 1 B"), "{text}");
        assert!(text.contains("hint: raise bytes.capacity[0] to at least 13"), "{text}");
        assert!(stdout(&output).is_empty());
    }
}

#[test]
fn compare_shows_every_method_against_one_bound() {
    let problem = instance("k_p2v2m3_offload_required");
    let output = optpipe().arg("compare").arg(problem).args(["--time-limit", "1s", "--json"]).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    let value = json(&output);
    let methods = value["methods"].as_array().expect("a list");
    let row = |name: &str| methods.iter().find(|row| row["method"] == name).expect("every method has a row");
    assert_eq!(row("gpipe")["fits"], false, "offloading is needed here");
    assert_eq!(row("auto")["fits"], true);
    assert!(row("zb-v")["note"].is_string(), "not a V-shaped placement");
    let bound = value["bound_ns"].as_i64().expect("a number");
    assert!(methods.iter().filter(|row| row["fits"] == true).all(|row| row["makespan_ns"].as_i64() >= Some(bound)));
    let best = row("auto")["makespan_ns"].as_f64().expect("a number");
    assert!(best <= 1340.0 * 1.02, "optimum 1340, found {best}");
}

#[test]
fn compare_shows_how_the_gap_closes_over_budgets() {
    let problem = instance("g_p4m5_shared_switch");
    let output =
        optpipe().arg("compare").arg(problem).args(["--budgets", "200ms,1s", "--json"]).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    let value = json(&output);
    let rows = value["budgets"].as_array().expect("a list");
    assert_eq!(rows.len(), 8, "four methods, two budgets");
    let makespan = |method: &str, budget: f64| {
        let row = rows.iter().find(|row| row["method"] == method && row["budget_s"] == budget).expect("a row");
        assert!(row["makespan_ns"].as_i64() >= row["bound_ns"].as_i64());
        row["makespan_ns"].as_i64().expect("a number")
    };
    let heuristic = makespan("heuristic", 1.0);
    for method in ["heuristic + search", "heuristic + search + MILP", "heuristic + MILP"] {
        assert!(makespan(method, 1.0) <= heuristic, "{method} starts from the heuristic");
    }
    let milp = rows.iter().find(|row| row["solver_method"] == "milp").expect("a row");
    assert!(milp["milp"]["binaries"].as_i64() > Some(0) && milp["milp"]["rows"].as_i64() > Some(0));
}

#[test]
fn export_draws_what_check_accepts() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let schedule = folder.path().join("schedule.yaml");
    let problem = instance("l_p4m5_offload_pays");
    optpipe().arg("solve").arg(&problem).arg("-o").arg(&schedule).args(["--time-limit", "1s"]).assert().success();
    let svg = optpipe().arg("export").arg(&problem).arg(&schedule).args(["--to", "svg"]).output().expect("runs");
    assert!(stdout(&svg).starts_with("<svg") || stdout(&svg).starts_with("<?xml"));
    let trace = folder.path().join("trace.json");
    optpipe()
        .arg("export")
        .arg(&problem)
        .arg(&schedule)
        .args(["--to", "chrome-trace", "-o"])
        .arg(&trace)
        .assert()
        .success();
    let text = std::fs::read_to_string(trace).expect("written");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(value["traceEvents"].as_array().is_some_and(|events| events.len() > 60));
}

#[test]
fn init_writes_a_job_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let job = folder.path().join("job.yaml");
    let init = |more: &[&str]| {
        optpipe().args(["init", "--model", "qwen3-0.6b", "-o"]).arg(&job).args(more).output().expect("runs")
    };
    assert!(init(&[]).status.success());
    let text = std::fs::read_to_string(&job).expect("written");
    assert!(text.contains("model: qwen3-0.6b") && text.contains('#'));
    let again = init(&[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("--force"), "{}", stderr(&again));
    assert!(init(&["--force"]).status.success());
    let unknown = optpipe().args(["init", "--model", "llama-16m", "-o", "-"]).output().expect("runs");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("llama-15m"), "names the presets: {}", stderr(&unknown));
}

#[test]
fn schemas_are_printed_for_every_file() {
    let output = optpipe().arg("schema").output().expect("runs");
    let value = json(&output);
    for kind in [
        "job",
        "hardware",
        "profile",
        "problem",
        "schedule",
        "measured",
        "rehearsed",
        "round",
        "solve",
        "sensitivity",
        "summary",
        "tune",
        "search",
    ] {
        assert!(value[kind]["$schema"].is_string(), "{kind}");
    }
    let one = optpipe().args(["schema", "problem"]).output().expect("runs");
    assert_eq!(json(&one), value["problem"]);
}

#[test]
fn devices_always_offers_the_cpu() {
    let output = optpipe().arg("devices").output().expect("runs");
    assert!(output.status.success());
    assert!(stdout(&output).starts_with("backend cpu: "), "{}", stdout(&output));
    assert!(stdout(&output).contains("backend cuda: "), "{}", stdout(&output));
}

#[test]
fn calibrating_gpus_without_a_driver_says_so_in_one_line_and_offers_the_cpu() {
    let devices = optpipe().args(["devices", "--json"]).output().expect("runs");
    // With GPUs the calibration would take its minute, and be a test of them.
    let Some(missing) = json(&devices)["cuda_missing"].as_str().map(str::to_owned) else { return };
    let output = optpipe().args(["calibrate", "--backend", "cuda", "--quiet"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0], format!("error: {missing}"));
    assert!(lines[1].starts_with("hint: ") && lines[1].contains("--backend cpu"), "{text}");
    let unknown = optpipe().args(["calibrate", "--backend", "rocm"]).output().expect("runs");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("`cpu` or `cuda`"), "{}", stderr(&unknown));
}

#[test]
fn a_job_is_written_that_its_model_can_run() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let job = folder.path().join("job.yaml");
    let mut init = optpipe();
    init.args(["init", "--model"]).arg(data("tiny/config.json")).arg("-o").arg(&job);
    let output = init.output().expect("runs");
    assert!(output.status.success() && stdout(&output).is_empty(), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("wrote "), "{}", stderr(&output));
    // The model has positions for 128 tokens, the default is 256.
    let text = std::fs::read_to_string(&job).expect("written");
    assert!(text.contains("\n  sequence_length: 128\n"), "{text}");
    let mut solve = optpipe();
    solve.current_dir(folder.path()).args([
        "search",
        "job.yaml",
        "--time-limit",
        "1s",
        "--front",
        "0",
        "-q",
        "--profile",
    ]);
    let profile = std::fs::read_to_string(data("tiny/profile.yaml")).expect("text");
    let profile = profile.replace("sequence_length: 32", "sequence_length: 128");
    solve.arg(file(folder.path(), "profile.yaml", &profile)).arg("--hardware").arg(data("tiny/hardware.yaml"));
    solve.assert().success();
}

#[test]
fn doctor_looks_at_the_machine_and_changes_nothing() {
    let output = optpipe().arg("doctor").output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("fine       CPU backend: "), "{}", stdout(&output));
    let output = optpipe().args(["doctor", "--json"]).output().expect("runs");
    let findings = json(&output);
    let of = |what: &str| {
        let found = findings.as_array().expect("a list").iter().find(|finding| finding["what"] == what);
        found.unwrap_or_else(|| panic!("{what} in {findings}")).clone()
    };
    // The tests' cache folder cannot be made.
    assert_eq!(of("cache of solved problems")["status"], "missing");
    assert!(of("NVIDIA GPUs")["status"].is_string() && of("PyTorch")["found"].is_string());
}

#[test]
fn explain_accounts_for_every_device_all_the_time() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let schedule = folder.path().join("schedule.yaml");
    optpipe()
        .arg("solve")
        .arg(instance("l_p4m5_offload_pays"))
        .args(["--time-limit", "2s", "-q", "-o"])
        .arg(&schedule)
        .assert()
        .success();
    let explain = |more: &[&str]| {
        let mut explain = optpipe();
        explain.arg("explain").arg(&schedule).args(more);
        explain
    };
    let problem = instance("l_p4m5_offload_pays").display().to_string();
    let output = explain(&["--problem", &problem, "--json"]).output().expect("runs");
    let found = json(&output);
    let devices = found["devices"].as_array().expect("a list");
    assert_eq!(devices.len(), 4);
    for device in devices {
        let idle = device["idle"].as_object().expect("causes");
        let all: i64 = idle.values().map(|ns| ns.as_i64().expect("a time")).sum();
        assert_eq!(all + device["busy_ns"].as_i64().expect("a time"), found["makespan_ns"].as_i64().expect("a time"));
    }
    let words = stdout(&explain(&["--problem", &problem]).output().expect("runs"));
    for device in 0..4 {
        assert!(words.contains(&format!("Device {device} holds stage {device}.")), "{words}");
    }
    // No problem named and none beside it; one that the schedule does not solve.
    refuses(&mut explain(&[]), &["schedule.yaml", "--problem"]);
    let other = instance("a_spec_example").display().to_string();
    refuses(&mut explain(&["--problem", &other]), &["schedule.yaml", "optpipe check"]);
}

#[test]
fn a_watched_problem_gets_its_schedule_whatever_was_measured() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = |name: &str| folder.path().join(name);
    let mut watch = optpipe();
    watch.arg("solve").arg(instance("a_spec_example")).arg("-o").arg(at("schedule.yaml")).args(["--watch=2s", "-q"]);
    watch.arg("--measured").arg(at("measured.yaml")).arg("--problem-out").arg(at("problem.yaml"));
    // Not there to begin with, then unusable: neither ends the watch.
    file(folder.path(), "measured.yaml", "version: 1\n");
    let output = watch.output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("measured.yaml") && stderr(&output).contains("left"), "{}", stderr(&output));
    optpipe().arg("check").arg(instance("a_spec_example")).arg(at("schedule.yaml")).assert().success();
    // What a trainer reads beside the schedule is there.
    optpipe().arg("check").arg(at("problem.yaml")).arg(at("schedule.yaml")).assert().success();
    // Times that overflow, and times that do so for as many microbatches.
    let many = std::fs::read_to_string(instance("a_spec_example")).expect("there");
    let many = file(folder.path(), "many.yaml", &many.replace("microbatches: 3", "microbatches: 100"));
    let sample = "{median_ns: 1, mad_ns: 0, p05_ns: 1, p95_ns: 1, count: 1, stable: true}";
    for (median_ns, said) in [(u64::MAX, "ops[0].median_ns"), (1 << 53, "time_ns.forward")] {
        let measured = format!(
            "version: 1\nbackend: cpu\nstep: {sample}\noptimizer: {sample}\nsteps_ns: [1]\nlosses: []\n\
             peak_bytes: [1, 1]\noffloaded_bytes: 0\nops:\n\
             - {{device: 0, op: F, stage: 0, microbatch: 0, start_ns: 0, end_ns: 1, median_ns: {median_ns}}}\n"
        );
        file(folder.path(), "measured.yaml", &measured);
        let mut watch = optpipe();
        watch.arg("solve").arg(&many).arg("-o").arg(at("schedule.yaml")).args(["--watch=1s", "-q"]);
        watch.arg("--measured").arg(at("measured.yaml")).arg("--problem-out").arg(at("problem.yaml"));
        let output = watch.output().expect("runs");
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains(said) && stderr(&output).contains("left"), "{said}: {}", stderr(&output));
        optpipe().arg("check").arg(&many).arg(at("schedule.yaml")).assert().success();
    }
    let alone = optpipe().arg("solve").arg(instance("a_spec_example")).arg("--watch").output().expect("runs");
    assert_eq!(alone.status.code(), Some(2), "a schedule that is written nowhere");
}

/// Runs a command on a bad file; it must exit with 2 and say all of `expected` on stderr.
fn refuses(command: &mut Command, expected: &[&str]) {
    let output = command.output().expect("runs");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.starts_with("error: "), "{text}");
    for words in expected {
        assert!(text.contains(words), "expected {words:?} in: {text}");
    }
    assert!(stdout(&output).is_empty());
}

#[test]
fn bad_files_are_named_with_field_and_expectation() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path();
    let good = std::fs::read_to_string(instance("a_spec_example")).expect("the example is there");
    let changed = |name: &str, from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        file(path, name, &good.replace(from, to))
    };
    let solve = |input: &Path| {
        let mut command = optpipe();
        command.arg("solve").arg(input);
        command
    };
    // Problems.
    let few = changed("few.yaml", "offload: [150, 150]", "offload: [150]");
    refuses(&mut solve(&few), &["few.yaml:", "time_ns.offload", "expected 2 values", "found 1"]);
    let negative = changed("negative.yaml", "activation: [8, 8]", "activation: [8, -8]");
    refuses(&mut solve(&negative), &["negative.yaml:", "bytes.activation[1]", "expected at least 0, found -8"]);
    let text = changed("text.yaml", "microbatches: 3", "microbatches: three");
    refuses(&mut solve(&text), &["text.yaml:", "microbatches", "three"]);
    // Schedules.
    let mut check = optpipe();
    let letter =
        file(path, "letter.yaml", "makespan_ns: 1\nops:\n  - - {op: X, stage: 0, microbatch: 0, start_ns: 0}\n");
    refuses(check.arg("check").arg(instance("a_spec_example")).arg(&letter), &["letter.yaml:3:", "found X"]);
    let mut check = optpipe();
    let lacks = file(path, "lacks.yaml", "ops: []\n");
    refuses(check.arg("check").arg(instance("a_spec_example")).arg(&lacks), &["lacks.yaml", "makespan_ns"]);
    // Jobs.
    let tune = |text: &str| {
        let mut command = optpipe();
        command.arg("tune").arg(file(path, "job.yaml", text)).arg("--out").arg(path.join("out"));
        command
    };
    refuses(&mut tune("model: llama-15m\nbatch: {microbatches: 0}\n"), &["job.yaml:2", "batch.microbatches"]);
    refuses(&mut tune("model: llama-15m\nmemory_limit: 300 apples\n"), &["job.yaml:2", "memory_limit", "512MiB"]);
    refuses(&mut tune("model: llama-15m\npipelines: {}\n"), &["job.yaml:2", "pipelines"]);
    // A model.
    let model = file(path, "config.json", "{\"architectures\": [\"MambaForCausalLM\"], \"model_type\": \"mamba\"}");
    refuses(&mut tune(&format!("model: {}\n", model.display())), &["config.json", "Mamba", "LlamaForCausalLM"]);
    // Profiles and hardware.
    let job = file(path, "job.yaml", "model: llama-15m\n");
    let profile = file(path, "profile.yaml", "version: 1\nmodel: x\nlayers: 3\n");
    refuses(solve(&profile).arg("--job").arg(&job), &["profile.yaml:3", "layers"]);
    refuses(&mut solve(&profile), &["profile.yaml", "--job"]);
    let hardware = file(path, "hardware.yaml", "version: 1\nbackend: cpu\nclock: monotonic\ndevices: 2\n");
    refuses(solve(&job).arg("--hardware").arg(&hardware), &["hardware.yaml:4", "devices"]);
    // Neither.
    refuses(&mut solve(&file(path, "other.yaml", "hello: world\n")), &["other.yaml", "expected a problem"]);
    refuses(&mut solve(&file(path, "broken.yaml", "a: [1, 2\nb: {")), &["broken.yaml:"]);
    refuses(&mut solve(path), &["expected a file, found a folder"]);
    refuses(&mut solve(&path.join("none.yaml")), &["none.yaml", "cannot read"]);
    // The line to blame is shown, with a mark below.
    let shown = tune("model: llama-15m\nrun:\n  steps: 0 # none\n").output().expect("runs");
    assert!(stderr(&shown).contains("  steps: 0 # none\n"), "{}", stderr(&shown));
    assert!(stderr(&shown).contains("^^^^^^^^\n"), "{}", stderr(&shown));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let schedule = folder.path().join("schedule.yaml").display().to_string();
    let problem = instance("l_p4m5_offload_pays").display().to_string();
    let solve = ["solve", &problem, "--time-limit", "500ms", "-q"];
    optpipe().args(solve).args(["-o", &schedule]).assert().success();
    for words in [
        vec!["schema"],
        vec!["devices"],
        vec!["doctor"],
        vec!["completions", "bash"],
        vec!["check", &problem, &schedule],
        vec!["explain", &schedule, "--problem", &problem],
        vec!["export", &problem, &schedule, "--to", "svg"],
        vec!["export", &problem, &schedule, "--to", "chrome-trace"],
        vec!["export", &problem, &schedule, "--to", "csv"],
        vec!["compare", &problem, "--time-limit", "100ms", "-q"],
        [&solve[..], &["--json"]].concat(),
        vec!["--help"],
    ] {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_optpipe"))
            .args(&words)
            .env("OPTPIPE_CACHE_DIR", no_cache())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        drop(child.stdout.take());
        let mut text = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
        let status = child.wait().expect("ends");
        assert!(status.success() && text.is_empty(), "{words:?}: {status}: {text}");
    }
    // What is found stays the answer: a schedule that breaks a rule, and nobody who reads how.
    let broken = file(folder.path(), "broken.yaml", "makespan_ns: 1\nops: [[], [], [], []]\n").display().to_string();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_optpipe"));
    let mut child = command
        .args(["check", &problem, &broken])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("ends").code(), Some(1));
}
