//! `optpipe calibrate`

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_configs::file;
use optpipe_configs::hardware::details::TestStatus;
use optpipe_configs::hardware::{Hardware, Link};
use optpipe_configs::job::Job;
use optpipe_kernels::backend::{BackendError, BackendKind};
use optpipe_kernels::cuda::{self, CudaDevice, CudaError};
use optpipe_profiler::calibrate::gpu::GpuOptions;

use super::gpus;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::tune::{local, machine};
use crate::{table, text};

/// Measure copies between devices and host, alone and under contention
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each link is fitted as latency + bytes / bandwidth; `residual` is the median relative error of the fit.

GPUs are described, too, and measured further: each device's links, who shares a channel with whom, what
copies and matrix products cost one another, with a verdict in words. Nothing else should use them meanwhile.

Example:
  optpipe calibrate --devices 2 -o hardware.yaml
  optpipe calibrate --backend cuda -o hardware.yaml --json
  optpipe calibrate --job job.yaml -o hardware.yaml
  optpipe solve job.yaml --hardware hardware.yaml -o schedule.yaml")]
pub(super) struct Args {
    /// Where to write hardware.yaml; without it only the numbers are printed
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Calibrate this job's devices by its engine: with `run.engine: torch` on the ranks of torchrun
    #[arg(long, conflicts_with_all = ["backend", "devices", "time_limit", "largest"])]
    job: Option<PathBuf>,
    /// `cpu` or `cuda`; without it cuda where there are a driver and a GPU, else cpu
    #[arg(long, value_parser = backend)]
    backend: Option<BackendKind>,
    /// Devices to calibrate; without it all GPUs, or 2 devices of the CPU backend
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    devices: Option<u16>,
    /// GPUs: time for measuring, e.g. `20s` [default: 50s]
    #[arg(long, value_parser = super::duration)]
    time_limit: Option<Duration>,
    /// GPUs: bytes of the largest copies, e.g. `64MiB` [default: 512MiB]
    #[arg(long, value_parser = super::bytes)]
    largest: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

fn backend(name: &str) -> std::result::Result<BackendKind, String> {
    name.parse().map_err(|e: BackendError| e.to_string())
}

pub(super) fn run(args: &Args) -> Result<()> {
    let progress = Progress::new(args.quiet);
    let cancel = interrupt::install();
    let hardware = match &args.job {
        Some(path) => {
            let (job, model) = Job::read(path)?;
            progress.phase("calibrating: copies between device and host");
            machine::open(&job, &model, path, None)?.calibrate(&job, &progress, cancel)?
        }
        None => measured(args, &progress, cancel)?,
    };
    progress.done();
    if let Some(path) = &args.output {
        file::write(path, &hardware).map_err(Error::write)?;
    }
    if args.json {
        super::emit_json(&hardware)?
    } else {
        super::emit_words(&report(&hardware))?
    }
    if let Some(path) = &args.output {
        super::wrote(args.quiet, path.display());
    }
    intact(&hardware)
}

/// By this process.
fn measured(args: &Args, progress: &Progress, cancel: &AtomicBool) -> Result<Hardware> {
    let kind = args.backend.unwrap_or_else(|| {
        let (kind, why) = choice(&cuda::devices());
        progress.line(&format!("backend {kind}: {why}"));
        kind
    });
    let devices = args.devices.map(usize::from);
    match kind {
        BackendKind::Cpu => {
            let mut job = Job::default();
            job.pipeline.devices = devices.unwrap_or(2);
            let backend = local::open(&job)?;
            progress.phase("calibrating: copies between device and host");
            local::calibrate(&*backend, progress, cancel)
        }
        BackendKind::Cuda => {
            let options = options(args)?;
            progress.phase_within("calibrating: opening the devices", options.budget);
            local::calibrate_gpus(devices, &options, progress, cancel)
        }
    }
}

fn options(args: &Args) -> Result<GpuOptions> {
    let mut options = GpuOptions::default();
    if let Some(limit) = args.time_limit {
        options.budget = limit;
    }
    if let Some(largest) = args.largest {
        options.sizes.retain(|&size| size as u64 <= largest);
        if options.sizes.is_empty() {
            return Err(Error::input(format!("--largest: expected 4096 bytes or more, found {largest}")));
        }
    }
    Ok(options)
}

/// The backend where none is asked for, and why.
fn choice(found: &std::result::Result<Vec<CudaDevice>, CudaError>) -> (BackendKind, String) {
    match found {
        Ok(devices) => {
            let names = text::list(devices, |device| device.name.clone());
            (BackendKind::Cuda, format!("found {names} (--backend cpu measures the processor instead)"))
        }
        Err(missing) => (BackendKind::Cpu, missing.to_string()),
    }
}

/// Numbers from copies that did not arrive intact are written, so that they can be looked at, but are no
/// success.
fn intact(hardware: &Hardware) -> Result<()> {
    let tests = hardware.details.iter().flat_map(|details| &details.tests);
    let failed: Vec<String> = tests
        .filter(|test| test.status == TestStatus::Failed)
        .map(|test| format!("{}: {}", test.name, test.reason.as_deref().unwrap_or("no reason")))
        .collect();
    match failed.as_slice() {
        [] => Ok(()),
        [one] => Err(Error::failed(format!("a test failed: {one}"))),
        [first, rest @ ..] => Err(Error::failed(format!("{} tests failed; the first: {first}", rest.len() + 1))),
    }
}

fn report(hardware: &Hardware) -> String {
    let links: [(&str, Option<&Link>); 7] = [
        ("offload alone", Some(&hardware.offload)),
        ("reload alone", Some(&hardware.reload)),
        ("offload, reloading too", Some(&hardware.offload_duplex)),
        ("reload, offloading too", Some(&hardware.reload_duplex)),
        ("offload, neighbour too", hardware.offload_neighbour.as_ref()),
        ("reload, neighbour too", hardware.reload_neighbour.as_ref()),
        ("device to device", Some(&hardware.send)),
    ];
    let rows = links.into_iter().filter_map(|(name, link)| Some((name, link?))).map(|(name, link)| {
        let unstable = link.points.iter().filter(|point| !point.time.stable).count();
        vec![
            name.to_owned(),
            text::duration(link.latency_ns as i64),
            text::rate(link.bytes_per_second),
            text::percent(link.residual),
            link.points.len().to_string(),
            unstable.to_string(),
        ]
    });
    let heading = ["copy", "latency", "bandwidth", "residual", "sizes", "unstable"];
    let mut lines = vec![table::table(heading, rows.collect()).to_string()];
    for (index, device) in hardware.devices.iter().enumerate() {
        lines.push(format!(
            "device {index}: {}, {}, {} cores; offload on channel {}, reload on channel {}",
            device.name,
            text::bytes(device.memory_bytes),
            device.cores,
            hardware.offload_channel[index],
            hardware.reload_channel[index]
        ));
    }
    if let Some(details) = &hardware.details {
        lines.extend(gpus::measured(details));
    }
    lines.push(format!(
        "backend {}, clock {}, took {}",
        hardware.backend,
        hardware.clock,
        text::duration(hardware.cost_ns as i64)
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_chosen_where_there_are_any_and_the_line_says_why() {
        let device = CudaDevice {
            name: "NVIDIA H200".to_owned(),
            memory_bytes: 1 << 37,
            compute_capability: (9, 0),
            multiprocessors: 132,
            driver_version: None,
        };
        let (kind, why) = choice(&Ok(vec![device.clone(), device]));
        assert_eq!(kind, BackendKind::Cuda);
        assert!(why.contains("NVIDIA H200, NVIDIA H200") && why.contains("--backend cpu"), "{why}");
        for missing in [CudaError::NoDriver, CudaError::NoDevices] {
            let (kind, why) = choice(&Err(missing));
            assert_eq!(kind, BackendKind::Cpu);
            assert!(why.contains("NVIDIA driver") && !why.contains('\n'), "{why}");
        }
    }
}
