//! What is told apart between a terminal and a pipe: colours, redrawn lines, widths.

#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{data, file, no_cache, optpipe, stderr, stdout, tiny_job};

/// What a terminal of so many columns is sent, stdout and stderr together.
fn on_terminal(columns: usize, words: &str, environment: &[(&str, &str)]) -> String {
    let binary = env!("CARGO_BIN_EXE_optpipe");
    let mut script = Command::new("script");
    script.args(["-qec", &format!("stty cols {columns} rows 40; exec '{binary}' {words}"), "/dev/null"]);
    script.env_remove("OPTPIPE_LOG").env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").env_remove("COLUMNS");
    script.env("OPTPIPE_CACHE_DIR", no_cache()).env("TERM", "xterm").stdin(Stdio::null());
    stdout(&script.envs(environment.iter().copied()).output().expect("util-linux has script"))
}

/// Whether a text sets colours or the like; moving the cursor is another thing.
fn has_colour(text: &str) -> bool {
    text.split("\x1b[").skip(1).any(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';');
        end.is_some_and(|end| rest[end..].starts_with('m'))
    })
}

#[test]
fn colours_are_for_terminals_unless_no_color_is_set() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let bad = file(folder.path(), "bad.yaml", "devices: 2\nplacement: [0, 1]\nmicrobatches: three\n");
    let good = data("instances/a_spec_example.yaml");
    for (path, words) in [(&good, "DEBUG"), (&bad, "error: ")] {
        let output = optpipe().arg("solve").arg(path).env("OPTPIPE_LOG", "debug").output().expect("runs");
        let text = stderr(&output);
        assert!(text.contains(words), "{text}");
        assert!(!text.contains('\x1b') && !stdout(&output).contains('\x1b'), "{text}");

        let solve = format!("solve -q '{}'", path.display());
        let with = |no_color: Option<&str>| {
            let no_color = no_color.map(|value| ("NO_COLOR", value));
            on_terminal(
                80,
                &solve,
                &[Some(("OPTPIPE_LOG", "debug")), no_color].into_iter().flatten().collect::<Vec<_>>(),
            )
        };
        assert!(has_colour(&with(None)), "{}", with(None));
        assert!(has_colour(&with(Some(""))), "an empty NO_COLOR is none");
        assert!(with(Some("1")).contains(words) && !has_colour(&with(Some("1"))), "{}", with(Some("1")));
    }
}

/// A tune of the tiny model, its files, and what goes with them.
fn tuned(folder: &Path) -> String {
    let job = tiny_job(folder, "stop: {max_rounds: 2, patience: 2}\n");
    let words = |name: &str| format!("--{name} '{}'", data(&format!("tiny/{name}.yaml")).display());
    format!(
        "tune '{}' --out '{}' {} {}",
        job.display(),
        folder.join("out").display(),
        words("profile"),
        words("hardware")
    )
}

#[test]
fn tables_and_sentences_fit_the_terminal() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let out = folder.path().join("out").display().to_string();
    let problem = data("instances/l_p4m5_offload_pays.yaml").display().to_string();
    let runs = [
        (format!("{} -q", tuned(folder.path())), "tokens/s"),
        (format!("explain '{out}/schedule.yaml'"), "microbatches"),
        (format!("compare '{problem}' --time-limit 100ms -q"), "adaptive-offload"),
        (format!("compare '{problem}' --budgets 100ms -q"), "makespan"),
        (format!("check '{out}/problem.yaml' '{out}/schedule.yaml'"), "makespan"),
        ("devices".to_owned(), "backend"),
        ("doctor".to_owned(), "PyTorch"),
    ];
    for (words, whole) in runs {
        let text = on_terminal(60, &words, &[]).replace('\r', "");
        assert!(text.contains(whole), "{whole} in\n{text}");
        for line in text.lines() {
            // A word that has no place to break stands as it is: the folder's name.
            let broken = line.chars().count() <= 60 || !line.trim().contains(' ');
            assert!(broken, "{words}: {} columns: {line}", line.chars().count());
        }
    }
}

#[test]
fn progress_says_how_long_it_may_take() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let words = format!("solve '{}' --time-limit 5s", data("instances/n_p4m8_real_60.yaml").display());
    let drawn = on_terminal(80, &words, &[]);
    // A busy machine may draw neither the first second nor the last.
    let left = (1..=5).filter(|seconds| drawn.contains(&format!(", at most {seconds} s left"))).count();
    assert!(drawn.contains("solving") && left >= 2, "it counts down: {drawn}");

    // In a pipe a line a phase, and none of them again within seconds.
    let tune = tuned(folder.path());
    let output = Command::new("sh")
        .args(["-c", &format!("exec '{}' {tune}", env!("CARGO_BIN_EXE_optpipe"))])
        .env("OPTPIPE_CACHE_DIR", no_cache())
        .output()
        .expect("runs");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    let lines = |start: &str| said.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
    assert!(lines("round 1 of at most 2: solving, at most 1 s left").len() == 1, "{said}");
    let second = lines("round 2 of at most 2: ");
    assert!(!second.is_empty() && second.iter().all(|line| line.ends_with(" left in all")), "{said}");
    assert!(said.lines().count() < 60, "{said}");
}
