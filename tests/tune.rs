//! Whole tunes of a tiny model on the built binary: files, resume, interrupts, refusals.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::{data, no_cache, optpipe, stderr, stdout, tiny_job};

const FILES: [&str; 12] = [
    "hardware.yaml",
    "profile.yaml",
    "problem.yaml",
    "schedule.yaml",
    "summary.yaml",
    "trace.json",
    "timeline.svg",
    "report.html",
    "rounds/01/problem.yaml",
    "rounds/01/solve.yaml",
    "rounds/01/measured.yaml",
    "rounds/01/round.yaml",
];

fn assert_complete(out: &Path) {
    for name in FILES {
        assert!(out.join(name).exists(), "{name} is missing");
    }
    optpipe().arg("check").arg(out.join("problem.yaml")).arg(out.join("schedule.yaml")).assert().success();
}

/// Measurements of the tiny model, for tests that are not about measuring.
fn measured() -> [std::ffi::OsString; 4] {
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
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

/// Waits until a file is there; a process that ends before is a failure.
fn wait_for(child: &mut Child, path: &Path) {
    let started = Instant::now();
    while !path.exists() {
        assert!(child.try_wait().expect("a child").is_none(), "ended before {} was there", path.display());
        assert!(started.elapsed() < Duration::from_secs(60), "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn interrupt(child: &Child) {
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.is_ok_and(|status| status.success()));
}

#[test]
fn a_tune_ends_with_a_table_and_every_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (job, out) = (tiny_job(folder.path(), ""), folder.path().join("out"));
    let output = optpipe().arg("tune").arg(&job).arg("--out").arg(&out).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    let table = stdout(&output);
    for words in ["OptPipe", "GPipe", "1F1B", "ZB-H1", "step time, predicted", "step time, measured", "bubble", "peak"]
    {
        assert!(table.contains(words), "{words} in\n{table}");
    }
    assert!(stderr(&output).contains("round 1: predicted"), "{}", stderr(&output));
    assert_complete(&out);
    assert!(out.join("sensitivity.yaml").exists());

    // Finished: resuming shows the same, starting again is refused, another job too.
    let resumed =
        optpipe().arg("tune").arg(&job).arg("--out").arg(&out).args(["--resume", "-q"]).output().expect("runs");
    assert_eq!(stdout(&resumed), table);
    assert!(stderr(&resumed).is_empty(), "quiet: {}", stderr(&resumed));
    let again = optpipe().arg("tune").arg(&job).arg("--out").arg(&out).output().expect("runs");
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("--resume") && stderr(&again).contains("--force"), "{}", stderr(&again));
    let other = tiny_job(folder.path(), "optimizer: sgd\n");
    let resumed = optpipe().arg("tune").arg(&other).arg("--out").arg(&out).arg("--resume").output().expect("runs");
    assert_eq!(resumed.status.code(), Some(2));
    assert!(stderr(&resumed).contains("`optimizer` differs"), "{}", stderr(&resumed));

    // What was measured serves later commands.
    let job = tiny_job(folder.path(), "");
    let schedule = folder.path().join("again.yaml");
    optpipe()
        .arg("solve")
        .arg(out.join("profile.yaml"))
        .arg("--job")
        .arg(&job)
        .arg("--hardware")
        .arg(out.join("hardware.yaml"))
        .args(["--time-limit", "1s", "-o"])
        .arg(&schedule)
        .assert()
        .success();
    let run = optpipe()
        .arg("run")
        .arg(&job)
        .arg(out.join("schedule.yaml"))
        .arg("--problem")
        .arg(out.join("problem.yaml"))
        .output()
        .expect("runs");
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(stdout(&run).contains("tokens/s"), "{}", stdout(&run));
}

#[test]
fn a_killed_tune_resumes() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (job, out) =
        (tiny_job(folder.path(), "run: {textbook: false, steps: 2}\n").to_owned(), folder.path().join("out"));
    // Before, between and after what a tune writes; the last kill comes at no particular moment.
    for moment in ["profile.yaml", "rounds/01/schedule.yaml", "rounds/01/round.yaml"] {
        let mut child = start(&job, &out, &["--resume"]);
        wait_for(&mut child, &out.join(moment));
        child.kill().expect("a child");
        child.wait().expect("a child");
    }
    let mut child = start(&job, &out, &["--resume"]);
    std::thread::sleep(Duration::from_millis(u64::from(std::process::id() % 700)));
    child.kill().expect("a child");
    child.wait().expect("a child");
    optpipe().arg("tune").arg(&job).arg("--out").arg(&out).arg("--resume").args(measured()).assert().success();
    assert_complete(&out);
    let leftovers = std::fs::read_dir(&out)
        .expect("a folder")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".tmp"));
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn ctrl_c_keeps_the_best_and_a_second_tune_is_refused_meanwhile() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // Never converges by itself in the time of a test.
    let more = "run: {textbook: true, steps: 3}\nstop: {max_rounds: 1000, patience: 1000}\n";
    let (job, out) = (tiny_job(folder.path(), more), folder.path().join("out"));
    let mut child = start(&job, &out, &[]);
    wait_for(&mut child, &out.join("rounds/01/round.yaml"));
    let second = optpipe().arg("tune").arg(&job).arg("--out").arg(&out).arg("--resume").output().expect("runs");
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("another tune is working in this folder"), "{}", stderr(&second));
    interrupt(&child);
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("the best so far is in"), "{}", stderr(&output));
    assert!(stdout(&output).contains("Interrupted after"), "{}", stdout(&output));
    assert_complete(&out);
}

#[test]
fn too_little_memory_exits_with_3_and_says_how_much_would_do() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let job = tiny_job(folder.path(), "memory_limit: 300KiB\n");
    let mut command = optpipe();
    command.arg("tune").arg(&job).arg("--out").arg(folder.path().join("out")).args(measured());
    let output = command.output().expect("runs");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(text.contains("lacks") && text.contains("hint: ") && text.contains("memory_limit to at least"), "{text}");
}
