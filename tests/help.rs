//! The examples of every command's help, run as printed.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{data, file, no_cache, optpipe, stderr, stdout, tiny_job};

/// What `--help` lists under `Commands:`.
pub(crate) fn commands() -> Vec<String> {
    let help = optpipe().arg("--help").output().expect("runs");
    let text = stdout(&help);
    let lines = text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // Descriptions that go on stand further to the right.
    let names = lines.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

fn examples(of: &[&str]) -> Vec<String> {
    let help = optpipe().args(of).arg("--help").output().expect("runs");
    assert!(help.status.success());
    stdout(&help).lines().filter_map(|line| line.strip_prefix("  optpipe ")).map(str::to_owned).collect()
}

/// Runs an example with bash in a folder. One that goes on for ever gets Ctrl-C once its schedule is there.
fn run(folder: &Path, example: &str) -> Output {
    let binary = Path::new(env!("CARGO_BIN_EXE_optpipe"));
    let path =
        format!("{}:{}", binary.parent().expect("a folder").display(), std::env::var("PATH").unwrap_or_default());
    let child = Command::new("bash")
        .args(["-c", &format!("exec optpipe {example}")])
        .current_dir(folder)
        .env("PATH", path)
        .env("OPTPIPE_CACHE_DIR", no_cache())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    if example.ends_with("--watch") {
        let begun = Instant::now();
        while !folder.join("live/schedule.yaml").exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "`{example}` writes nothing");
            std::thread::sleep(Duration::from_millis(20));
        }
        let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(killed.is_ok_and(|status| status.success()));
    }
    child.wait_with_output().expect("ends")
}

/// What examples may presume: a job, its measurements, a problem with a schedule.
fn furnish(folder: &Path) {
    std::fs::create_dir_all(folder).expect("a temporary folder can be written");
    tiny_job(folder, "");
    for name in ["profile.yaml", "hardware.yaml"] {
        std::fs::copy(data(&format!("tiny/{name}")), folder.join(name)).expect("copied");
    }
    let profile = std::fs::read_to_string(folder.join("profile.yaml")).expect("text");
    file(folder, "b1.yaml", &profile);
    file(folder, "b2.yaml", &profile.replace("microbatch_size: 1", "microbatch_size: 2"));
    std::fs::copy(data("instances/a_spec_example.yaml"), folder.join("problem.yaml")).expect("copied");
    let output = run(folder, "solve problem.yaml -o schedule.yaml -q");
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn examples_of_the_help_run_as_printed() {
    let scratch = tempfile::tempdir().expect("temporary folder");
    let mut tuned = None;
    for command in commands() {
        let examples = examples(&[&command]);
        assert!(examples.iter().any(|example| example.starts_with(&command)), "{command} has no example of itself");
        let folder = scratch.path().join(&command);
        if examples.iter().any(|example| example.starts_with("init ")) {
            // Begins with nothing; the tune of a whole preset that follows is the main job, and run as such.
            std::fs::create_dir_all(&folder).expect("a temporary folder can be written");
        } else {
            furnish(&folder);
        }
        for example in examples {
            if example.starts_with("tune ") {
                // The same line in several commands' help: run once.
                if folder.join("problem.yaml").exists() {
                    let runs = tuned.get_or_insert_with(|| {
                        let output = run(&folder, &example);
                        assert!(output.status.success(), "{example}: {}", stderr(&output));
                        folder.join("runs")
                    });
                    if !folder.join("runs").exists() {
                        std::os::unix::fs::symlink(runs, folder.join("runs")).expect("a link");
                    }
                }
                continue;
            }
            let output = run(&folder, &example);
            let said = stderr(&output);
            let no_gpu = example.contains("cuda") && said.contains("no NVIDIA driver");
            assert!(output.status.success() || no_gpu, "optpipe {example}\n{said}");
        }
    }
    assert!(tuned.is_some(), "no example tunes");
}

#[test]
fn manual_pages_and_completions_know_every_command() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let written = optpipe().args(["man", "-o"]).arg(folder.path()).output().expect("runs");
    assert!(written.status.success(), "{}", stderr(&written));
    for command in commands() {
        let page = std::fs::read_to_string(folder.path().join(format!("optpipe-{command}.1"))).expect("a page");
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
        for shell in ["bash", "zsh", "fish"] {
            let script = optpipe().args(["completions", shell]).output().expect("runs");
            assert!(stdout(&script).contains(&command), "{shell} completes {command}");
        }
    }
}
