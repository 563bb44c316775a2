//! The exported example, started as its README says.

use std::path::Path;
use std::process::{Command, Stdio};

use optpipe::measured::Measured;

use super::support::{data, file, optpipe, stderr, stdout};
use super::{Cases, MICROBATCHES, problem, python};

/// The losses that a training prints.
fn losses(output: &std::process::Output) -> Vec<f64> {
    assert!(output.status.success(), "{}", stderr(output));
    let text = stdout(output);
    text.lines().filter_map(|line| line.split_once(": loss ")?.1.parse().ok()).collect()
}

#[test]
fn the_exported_example_trains_the_model_without_a_pipeline_tied_matrix_included() {
    let python = python();
    let cases = Cases::new();
    let tiny = std::fs::read_to_string(data("tiny/config.json")).expect("a model");
    let model = file(
        cases.path(),
        "config.json",
        &tiny.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true"),
    );
    let (problem, schedule) = cases.solve("two", &problem(&[0, 1], 1.6, true));
    let folder = cases.path().join("torch");
    let mut command = optpipe();
    command.arg("export").arg(&problem).arg(&schedule).args(["--to", "torch", "--layer-split", "2,1", "--model"]);
    let exported = command.arg(&model).arg("-o").arg(&folder).output().expect("runs");
    assert!(exported.status.success(), "{}", stderr(&exported));

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/torch/reference.py");
    let reference = Command::new(&python)
        .arg(script)
        .arg(cases.path())
        .args([&MICROBATCHES.to_string(), "16", "4", "0.01"])
        .env("OMP_NUM_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python starts");
    let bin = python.parent().expect("a folder");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let arguments = ["--steps", "4", "--measure-every", "2", "--sequence-length", "16", "--learning-rate", "0.01"];
    let output = Command::new("bash")
        .arg(folder.join("launch.sh"))
        .arg("--model")
        .arg(cases.path())
        .args(arguments)
        .env("PATH", path)
        .env("OMP_NUM_THREADS", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("bash runs");
    let (found, wanted) = (losses(&output), losses(&reference.wait_with_output().expect("ends")));
    assert_eq!((found.len(), wanted.len()), (4, 4), "{}", stderr(&output));
    for (found, wanted) in found.iter().zip(&wanted) {
        assert!((found - wanted).abs() < 1e-4, "{found} in the pipeline, {wanted} without");
    }
    assert!((wanted[3] - wanted[0]).abs() > 1e-2, "weights move: {wanted:?}");
    let text = std::fs::read_to_string(folder.join("measured.yaml")).expect("was written");
    let measured: Measured = serde_yaml::from_str(&text).expect("is measured.yaml");
    assert_eq!((measured.losses.len(), measured.steps_ns.len()), (4, 3));
}

#[test]
fn the_check_for_gpus_runs_as_far_as_it_goes_without_one() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/gpu-torch-check");
    let output = Command::new(python()).arg(script).arg("cpu").env("OMP_NUM_THREADS", "1").output().expect("runs");
    let said = stdout(&output);
    assert!(output.status.success(), "{said}{}", stderr(&output));
    let rows: Vec<[String; 4]> = serde_json::from_str(said.lines().last().unwrap_or_default()).expect("rows");
    let verdict = |what: &str| rows.iter().find(|row| row[0].ends_with(what)).map(|row| row[3].clone());
    assert_eq!(verdict("gradients with offloads").as_deref(), Some("reached"), "{said}");
    assert_eq!(verdict("bandwidth of reloads").as_deref(), Some("NOT RUN"), "{said}");
}
