//! The commands that start the ranks, and what they start: the Python that is brought along.

use std::path::Path;
use std::process::Command;

use optpipe_configs::file;
use optpipe_configs::job::Job;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::export::torch::PACKAGE;

/// Names the Python instead of the job.
const ENVIRONMENT: &str = "OPTPIPE_TORCH_PYTHON";

/// What torchrun starts on every rank, beside [`PACKAGE`].
const HARNESS: [(&str, &str); 10] = [
    ("harness.py", include_str!("../../../python/harness.py")),
    ("optpipe_harness/__init__.py", include_str!("../../../python/optpipe_harness/__init__.py")),
    ("optpipe_harness/calibrate.py", include_str!("../../../python/optpipe_harness/calibrate.py")),
    ("optpipe_harness/control.py", include_str!("../../../python/optpipe_harness/control.py")),
    ("optpipe_harness/layers.py", include_str!("../../../python/optpipe_harness/layers.py")),
    ("optpipe_harness/plain.py", include_str!("../../../python/optpipe_harness/plain.py")),
    ("optpipe_harness/profile.py", include_str!("../../../python/optpipe_harness/profile.py")),
    ("optpipe_harness/run.py", include_str!("../../../python/optpipe_harness/run.py")),
    ("optpipe_harness/serve.py", include_str!("../../../python/optpipe_harness/serve.py")),
    ("optpipe_harness/weights.py", include_str!("../../../python/optpipe_harness/weights.py")),
];

/// Writes the harness and the package `optpipe_torch`.
pub(super) fn write_package(folder: &Path) -> Result<()> {
    for (name, text) in HARNESS {
        file::write_text(&folder.join(name), text).map_err(Error::write)?;
    }
    for (name, text) in PACKAGE {
        file::write_text(&folder.join("optpipe_torch").join(name), text).map_err(Error::write)?;
    }
    Ok(())
}

/// The job's Python, or the environment's.
pub(super) fn python(job: &Job) -> String {
    std::env::var(ENVIRONMENT).ok().filter(|path| !path.is_empty()).unwrap_or_else(|| job.run.python.clone())
}

/// The words of each command that is started here: one, or one a node.
pub(super) fn commands(job: &Job, python: &str, package: &Path, session: &Path, id: &str) -> Vec<Vec<String>> {
    let run = &job.run;
    let launcher = run.launcher.as_deref().unwrap_or_default();
    let starts = if launcher.contains("{node}") { run.nnodes } else { 1 };
    let mut torchrun = vec![python.to_owned(), "-m".to_owned(), "torch.distributed.run".to_owned()];
    torchrun.extend(["--nnodes".to_owned(), run.nnodes.to_string()]);
    torchrun.extend(["--nproc-per-node".to_owned(), job.ranks_per_node().to_string()]);
    torchrun.extend(["--max-restarts".to_owned(), "0".to_owned()]);
    match &run.rdzv_endpoint {
        None => torchrun.push("--standalone".to_owned()),
        Some(endpoint) => torchrun
            .extend(["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", id].map(ToOwned::to_owned)),
    }
    torchrun.extend([path(&package.join("harness.py")), path(session), job.backend.name().to_owned()]);
    torchrun.push(job.run.timeout().map_or(0, |timeout| timeout.as_secs()).to_string());
    // ssh joins its words with blanks and has a shell take them apart again.
    if launcher.split_whitespace().any(|word| Path::new(word).file_name().is_some_and(|name| name == "ssh")) {
        torchrun = torchrun.iter().map(|word| quoted(word)).collect();
    }
    (0..starts)
        .map(|node| {
            let words = launcher.split_whitespace().map(|word| word.replace("{node}", &node.to_string()));
            words.chain(torchrun.iter().cloned()).collect()
        })
        .collect()
}

/// A word as a shell takes it for one.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The parts of a command line in their order.
pub(super) fn command(words: &[String]) -> Command {
    let mut command = Command::new(words.first().map_or("", String::as_str));
    command.args(words.iter().skip(1));
    command
}

/// Finds packages without loading them: that takes seconds.
const LOOK: &str = "
import importlib.util as u, json
print(json.dumps({name: u.find_spec(name) is not None for name in ('torch', 'yaml')}))";

#[derive(Deserialize)]
struct Found {
    torch: bool,
    yaml: bool,
}

/// Whether the job's Python has what the ranks need. Behind a launcher there is another Python: its ranks tell.
pub(super) fn check_python(job: &Job) -> Result<()> {
    if job.run.launcher.is_some() {
        return Ok(());
    }
    let python = python(job);
    let advice = format!(
        "run.engine: torch takes PyTorch 2.7 to 2.15: `{python} -m pip install torch pyyaml`, or name a Python that \
         has them with run.python in the job or {ENVIRONMENT} in the environment"
    );
    let wrong = |what: String| Err(Error::input(format!("run.python: {what}")).hint(advice.clone()));
    let output = match Command::new(&python).args(["-c", LOOK]).output() {
        Ok(output) => output,
        Err(e) => return wrong(format!("cannot run `{python}`: {e}")),
    };
    let found: Option<Found> = serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success());
    match found {
        Some(Found { torch: true, yaml: true }) => Ok(()),
        Some(Found { torch: false, .. }) => wrong(format!("`{python}` has no PyTorch")),
        Some(_) => wrong(format!("`{python}` has no PyYAML")),
        None => {
            let said = String::from_utf8_lossy(&output.stderr);
            wrong(format!("`{python}` is no Python 3: {}", said.lines().last().unwrap_or("it says nothing")))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lines(yaml: &str) -> Vec<String> {
        let text = format!("model: llama-15m\npipeline: {{devices: 4}}\n{yaml}");
        let job: Job =
            file::checked(Path::new("job.yaml"), &text, file::parse(Path::new("job.yaml"), &text).unwrap()).unwrap();
        let commands = commands(&job, "py", Path::new("/p"), Path::new("/s"), "id");
        commands.iter().map(|words| words.join(" ")).collect()
    }

    #[test]
    fn one_node_is_local_and_several_go_through_the_launcher() {
        assert_eq!(
            lines("run: {engine: torch, timeout: 30s}"),
            ["py -m torch.distributed.run --nnodes 1 --nproc-per-node 4 --max-restarts 0 --standalone /p/harness.py \
                 /s cpu 30"]
        );
        let two = "nnodes: 2, rdzv_endpoint: 'n0:29500'";
        let rest = "py -m torch.distributed.run --nnodes 2 --nproc-per-node 2 --max-restarts 0 --rdzv-backend c10d \
                    --rdzv-endpoint n0:29500 --rdzv-id id /p/harness.py /s cpu 600";
        assert_eq!(
            lines(&format!("run: {{engine: torch, {two}, launcher: 'srun --nodes 2'}}")),
            [format!("srun --nodes 2 {rest}")]
        );
        assert_eq!(
            lines(&format!("run: {{engine: torch, {two}, launcher: 'ssh n{{node}}'}}")),
            [format!("ssh n0 {rest}"), format!("ssh n1 {rest}")]
        );
    }

    #[test]
    fn what_ssh_hands_to_a_shell_is_quoted() {
        let text = "model: llama-15m\nrun: {engine: torch, nnodes: 2, rdzv_endpoint: 'n0:29500', \
                    launcher: '/usr/bin/ssh n{node}'}\n";
        let job: Job =
            file::checked(Path::new("job.yaml"), text, file::parse(Path::new("job.yaml"), text).unwrap()).unwrap();
        let commands = commands(&job, "/my envs/it's/python", Path::new("/p"), Path::new("/s s"), "id");
        assert_eq!(commands[1][..3], ["/usr/bin/ssh", "n1", r"'/my envs/it'\''s/python'"]);
        // As the shell at the other end takes them apart.
        let script = format!("printf '%s\\n' {}", commands[0][2..].join(" "));
        let said = Command::new("sh").args(["-c", &script]).output().unwrap();
        let words: Vec<String> = String::from_utf8(said.stdout).unwrap().lines().map(str::to_owned).collect();
        assert_eq!((words[0].as_str(), words.len()), ("/my envs/it's/python", commands[0].len() - 2));
        assert_eq!(words[words.len() - 3], "/s s");
    }

    #[test]
    fn every_python_file_is_brought_along() {
        let folder = tempfile::tempdir().unwrap();
        write_package(folder.path()).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
        for package in ["optpipe_harness", "optpipe_torch"] {
            for entry in std::fs::read_dir(root.join(package)).unwrap().flatten() {
                let name = entry.file_name();
                if name.to_string_lossy().ends_with(".py") {
                    assert!(folder.path().join(package).join(&name).exists(), "{package}/{name:?} is not embedded");
                }
            }
        }
    }
}
