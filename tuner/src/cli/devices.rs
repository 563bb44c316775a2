//! `optpipe devices`

use optpipe_kernels::cuda::{self, CudaDevice};
use serde::Serialize;

use crate::error::Result;
use crate::text;

/// List the devices that this machine offers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without an NVIDIA driver the CPU backend stands in: its devices are threads with memory limits of
their own, and everything but the speed is real.

Example:
  optpipe devices --json")]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Found {
    cpu_cores: usize,
    cuda: Vec<Cuda>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cuda_missing: Option<String>,
}

#[derive(Serialize)]
struct Cuda {
    name: String,
    memory_bytes: u64,
    compute_capability: String,
    multiprocessors: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver_version: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let cpu_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (cuda, cuda_missing) = match cuda::devices() {
        Ok(devices) => (devices.into_iter().map(describe).collect(), None),
        Err(e) => (Vec::new(), Some(e.to_string())),
    };
    let found = Found { cpu_cores, cuda, cuda_missing };
    if args.json {
        return super::emit_json(&found);
    }
    let mut lines = vec![format!("backend cpu: {cpu_cores} cores (in a job: `backend: cpu`)")];
    for (i, device) in found.cuda.iter().enumerate() {
        lines.push(format!(
            "backend cuda: device {i}: {}, {}, compute capability {}, {} multiprocessors",
            device.name,
            text::bytes(device.memory_bytes),
            device.compute_capability,
            device.multiprocessors
        ));
    }
    if let Some(why) = &found.cuda_missing {
        lines.push(format!("backend cuda: {why}"));
    }
    super::emit(&lines.join("\n"))
}

fn describe(device: CudaDevice) -> Cuda {
    let (major, minor) = device.compute_capability;
    Cuda {
        name: device.name,
        memory_bytes: device.memory_bytes,
        compute_capability: format!("{major}.{minor}"),
        multiprocessors: device.multiprocessors,
        driver_version: device.driver_version,
    }
}
