//! Structure search, choice under noise and sensitivity on the built binary.

use std::path::{Path, PathBuf};

use crate::support::{data, file, optpipe, stderr, stdout};

fn json(output: &std::process::Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).expect("stdout is JSON")
}

/// A job of the tiny model on two devices.
fn job(folder: &Path, more: &str) -> PathBuf {
    let text = format!("model: {}\n{more}", data("tiny/config.json").display());
    file(folder, "job.yaml", &text)
}

/// The tiny model's profile with times of its layers changed: every block takes `block_ns` for each of
/// its three ops, embedding and head a hundredth of that.
fn profile(folder: &Path, size: usize, block_ns: u64) -> PathBuf {
    let text = std::fs::read_to_string(data("tiny/profile.yaml")).expect("the profile is there");
    let mut value: serde_yaml::Value = serde_yaml::from_str(&text).expect("YAML");
    value["microbatch_size"] = size.into();
    for layer in value["layers"].as_sequence_mut().expect("a list") {
        let ns = if layer["kind"] == "block" { block_ns } else { block_ns / 100 };
        for op in ["forward", "backward_input", "backward_weight"] {
            for (field, ns) in [("median_ns", ns), ("mad_ns", 0), ("p05_ns", ns - ns / 20), ("p95_ns", ns + ns / 10)] {
                layer[op][field] = ns.into();
            }
        }
    }
    file(folder, &format!("profile-{size}.yaml"), &serde_yaml::to_string(&value).expect("YAML"))
}

/// Runs a search of a job with these profiles for two seconds.
fn search(job: &Path, profiles: &[PathBuf], more: &[&str]) -> std::process::Output {
    let mut command = optpipe();
    command.arg("search").arg(job).args(["--time-limit", "2s", "--hardware"]).arg(data("tiny/hardware.yaml"));
    for profile in profiles {
        command.arg("--profile").arg(profile);
    }
    command.args(more).output().expect("runs")
}

#[test]
fn the_better_structure_is_found_and_its_files_fit_together() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name);
    // Two sequences take hardly longer than one, four take four times as long.
    let profiles = [(1, 100_000), (2, 110_000), (4, 400_000)].map(|(size, ns)| profile(folder.path(), size, ns));
    let more = "batch: {sequence_length: 32, microbatch_size: auto, global_batch: 8}\npipeline: {chunks: auto}\n";
    let written = ["-o", "s.yaml", "--problem-out", "p.yaml", "--job-out", "chosen.yaml", "--front", "0"]
        .map(|word| if word.contains('.') { path(word).display().to_string() } else { word.to_owned() });
    let words: Vec<&str> = written.iter().map(String::as_str).chain(["--json"]).collect();
    let value = json(&search(&job(folder.path(), more), &profiles, &words));
    assert_eq!(value["chosen"]["microbatch_size"], 2, "{value}");
    assert_eq!(value["chosen"]["microbatches"], 4);
    let points = value["points"].as_array().expect("a list");
    assert!(points.iter().all(|point| point["times"] == "measured"));
    let best = value["makespan_ns"].as_i64().expect("a number");
    let cut: Vec<_> = points.iter().filter(|point| point["fate"] == "cut_by_bound").collect();
    assert!(!cut.is_empty() && cut.iter().all(|point| point["bound_ns"].as_i64() >= Some(best)), "{value}");

    optpipe().arg("check").arg(path("p.yaml")).arg(path("s.yaml")).assert().success();
    // The written job is the chosen structure: solved by itself it has the same problem.
    let solved = optpipe()
        .arg("solve")
        .arg(path("chosen.yaml"))
        .args(["--time-limit", "1s", "--profile"])
        .arg(&profiles[1])
        .arg("--hardware")
        .arg(data("tiny/hardware.yaml"))
        .arg("--problem-out")
        .arg(path("again.yaml"))
        .output()
        .expect("runs");
    assert!(solved.status.success(), "{}", stderr(&solved));
    let text = |name: &str| std::fs::read_to_string(path(name)).expect("written");
    assert_eq!(text("p.yaml"), text("again.yaml"));
}

#[test]
fn a_front_gains_with_memory_and_what_is_scaled_is_said() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let one = profile(folder.path(), 1, 100_000);
    let more = "batch: {sequence_length: 32, microbatch_size: auto, global_batch: 8}\nmemory_limit: 1MiB\n";
    let path = job(folder.path(), more);
    let value = json(&search(&path, std::slice::from_ref(&one), &["--front", "4", "--json"]));
    let front = value["front"].as_array().expect("a list");
    assert!(front.len() >= 4, "{value}");
    let steps: Vec<i64> = front.iter().filter_map(|point| point["makespan_ns"].as_i64()).collect();
    assert!(steps.len() >= 4 && steps.is_sorted_by(|a, b| a >= b), "{steps:?}");
    let points = value["points"].as_array().expect("a list");
    let scaled = points.iter().filter(|point| point["structure"]["microbatch_size"] != 1);
    assert!(scaled.clone().count() > 0 && scaled.into_iter().all(|point| point["times"]["scaled_from"] == 1));
    let text = stdout(&search(&path, &[one], &["--capacities", "10KiB,1MiB"]));
    assert!(text.contains("are not measured: they are scaled"), "{text}");
    assert!(text.contains("no structure fits") && text.contains("chosen     "), "{text}");
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let one = profile(folder.path(), 1, 100_000);
    let refused = |yaml: &str, profiles: &[PathBuf], more: &[&str], code: i32, words: &[&str]| {
        let output = search(&job(folder.path(), yaml), profiles, more);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(words.iter().all(|words| text.contains(words)), "{text}");
        assert!(stdout(&output).is_empty());
    };
    let batch = "batch: {sequence_length: 32}\n";
    let once = std::slice::from_ref(&one);
    refused("batch: {microbatch_size: auto}\n", once, &[], 2, &["job.yaml:2", "batch.global_batch", "missing"]);
    refused("pipeline: {chunks: many}\n", once, &[], 2, &["job.yaml:2", "pipeline.chunks", "auto or a whole number"]);
    refused(batch, &[one.clone(), one.clone()], &[], 2, &["two profiles with microbatch_size 1"]);
    refused(batch, once, &["--front", "65"], 2, &["--front"]);
    refused(batch, once, &["--capacities", "10 apples"], 2, &["--capacities", "512MiB"]);
    refused(&format!("{batch}memory_limit: 100KiB\n"), once, &[], 3, &["lacks", "memory_limit to at least"]);
    // Elsewhere nothing may be open.
    let open = job(folder.path(), &format!("{batch}pipeline: {{chunks: auto}}\n"));
    let output = optpipe().arg("solve").arg(&open).output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("job.yaml:3") && text.contains("pipeline.chunks") && text.contains("optpipe search"),
        "{text}"
    );
}

#[test]
fn a_tune_decides_what_is_auto() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let more = "batch: {sequence_length: 32, microbatch_size: auto, global_batch: 4}\npipeline: {chunks: auto}\n\
                solver: {time_limit: 1s}\nrun: {warmup_steps: 0, steps: 1, textbook: false}\nstop: {max_rounds: 1}\n";
    let out = folder.path().join("out");
    let path = job(folder.path(), more);
    let tune = |more: &[&str]| {
        let mut command = optpipe();
        command.arg("tune").arg(&path).arg("--out").arg(&out);
        command.arg("--hardware").arg(data("tiny/hardware.yaml")).args(more).output().expect("runs")
    };
    let output = tune(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("structure: "), "{}", stderr(&output));
    let read = |name: &str| std::fs::read_to_string(out.join(name)).expect("written");
    let search: serde_yaml::Value = serde_yaml::from_str(&read("structure/search.yaml")).expect("YAML");
    let schedule: serde_yaml::Value = serde_yaml::from_str(&read("schedule.yaml")).expect("YAML");
    assert_eq!(search["chosen"]["layer_split"], schedule["layer_split"]);
    assert_eq!(search["chosen"]["microbatches"], schedule["microbatches"]);
    let profile: serde_yaml::Value = serde_yaml::from_str(&read("profile.yaml")).expect("YAML");
    assert_eq!(search["chosen"]["microbatch_size"], profile["microbatch_size"]);
    assert!(out.join("structure/profile-2.yaml").exists());
    let resumed = tune(&["--resume", "-q"]);
    assert_eq!(stdout(&resumed), stdout(&output));
}

/// Solves an instance of four devices with memory for about two microbatches each.
fn solve(more: &[&str]) -> std::process::Output {
    let problem = data("instances/n_p4m8_real_60.yaml");
    optpipe().arg("solve").arg(problem).args(more).output().expect("runs")
}

#[test]
fn noise_chooses_by_p90_and_is_repeatable() {
    let noisy = ["--noise", "10%", "--iterations", "200", "--time-limit", "60s", "--json"];
    let [first, second] = [0, 1].map(|_| json(&solve(&noisy)));
    assert_eq!(first["noise"], second["noise"]);
    let noise = &first["noise"];
    let candidates = noise["candidates"].as_array().expect("a list");
    assert!(candidates.len() >= 3, "{noise}");
    let chosen = &candidates[noise["chosen"].as_u64().expect("a number") as usize];
    for candidate in candidates {
        assert!(candidate["p90_ns"].as_i64() >= chosen["p90_ns"].as_i64(), "{noise}");
        assert!(candidate["p50_ns"].as_i64() <= candidate["p90_ns"].as_i64(), "{noise}");
        assert!(candidate["p90_ns"].as_i64() > candidate["makespan_ns"].as_i64(), "{noise}");
    }
    assert_eq!(first["makespan_ns"], chosen["makespan_ns"]);
    for (more, words) in [(["--noise", "profile"], "needs the spreads of a profile"), (["--noise", "5"], "such as 5%")]
    {
        let output = solve(&more);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
    let period = solve(&["--noise", "5%", "--objective", "period"]);
    assert_eq!(period.status.code(), Some(2));
    assert!(stderr(&period).contains("--objective makespan"), "{}", stderr(&period));
}

#[test]
fn noise_is_drawn_from_the_profile() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = job(folder.path(), "batch: {sequence_length: 32, microbatches: 4}\n");
    let mut command = optpipe();
    command.arg("solve").arg(&path).arg("--profile").arg(profile(folder.path(), 1, 100_000)).arg("--hardware");
    command.arg(data("tiny/hardware.yaml")).args(["--noise", "profile", "--time-limit", "1s"]);
    let text = stdout(&command.output().expect("runs"));
    assert!(text.contains("noise      profile, 200 draws") && text.contains("(chosen)"), "{text}");
    assert!(text.contains("p50 with noise") && text.contains("p90 with noise"), "{text}");
}

#[test]
fn sensitivity_is_between_nothing_and_what_the_bound_allows() {
    let value = json(&solve(&["--sensitivity", "--time-limit", "1s", "--json"]));
    let changes = value["sensitivity"]["changes"].as_array().expect("a list");
    assert_eq!(changes.len(), 6, "everywhere, bandwidth, each of four devices");
    for change in changes {
        let [gain, most] = ["gain", "gain_at_most"].map(|name| change[name].as_f64().expect("a number"));
        assert!((0.0..=most + 1e-9).contains(&gain), "{change}");
    }
    let everywhere = changes.iter().find(|change| change["what"] == "memory").expect("there");
    assert_eq!(everywhere["bytes"], 1_u64 << 30);
    let text = stdout(&solve(&["--sensitivity", "--time-limit", "1s"]));
    assert!(text.contains("worth      +1.00 GiB on every device: gain "), "{text}");
    assert!(text.contains("+10 % host bandwidth: gain "), "{text}");
}
