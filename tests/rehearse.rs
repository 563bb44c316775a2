//! `optpipe rehearse` on the built binary: the report, the files, what it refuses and how it is interrupted.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::schema::{assert_fits, schema};
use crate::support::{data, no_cache, optpipe, stderr, stdout, tiny_job};
use assert_cmd::Command;

/// A job with its problem and schedule, solved for recorded measurements.
struct Solved {
    folder: tempfile::TempDir,
    job: PathBuf,
}

impl Solved {
    fn new(more: &str) -> Solved {
        let folder = tempfile::tempdir().expect("temporary folder");
        let job = tiny_job(folder.path(), more);
        optpipe()
            .arg("solve")
            .arg(data("tiny/profile.yaml"))
            .arg("--job")
            .arg(&job)
            .arg("--hardware")
            .arg(data("tiny/hardware.yaml"))
            .arg("--problem-out")
            .arg(folder.path().join("problem.yaml"))
            .arg("-o")
            .arg(folder.path().join("schedule.yaml"))
            .args(["--time-limit", "1s", "-q"])
            .assert()
            .success();
        Solved { folder, job }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn rehearse(&self, more: &[&str]) -> Command {
        let mut command = optpipe();
        command.arg("rehearse").arg(&self.job).arg(self.path("schedule.yaml")).args(more);
        command
    }
}

fn read(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("written")).expect("JSON")
}

#[test]
fn a_rehearsal_is_reported_written_and_as_its_schema_says() {
    let solved = Solved::new("");
    let out = solved.path("rehearsed.json");
    let output = solved.rehearse(&["--rounds", "2", "--steps", "1", "-o"]).arg(&out).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    for words in ["step ", "settled ", "rounds", "peak ", "device 1:", "median error", "stage "] {
        assert!(stdout(&output).contains(words), "{words} in\n{}", stdout(&output));
    }
    assert!(stderr(&output).contains("round 1: step "), "{}", stderr(&output));
    let written = read(&out);
    let schema = schema("rehearsed");
    assert_fits(&schema, &written);
    assert_eq!((&written["version"], &written["backend"], &written["steps"]), (&1.into(), &"cpu".into(), &1.into()));
    // Two devices, four microbatches; copies come on top.
    assert!(written["ops"].as_array().expect("a list").len() >= 2 * 4 * 3);
    assert_eq!(written["peak_bytes"].as_array().map(Vec::len), Some(2));

    // The same on stdout, as YAML for readers of YAML, and quiet.
    let yaml = solved.path("rehearsed.yaml");
    let output =
        solved.rehearse(&["--rounds", "1", "--steps", "1", "--json", "-q", "-o"]).arg(&yaml).output().expect("runs");
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_fits(&schema, &printed);
    let text = std::fs::read_to_string(&yaml).expect("written");
    // Drawn like a run.
    let output = optpipe()
        .arg("export")
        .args([solved.path("problem.yaml"), solved.path("schedule.yaml")])
        .args(["--to", "chrome-trace", "--measured"])
        .arg(&yaml)
        .output()
        .expect("runs");
    let trace: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let drawn = format!("\"measured_step_median_ns\":{}", printed["step_ns"]);
    assert!(trace.to_string().contains(&drawn), "{}", stderr(&output));
    assert!(text.contains("version: 1") && text.contains(&format!("step_ns: {}", printed["step_ns"])), "{text}");
}

fn refuses(command: &mut Command, expected: &[&str]) {
    let output = command.output().expect("runs");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.lines().filter(|line| line.starts_with("error: ")).count() == 1, "{text}");
    for words in expected {
        assert!(text.contains(words), "expected {words:?} in: {text}");
    }
    assert!(stdout(&output).is_empty());
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let solved = Solved::new("");
    let other = data("instances/a_spec_example.yaml");
    let other = other.to_str().expect("a path");
    refuses(&mut solved.rehearse(&["-q", "--problem", other]), &["a_spec_example.yaml: expected 2 devices and 4"]);
    // The right numbers and another problem's times.
    let text = std::fs::read_to_string(solved.path("problem.yaml")).expect("solved");
    let changed = text.replacen("microbatches: 4", "microbatches: 4 # changed", 1);
    let at = changed.find("forward:").expect("times");
    let digit = at + changed[at..].find(|c: char| c.is_ascii_digit()).expect("a time");
    let changed = format!("{}1{}", &changed[..digit], &changed[digit..]);
    let path = crate::support::file(solved.folder.path(), "other.yaml", &changed);
    let path = path.to_str().expect("a path");
    refuses(&mut solved.rehearse(&["-q", "--problem", path]), &["the schedule does not fit the problem"]);
    refuses(&mut solved.rehearse(&["--rounds", "0"]), &["--rounds", "0"]);
    refuses(&mut solved.rehearse(&["--tolerance", "much"]), &["--tolerance", "such as 2%"]);
    refuses(&mut solved.rehearse(&["-q", "--steps", "0"]), &["steps: expected at least 1"]);
    std::fs::remove_file(solved.path("problem.yaml")).expect("solved");
    refuses(&mut solved.rehearse(&["-q"]), &["problem.yaml", "cannot read", "--problem"]);
}

#[test]
fn an_interrupt_keeps_whole_rounds() {
    let solved = Solved::new("");
    let out = solved.path("rehearsed.json");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_optpipe"))
        .arg("rehearse")
        .arg(&solved.job)
        .arg(solved.path("schedule.yaml"))
        .args(["--rounds", "100000", "--tolerance", "0.0000001%", "-o"])
        .arg(&out)
        .env("OPTPIPE_CACHE_DIR", no_cache())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().expect("piped")));
    let begun = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("round 2: step"));
    assert!(begun, "ended before its second round");
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.is_ok_and(|status| status.success()));
    let asked = Instant::now();
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().expect("a child").code(), Some(130), "{rest:?}");
    assert!(asked.elapsed() < Duration::from_secs(30));
    assert!(rest.iter().any(|line| line.starts_with("error: interrupted: the times of ")), "{rest:?}");
    let written = read(&out);
    assert_eq!((&written["interrupted"], &written["settled"]), (&true.into(), &false.into()));
    assert!(written["rounds"].as_array().expect("a list").len() >= 2);
}
