//! `optpipe doctor`.

use std::fs;
use std::path::Path;
use std::process::Command;

use optpipe_kernels::backend::{self, Backend, BackendKind};
use optpipe_kernels::cpu::{self, CpuBackend};
use optpipe_kernels::cuda::compile::nvrtc_is_present;
use optpipe_profiler::calibrate::gpu;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::text;

/// Say what this machine offers, what is missing, and what would disturb measurements
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing is changed and nothing is measured: it takes a second.

Example:
  optpipe doctor --json")]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Fine,
    /// Not there; the rest works without.
    Missing,
    /// There, but it costs speed or makes times spread.
    Attention,
}

/// What was looked at; `--json` prints a list of these.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Finding {
    /// Its name.
    what: &'static str,
    /// How it stands.
    status: Status,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

fn finding(what: &'static str, status: Status, found: impl Into<String>) -> Finding {
    Finding { what, status, found: found.into(), advice: None }
}

impl Finding {
    fn advice(self, text: impl Into<String>) -> Self {
        Finding { advice: Some(text.into()), ..self }
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let cpu = CpuBackend::new(1).map_err(|e| Error::failed(e.to_string()))?;
    let mut findings = vec![finding(
        "CPU backend",
        Status::Fine,
        format!("{} cores, {} of memory", cpu::cores(), text::bytes(cpu.devices()[0].memory_bytes)),
    )];
    findings.extend(load(fs::read_to_string("/proc/loadavg").ok().as_deref(), cpu::cores()));
    let governor = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    findings.extend(frequency(fs::read_to_string(governor).ok().as_deref()));
    findings.extend(cuda());
    findings.push(python());
    findings.push(cache());
    if args.json {
        return super::emit_json(&findings);
    }
    let mut lines = Vec::new();
    for Finding { what, status, found, advice } in &findings {
        let mark = match status {
            Status::Fine => "fine     ",
            Status::Missing => "missing  ",
            Status::Attention => "attention",
        };
        lines.push(format!("{mark}  {what}: {found}"));
        lines.extend(advice.iter().map(|advice| format!("           {advice}")));
    }
    super::emit_words(&lines.join("\n"))
}

/// What else runs, from the text of /proc/loadavg.
fn load(text: Option<&str>, cores: usize) -> Option<Finding> {
    let load: f64 = text?.split_whitespace().next()?.parse().ok()?;
    let found = format!("{load:.1} processes wanted to run in the last minute, on {cores} cores");
    // Half a core for what always runs.
    Some(if load > 0.5 {
        finding("other work", Status::Attention, found)
            .advice("measure on a quiet machine: times spread with what else runs")
    } else {
        finding("other work", Status::Fine, found)
    })
}

/// Whether the processor keeps its clock, from Linux's name of the policy. Not known on most virtual machines.
fn frequency(governor: Option<&str>) -> Option<Finding> {
    let governor = governor?.trim();
    Some(if governor == "performance" {
        finding("processor's clock", Status::Fine, "policy `performance`")
    } else {
        finding("processor's clock", Status::Attention, format!("policy `{governor}`"))
            .advice("`cpupower frequency-set -g performance` as root makes times on the CPU backend spread less")
    })
}

/// Driver, devices, and what this program can do with them.
fn cuda() -> Vec<Finding> {
    let described = match gpu::describe() {
        Ok((_, described)) => described,
        Err(missing) => {
            return vec![
                finding("NVIDIA GPUs", Status::Missing, missing.to_string())
                    .advice("jobs with `backend: cpu` run here; schedules for GPUs can be solved from their profiles"),
            ];
        }
    };
    let names: Vec<&str> = described.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    let driver = described.software.driver.as_deref().unwrap_or("of unknown version");
    let mut findings = vec![finding("NVIDIA GPUs", Status::Fine, format!("{}; driver {driver}", names.join(", ")))];
    findings.extend(
        gpu::first_verdicts(&described.gpus).into_iter().map(|verdict| finding("GPU", Status::Attention, verdict)),
    );
    findings.push(match backend::open(BackendKind::Cuda, 1) {
        Ok(_) => finding("computing on GPUs", Status::Fine, "this program can profile and run on them"),
        Err(e) => finding("computing on GPUs", Status::Missing, e.to_string()).advice("`make cuda` builds what can"),
    });
    findings.push(if nvrtc_is_present() {
        finding("NVRTC", Status::Fine, "own kernels can be compiled")
    } else {
        finding("NVRTC", Status::Missing, "libnvrtc cannot be loaded: own kernels cannot be compiled")
            .advice("it is part of the CUDA toolkit, and of the wheel nvidia-cuda-nvrtc from PyPI")
    });
    findings
}

/// The trainers that schedules are exported to.
fn python() -> Finding {
    let python = std::env::var_os("OPTPIPE_TORCH_PYTHON").unwrap_or_else(|| "python3".into());
    let name = Path::new(&python).display().to_string();
    let ask = "import importlib.metadata as m; print(m.version('torch'))";
    match Command::new(&python).args(["-c", ask]).output() {
        Ok(output) if output.status.success() => {
            let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            finding("PyTorch", Status::Fine, format!("{version} in {name}"))
        }
        Ok(_) => finding("PyTorch", Status::Missing, format!("{name} does not have it"))
            .advice("only what `optpipe export --to torch` writes needs it; OPTPIPE_TORCH_PYTHON names another Python"),
        Err(e) => finding("PyTorch", Status::Missing, format!("{name} does not start: {e}"))
            .advice("only what `optpipe export --to torch` writes needs it; OPTPIPE_TORCH_PYTHON names another Python"),
    }
}

fn cache() -> Finding {
    let Some(folder) = Cache::of_user().map(|cache| cache.folder().to_owned()) else {
        return finding(
            "cache of solved problems",
            Status::Missing,
            "neither OPTPIPE_CACHE_DIR nor a home folder is set",
        )
        .advice("equal problems are then solved anew each time");
    };
    // The nearest folder that is there decides whether one can be made.
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    match tempfile::tempfile_in(there) {
        Ok(_) => finding("cache of solved problems", Status::Fine, folder.display().to_string()),
        Err(e) => finding("cache of solved problems", Status::Missing, format!("{}: {e}", folder.display()))
            .advice("OPTPIPE_CACHE_DIR names another folder"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_disturbs_measurements_is_named() {
        assert_eq!(load(Some("0.20 0.1 0.1 1/100 7\n"), 2).unwrap().status, Status::Fine);
        let busy = load(Some("3.17 2.00 1.00 2/99 8\n"), 2).unwrap();
        assert_eq!(busy.status, Status::Attention);
        assert!(busy.found.contains("3.2") && busy.advice.unwrap().contains("quiet"));
        assert!(load(Some("what is this"), 2).is_none() && load(None, 2).is_none());
        assert_eq!(frequency(Some("performance\n")).unwrap().status, Status::Fine);
        assert_eq!(frequency(Some("powersave\n")).unwrap().status, Status::Attention);
    }
}
