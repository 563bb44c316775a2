//! The cache of solved problems on the built binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{data, file, stderr};

/// A solve of a problem with a cache of its own; what `--json` says.
fn solve(cache: &Path, problem: &Path, more: &[&str]) -> serde_json::Value {
    let output = command(cache, problem).args(more).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("stdout is JSON")
}

fn command(cache: &Path, problem: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_optpipe"));
    command.env_remove("OPTPIPE_LOG").env("OPTPIPE_CACHE_DIR", cache).arg("solve").arg(problem).arg("--json");
    command
}

fn instance(name: &str) -> PathBuf {
    data(&format!("instances/{name}.yaml"))
}

fn entries(cache: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(cache.join("v1")).into_iter().flatten().flatten();
    listed.map(|entry| entry.path()).collect()
}

#[test]
fn the_second_solve_is_a_hit_and_a_longer_one_goes_on() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let problem = instance("n_p4m8_real_60");
    let cache = folder.path();
    let first = solve(cache, &problem, &["--time-limit", "200ms"]);
    assert!(first["cache"].is_null());
    assert_eq!(entries(cache).len(), 1);
    let schedule = folder.path().join("schedule.yaml");
    let text = schedule.to_str().expect("UTF-8");
    let second = solve(cache, &problem, &["--time-limit", "200ms", "-o", text]);
    assert_eq!(second["cache"], "exact");
    assert_eq!(second["makespan_ns"], first["makespan_ns"]);
    assert_eq!(second["bound_ns"], first["bound_ns"]);
    crate::support::optpipe().arg("check").arg(&problem).arg(&schedule).assert().success();
    let longer = solve(cache, &problem, &["--time-limit", "600ms"]);
    assert!(longer["cache"] == "shorter" || first["proven"] == true, "{}", longer["cache"]);
    assert!(longer["makespan_ns"].as_i64() <= first["makespan_ns"].as_i64());
    assert!(longer["method"] != "start");

    let output = command(cache, &problem).args(["--time-limit", "100ms"]).output().expect("runs");
    assert!(stderr(&output).contains("cache: solved before"), "{}", stderr(&output));
}

#[test]
fn a_similar_problem_is_a_start() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let cache = folder.path().join("cache");
    let text = std::fs::read_to_string(instance("l_p4m5_offload_pays")).expect("the instance is there");
    solve(&cache, &instance("l_p4m5_offload_pays"), &["--time-limit", "300ms"]);
    assert!(text.contains("forward: [100, "), "{text}");
    let similar = file(folder.path(), "similar.yaml", &text.replacen("forward: [100, ", "forward: [101, ", 1));
    assert_eq!(solve(&cache, &similar, &["--time-limit", "300ms"])["cache"], "near");
    let different = file(folder.path(), "different.yaml", &text.replacen("forward: [100, ", "forward: [300, ", 1));
    assert!(solve(&cache, &different, &["--time-limit", "300ms"])["cache"].is_null());
}

#[test]
fn no_cache_neither_reads_nor_writes() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let problem = instance("a_spec_example");
    let limit = ["--time-limit", "300ms"];
    let without = ["--time-limit", "300ms", "--no-cache"];
    assert!(solve(folder.path(), &problem, &without)["cache"].is_null());
    assert!(entries(folder.path()).is_empty());
    solve(folder.path(), &problem, &limit);
    assert!(solve(folder.path(), &problem, &without)["cache"].is_null());
    assert_eq!(solve(folder.path(), &problem, &limit)["cache"], "exact");
}

#[test]
fn damaged_entries_and_folders_are_no_failure() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let problem = instance("a_spec_example");
    let limit = ["--time-limit", "300ms"];
    let first = solve(folder.path(), &problem, &limit);
    let entry = entries(folder.path()).pop().expect("stored");
    let good = std::fs::read(&entry).expect("an entry");
    for damaged in [&b""[..], b"\xff\xfe\x00", &good[..good.len() - 7], b"hello: world\n"] {
        std::fs::write(&entry, damaged).expect("written");
        let again = solve(folder.path(), &problem, &limit);
        assert!(again["cache"].is_null() && again["makespan_ns"] == first["makespan_ns"]);
    }
    assert_eq!(solve(folder.path(), &problem, &limit)["cache"], "exact", "stored again");
    // A file where the folder should be.
    let blocked = file(folder.path(), "blocked", "");
    assert!(solve(&blocked, &problem, &limit)["cache"].is_null());
}

#[test]
fn two_processes_share_a_folder() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let names = ["a_spec_example", "k_p2v2m3_offload_required"];
    let children: Vec<_> = (0..4)
        .map(|i| {
            let mut command = command(folder.path(), &instance(names[i % 2]));
            command.args(["--time-limit", "300ms", "-q"]).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("starts")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    }
    let stored = entries(folder.path());
    assert_eq!(stored.len(), 2, "one entry a problem and nothing left behind: {stored:?}");
    for name in names {
        assert_eq!(solve(folder.path(), &instance(name), &["--time-limit", "300ms"])["cache"], "exact");
    }
}
