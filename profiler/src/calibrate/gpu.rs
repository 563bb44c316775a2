//! Calibration of GPUs: every copy that a schedule may ask for, alone and against the others, and what
//! copies and computing cost one another.
//!
//! | timed | beside | gives |
//! | --- | --- | --- |
//! | offload, reload of each device | nothing | `offload`, `reload` |
//! | the same | the other direction of the device | `offload_duplex`, `reload_duplex` |
//! | offload, reload of each device | the same of each other device, at one size | who shares a channel |
//! | the same | that of the worst device on another channel | `offload_neighbour`, `reload_neighbour` |
//! | a send to the next device, and between all at one size | nothing | `send` |
//! | matrix products | offloads, reloads, both | slowdown of computing |
//! | offload, reload | matrix products | slowdown of copies |
//!
//! Which devices share a channel is what the copies show, whatever the topology says; the verdicts tell where
//! the two differ. All of it takes a given time at most, device 0 getting the larger part: its links stand
//! at the top of the file.

mod bench;
mod channels;
mod describe;
mod meter;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
mod verdict;

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use optpipe_configs::hardware::details::{Details, Gpu};
use optpipe_configs::hardware::{Device, Hardware};
use optpipe_kernels::rig::{Rig, Work};

pub use describe::{Described, Relation, describe};

use super::{CalibrateError, Result};
use crate::timing::{TimingOptions, nanoseconds};
use bench::{Alone, Bench};
use channels::Direction;
use meter::Meter;

/// What to measure, and in which time.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuOptions {
    /// Bytes a copy, ascending.
    pub sizes: Vec<usize>,
    /// The largest copies of devices other than the first, where there are more than four.
    pub others_largest: usize,
    /// The largest copies that are timed beside another device's, and between devices.
    pub beside_largest: usize,
    /// The largest copies between all pairs and beside products.
    pub pair_bytes: usize,
    /// They take no longer than this alone.
    pub pair_time: Duration,
    /// Copies to warm up.
    pub warmup: usize,
    /// Copies a sample.
    pub copies: usize,
    /// Sizes that are measured even where time is short.
    pub least_points: usize,
    /// Time for all, the setting up of the devices included.
    pub budget: Duration,
    /// For so long a device is kept busy before anything is timed on it.
    pub wake: Duration,
    /// When samples are enough; its warm-up and its time limit are not used.
    pub timing: TimingOptions,
}

impl Default for GpuOptions {
    /// 4 KiB to 512 MiB in powers of 4 and the last one, as nvbandwidth: 4 copies to warm up, samples of 16,
    /// 5 samples or more, in less than a minute.
    fn default() -> Self {
        GpuOptions {
            sizes: (0..9).map(|power| (4 << 10) << (2 * power)).chain([512 << 20]).collect(),
            others_largest: 256 << 20,
            beside_largest: 64 << 20,
            pair_bytes: 64 << 20,
            pair_time: Duration::from_millis(4),
            warmup: 4,
            copies: 16,
            least_points: 4,
            budget: Duration::from_secs(50),
            wake: Duration::from_millis(200),
            timing: TimingOptions {
                max_warmup: 0,
                // Two typical times show from 5 on.
                min_samples: 5,
                max_samples: 15,
                uncertainty: 0.02,
                drift_tolerance: 0.05,
                // A 16th of the events' resolution, which is half a microsecond or better.
                floor_ns: 100,
                ..TimingOptions::default()
            },
        }
    }
}

/// Measures the devices of a rig, which are those that were described, in order.
///
/// # Errors
/// [`CalibrateError`]: cancelled, or copies that a plan cannot do without cannot be timed. What a plan can do
/// without is a failed test in the result instead.
pub fn calibrate(
    described: Described,
    rig: &mut dyn Rig,
    options: &GpuOptions,
    progress: &mut dyn FnMut(&str),
    cancel: &AtomicBool,
) -> Result<Hardware> {
    let began = Instant::now();
    let devices = rig.devices().min(described.gpus.len());
    if devices == 0 || options.sizes.is_empty() || !options.sizes.is_sorted() || options.sizes[0] == 0 {
        return Err(CalibrateError::Sizes(options.sizes.clone()));
    }
    let mut meter = Meter::new(rig, options, bench::all_weights(devices), progress, cancel);
    let mut bench = Bench { sizes: Vec::new(), devices, described };
    for device in 0..devices {
        let sizes = bench.reserve(&mut meter, device)?;
        bench.sizes.push(sizes);
    }
    let alone = bench.alone(&mut meter)?;
    let (offloads, reloads, mut pairs) = bench.pairs(&mut meter, &alone)?;
    let half: Vec<bool> = alone.iter().map(Alone::is_half_duplex).collect();
    let expected = |one, other| {
        let ancestor = bench.described.relation(one, other).and_then(|relation| relation.ancestor.as_ref().ok());
        ancestor.is_some_and(|ancestor| ancestor.shares_uplink())
    };
    let (offload_channel, reload_channel) = channels::channels(&offloads, &reloads, &half, &expected);
    let mut links = Vec::new();
    for (device, alone) in alone.into_iter().enumerate() {
        links.push(bench.beside(
            &mut meter,
            device,
            alone,
            (&offload_channel, &offloads),
            (&reload_channel, &reloads),
        )?);
    }
    let send = match links[0].send.clone() {
        Some(send) => send,
        None => return Err(bench.required(&meter, &Work::Send { from: 0, to: 1 % devices }.to_string())),
    };
    bench.send_rates(&mut meter, &mut pairs)?;
    let mut interference = Vec::new();
    for device in 0..devices {
        interference.extend(bench.interference(&mut meter, device)?);
    }
    let tests = std::mem::take(&mut meter.tests);
    for device in 0..devices {
        meter.rig.release(device);
    }
    let Described { software, mut gpus, relations } = bench.described;
    gpus.truncate(devices);
    let mut details = Details { software, devices: gpus, links, pairs, interference, tests, verdicts: Vec::new() };
    details.verdicts = verdicts(&details, &relations, &offloads, &reloads);
    let first = details.links[0].clone();
    Ok(Hardware {
        version: 1,
        backend: "cuda".to_owned(),
        clock: "cuda events".to_owned(),
        devices: details
            .devices
            .iter()
            .map(|gpu| Device { name: gpu.name.clone(), memory_bytes: gpu.memory_bytes, cores: gpu.multiprocessors })
            .collect(),
        offload: first.offload,
        reload: first.reload,
        offload_duplex: first.offload_duplex,
        reload_duplex: first.reload_duplex,
        offload_neighbour: first.offload_neighbour,
        reload_neighbour: first.reload_neighbour,
        send,
        offload_channel,
        reload_channel,
        cost_ns: nanoseconds(began.elapsed()),
        details: Some(Box::new(details)),
    })
}

fn verdicts(details: &Details, relations: &[Relation], offloads: &Direction, reloads: &Direction) -> Vec<String> {
    let mut lines = Vec::new();
    for (gpu, links) in details.devices.iter().zip(&details.links) {
        lines.extend(verdict::link(gpu));
        lines.extend(verdict::copies(gpu, links));
        lines.extend(verdict::throttled(gpu));
    }
    let combined = |of: &Direction, one, other| channels::combined(&of.alone, &of.shares, one, other);
    for pair in details.pairs.iter().filter(|pair| pair.from < pair.to) {
        let (one, other) = (pair.from, pair.to);
        let expected = relations
            .iter()
            .find(|r| (r.one, r.other) == (one, other))
            .and_then(|r| r.ancestor.as_ref().ok())
            .map(|ancestor| ancestor.shares_uplink());
        lines.extend(verdict::sharing(
            one,
            other,
            pair.common_ancestor.as_deref(),
            expected,
            combined(offloads, one, other),
            combined(reloads, one, other),
        ));
    }
    lines.extend(details.interference.iter().map(verdict::interference));
    lines.extend(verdict::tests(details));
    lines
}

/// How devices compare with what they could be, before anything is measured: at rest their PCIe links run
/// at a lower generation, and only the lanes tell.
pub fn first_verdicts(gpus: &[Gpu]) -> Vec<String> {
    gpus.iter().flat_map(|gpu| [verdict::width(gpu), verdict::throttled(gpu)]).flatten().collect()
}
