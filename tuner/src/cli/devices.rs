//! `optpipe devices`

use optpipe_configs::hardware::details::{Gpu, Software};
use optpipe_profiler::calibrate::gpu::{self, Relation};
use schemars::JsonSchema;
use serde::Serialize;

use super::gpus;
use crate::error::Result;

/// List the devices that this machine offers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
GPUs are described by the NVIDIA driver, NVML and Linux; what they do not tell is listed with the reason.
Without an NVIDIA driver the CPU backend stands in: its devices are threads with memory limits of
their own, and everything but the speed is real.

Example:
  optpipe devices --json")]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Devices")]
pub(super) struct Found {
    /// Cores of the CPU backend.
    cpu_cores: usize,
    /// Versions of what drives the GPUs, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    software: Option<Software>,
    /// The GPUs.
    cuda: Vec<Gpu>,
    /// Any two of them.
    pairs: Vec<Pair>,
    /// What is not as it should be, in words.
    verdicts: Vec<String>,
    /// Why there are no GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    cuda_missing: Option<String>,
}

/// How two GPUs are connected.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Pair {
    /// Their numbers.
    devices: [usize; 2],
    /// The nearest that they have in common.
    #[serde(skip_serializing_if = "Option::is_none")]
    common_ancestor: Option<String>,
    /// Whether each can read the other's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_access: Option<bool>,
    /// Why one of these is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let cpu_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut lines = vec![format!("backend cpu: {cpu_cores} cores (in a job: `backend: cpu`)")];
    let found = match gpu::describe() {
        Ok((_, described)) => {
            let version = |name: &str, version: &Option<String>| version.as_ref().map(|v| format!("{name} {v}"));
            let software = &described.software;
            let versions: Vec<String> = [
                version("driver", &software.driver),
                version("for CUDA up to", &software.cuda),
                version("NVML", &software.nvml),
            ]
            .into_iter()
            .flatten()
            .collect();
            lines.push(format!("backend cuda: {}", versions.join(", ")));
            lines.extend(described.gpus.iter().flat_map(gpus::description));
            lines.extend(gpus::relations(&described.relations));
            let verdicts = gpu::first_verdicts(&described.gpus);
            lines.extend(verdicts.iter().map(|verdict| format!("- {verdict}")));
            Found {
                cpu_cores,
                software: Some(described.software),
                cuda: described.gpus,
                pairs: described.relations.iter().map(pair).collect(),
                verdicts,
                cuda_missing: None,
            }
        }
        Err(missing) => {
            lines.push(format!("backend cuda: {missing}"));
            let cuda_missing = Some(missing.to_string());
            Found { cpu_cores, software: None, cuda: Vec::new(), pairs: Vec::new(), verdicts: Vec::new(), cuda_missing }
        }
    };
    if args.json { super::emit_json(&found) } else { super::emit_words(&lines.join("\n")) }
}

fn pair(relation: &Relation) -> Pair {
    let reasons = [relation.ancestor.as_ref().err(), relation.peer_access.as_ref().err()];
    Pair {
        devices: [relation.one, relation.other],
        common_ancestor: relation.ancestor.as_ref().ok().map(ToString::to_string),
        peer_access: relation.peer_access.as_ref().ok().copied(),
        unknown: reasons.into_iter().flatten().next().cloned(),
    }
}
