//! What every command prints with `--json` is as its schema says.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::help::commands;
use crate::support::schema::{assert_fits, complaints, schema};
use crate::support::{data, file, optpipe, stderr, stdout, tiny_job};

/// What to run: the name of the schema, the arguments, the exit code.
type Run = (&'static str, &'static str, i32);

/// Every command that has `--json`, in ways that print as much of it as can be had.
const RUNS: [Run; 18] = [
    (
        "solve",
        "solve job.yaml --profile profile.yaml --hardware hardware.yaml --problem-out problem.yaml \
      -o schedule.yaml --time-limit 1s --noise profile --sensitivity",
        0,
    ),
    ("solve", "solve l.yaml --method milp --time-limit 2s", 0),
    ("solve", "solve l.yaml -o watched.yaml --watch=1s", 0),
    ("check", "check problem.yaml schedule.yaml", 0),
    ("check", "check l.yaml schedule.yaml", 1),
    ("explain", "explain schedule.yaml", 0),
    ("compare", "compare l.yaml --time-limit 200ms", 0),
    ("compare-budgets", "compare l.yaml --budgets 100ms,200ms", 0),
    ("search", "search open.yaml --profile profile.yaml --hardware hardware.yaml --time-limit 1s --front 3", 0),
    ("profile", "profile job.yaml", 0),
    ("calibrate", "calibrate --backend cpu --devices 1", 0),
    ("run", "run job.yaml schedule.yaml --problem problem.yaml --steps 1", 0),
    ("rehearse", "rehearse job.yaml schedule.yaml --rounds 1 --steps 1", 0),
    ("tune", "tune job.yaml --out out --profile profile.yaml --hardware hardware.yaml", 0),
    ("devices", "devices", 0),
    ("doctor", "doctor", 0),
    ("search", "search job.yaml --profile profile.yaml --hardware hardware.yaml --time-limit 1s --front 0", 0),
    ("calibrate", "calibrate --job job.yaml", 0),
];

fn furnish(folder: &Path) {
    tiny_job(folder, "stop: {max_rounds: 1}\n");
    let job = std::fs::read_to_string(folder.join("job.yaml")).expect("a job");
    let open = job.replace("microbatch_size: 1, microbatches: 4", "microbatch_size: auto, global_batch: 4");
    file(folder, "open.yaml", &(open + "pipeline: {chunks: auto}\n"));
    for name in ["profile.yaml", "hardware.yaml"] {
        std::fs::copy(data(&format!("tiny/{name}")), folder.join(name)).expect("copied");
    }
    std::fs::copy(data("instances/l_p4m5_offload_pays.yaml"), folder.join("l.yaml")).expect("copied");
}

#[test]
fn what_is_printed_with_json_fits_its_schema() {
    let folder = tempfile::tempdir().expect("temporary folder");
    furnish(folder.path());
    let with_json = commands().into_iter().filter(|command| {
        let help = optpipe().args([command, "--help"]).output().expect("runs");
        stdout(&help).lines().any(|line| line.trim_start().starts_with("--json"))
    });
    for command in with_json {
        assert!(
            RUNS.iter().any(|(_, words, _)| words.starts_with(&format!("{command} ")) || *words == command),
            "{command} is not tried"
        );
    }
    let mut schemas: BTreeMap<&str, Value> = BTreeMap::new();
    for (name, words, code) in RUNS {
        let mut command = optpipe();
        let output =
            command.current_dir(folder.path()).args(words.split_whitespace()).arg("--json").output().expect("runs");
        assert_eq!(output.status.code(), Some(code), "{words}: {}", stderr(&output));
        let schema = schemas.entry(name).or_insert_with(|| schema(&format!("output-{name}")));
        let value: Value = serde_json::from_slice(&output.stdout).expect("stdout is JSON");
        assert_fits(schema, &value);
        // A schema that lets anything pass would be no test.
        let spoilt = match &value {
            Value::Array(list) => Value::Array(list.iter().map(with_another_key).collect()),
            object => with_another_key(object),
        };
        assert!(!complaints(schema, &spoilt).is_empty(), "{name}: the schema takes any key");
        assert!(!complaints(schema, &Value::Null).is_empty() && !complaints(schema, &serde_json::json!({})).is_empty());
    }
}

fn with_another_key(object: &Value) -> Value {
    let mut object = object.clone();
    object["no such key"] = 1.into();
    object
}
