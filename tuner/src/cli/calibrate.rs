//! `optpipe calibrate`

use std::path::PathBuf;

use optpipe_configs::file;
use optpipe_configs::hardware::{Hardware, Link};
use optpipe_configs::job::Job;

use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::tune::local;
use crate::{table, text};

/// Measure copies between devices and host, alone and under contention
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each link is fitted as latency + bytes / bandwidth; `residual` is the median relative error of the fit.

Example:
  optpipe calibrate --devices 2 -o hardware.yaml
  optpipe solve job.yaml --hardware hardware.yaml -o schedule.yaml")]
pub(super) struct Args {
    /// Where to write hardware.yaml; without it only the numbers are printed
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Devices to calibrate
    #[arg(long, default_value_t = 2)]
    devices: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut job = Job::default();
    job.pipeline.devices = args.devices;
    let progress = Progress::new(args.quiet);
    let cancel = interrupt::install();
    let backend = local::open(&job)?;
    progress.phase("calibrating: copies between device and host");
    let hardware = local::calibrate(&*backend, &progress, cancel)?;
    progress.done();
    if let Some(path) = &args.output {
        file::write(path, &hardware).map_err(Error::write)?;
    }
    if args.json { super::emit_json(&hardware) } else { super::emit(&report(&hardware, args)) }
}

fn report(hardware: &Hardware, args: &Args) -> String {
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
    lines.push(format!(
        "backend {}, clock {}, took {}",
        hardware.backend,
        hardware.clock,
        text::duration(hardware.cost_ns as i64)
    ));
    if let Some(path) = &args.output {
        lines.push(format!("wrote {}", path.display()));
    }
    lines.join("\n")
}
