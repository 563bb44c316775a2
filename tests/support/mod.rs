//! What the end-to-end tests share; each of them uses a part.

#![allow(dead_code)]

pub(crate) mod schema;

use std::path::{Path, PathBuf};

use assert_cmd::Command;

/// The built binary, without the user's cache: tests are neither to see nor to fill it.
pub(crate) fn optpipe() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_optpipe"));
    command.env_remove("OPTPIPE_LOG").env("OPTPIPE_CACHE_DIR", no_cache());
    command
}

/// A cache folder that cannot be made, since a file is in its way.
pub(crate) fn no_cache() -> PathBuf {
    data("tiny/config.json")
}

/// A file of `tests/data`.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(name)
}

/// Writes a file and returns its path.
pub(crate) fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a temporary folder can be written");
    path
}

/// A job of the tiny model on two devices that takes seconds. `more` may set `solver`, `run` and `stop`
/// itself.
pub(crate) fn tiny_job(folder: &Path, more: &str) -> PathBuf {
    let model = data("tiny/config.json");
    let mut text = format!(
        "model: {}\nbatch: {{sequence_length: 32, microbatch_size: 1, microbatches: 4}}\n{more}",
        model.display()
    );
    for (key, default) in [
        ("solver:", "solver: {time_limit: 1s}\n"),
        ("run:", "run: {warmup_steps: 1, steps: 2}\n"),
        ("stop:", "stop: {max_rounds: 2}\n"),
    ] {
        if !more.contains(key) {
            text.push_str(default);
        }
    }
    file(folder, "job.yaml", &text)
}

/// What a command printed on stderr.
pub(crate) fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command printed on stdout.
pub(crate) fn stdout(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
