//! Calibration: what copies between devices and host take, alone and against each other.
//!
//! Copies go through [`Backend::offload`] and [`Backend::reload`], the very functions with which a
//! schedule is run. Four situations are measured over a range of sizes:
//!
//! | copies at the same time | gives |
//! | --- | --- |
//! | one | `offload`, `reload` |
//! | an offload and a reload of device 0 | `offload_duplex`, `reload_duplex` |
//! | offloads of devices 0 and 1 | `offload_neighbour` |
//! | reloads of devices 0 and 1 | `reload_neighbour` |
//!
//! Copies against each other run on threads of their own. A sample counts once every thread has
//! copied, and a thread that has enough samples goes on copying until all have: the contention lasts
//! as long as the measurement. Sources and destinations rotate through 32 MiB, so that small copies
//! are not flattered by the caches; memory was written before it is timed, as it was in a pipeline from
//! its second step on.
//!
//! Sending a tensor to the next device means, on the CPU backend, handing its pointer to the thread
//! of that device: no bytes move. What is measured is the time from just before the send to the moment
//! when the receiver, which sleeps in `recv`, holds the tensor. It does not grow with the size; the
//! points show that.

pub mod fit;
pub mod gpu;

use std::collections::VecDeque;
use std::slice::from_ref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use optpipe_configs::hardware::{CopyPoint, Device, Hardware, Link};
use optpipe_kernels::arena::HostTensors;
use optpipe_kernels::backend::Backend;
use optpipe_kernels::copy::CopyError;
use optpipe_kernels::rig::{self, RigError};

use crate::timing::{Collector, Timing, TimingOptions, nanoseconds};

/// Small copies rotate through this many bytes.
const ROTATION: usize = 32 << 20;
/// Before a send, the receiver gets this long to fall asleep.
const DOZE: Duration = Duration::from_micros(100);

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrateOptions {
    /// Bytes a copy, ascending; multiples of 4.
    pub sizes: Vec<usize>,
    /// For each size and situation.
    pub timing: TimingOptions,
}

impl Default for CalibrateOptions {
    /// 64 KiB to 256 MiB in powers of 4: about 10 s and 1.5 GiB of memory on two slow cores.
    fn default() -> Self {
        CalibrateOptions {
            sizes: (0..7).map(|power| (64 << 10) << (2 * power)).collect(),
            timing: TimingOptions {
                window: 2,
                max_warmup: 6,
                min_samples: 7,
                max_samples: 61,
                time_limit: Duration::from_millis(250),
                uncertainty: 0.03,
                drift_tolerance: 0.1,
                ..TimingOptions::default()
            },
        }
    }
}

/// Why there is no calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The caller's flag was set.
    #[error("calibration was cancelled")]
    Cancelled,
    /// No sizes, or some that are no multiples of 4 or not ascending.
    #[error("calibration needs copy sizes in ascending order, multiples of 4 bytes; found {0:?}")]
    Sizes(Vec<usize>),
    /// A copy failed.
    #[error("calibration: {0}")]
    Copy(#[from] CopyError),
    /// A thread could not be started, or died.
    #[error("calibration: a measuring thread failed: {0}")]
    Thread(String),
    /// Work of a GPU cannot be timed.
    #[error("calibration: {work}: {error}")]
    Rig {
        /// The work.
        work: rig::Work,
        /// Why not.
        error: RigError,
    },
    /// Copies that a plan cannot do without cannot be timed.
    #[error("calibration: {what}: {reason}")]
    Required {
        /// The test.
        what: String,
        /// Why not.
        reason: String,
    },
}

impl From<candle_core::Error> for CalibrateError {
    fn from(error: candle_core::Error) -> Self {
        CalibrateError::Copy(error.into())
    }
}

type Result<T> = std::result::Result<T, CalibrateError>;

type CopyResult<T> = std::result::Result<T, CopyError>;

/// On the host, one tensor each.
type Copies = VecDeque<HostTensors>;

/// One copy, timed, ns; called again and again on a thread of its own.
type Work<'a> = Box<dyn FnMut() -> CopyResult<u64> + Send + 'a>;

/// Measures the copies of a backend's devices. `progress` hears what is being measured.
///
/// Nothing else should run meanwhile. Each device gets channels of its own: on the CPU backend copies
/// are threads and share no link but the memory itself, whose contention the `_duplex` and
/// `_neighbour` links show.
///
/// # Errors
/// [`CalibrateError`]; cancelling takes effect within one copy.
pub fn calibrate(
    backend: &dyn Backend,
    options: &CalibrateOptions,
    progress: &mut dyn FnMut(&str),
    cancel: &AtomicBool,
) -> Result<Hardware> {
    let began = Instant::now();
    let sizes = &options.sizes;
    if sizes.is_empty() || sizes.iter().any(|s| s % 4 != 0 || *s == 0) || !sizes.is_sorted() {
        return Err(CalibrateError::Sizes(sizes.clone()));
    }
    let mut bench = Bench { backend, options, progress, cancel };
    let devices = backend.devices();
    let [offload] = bench.links("offload", |bench, size| Ok([bench.offloads(0, size)?]))?;
    let [reload] = bench.links("reload", |bench, size| Ok([bench.reloads(0, size)?]))?;
    let [offload_duplex, reload_duplex] = bench
        .links("offload and reload at once", |bench, size| Ok([bench.offloads(0, size)?, bench.reloads(0, size)?]))?;
    let (mut offload_neighbour, mut reload_neighbour) = (None, None);
    if devices.len() > 1 {
        let [own, _] = bench.links("offload beside a neighbour", |bench, size| {
            Ok([bench.offloads(0, size)?, bench.offloads(1, size)?])
        })?;
        offload_neighbour = Some(own);
        let [own, _] = bench
            .links("reload beside a neighbour", |bench, size| Ok([bench.reloads(0, size)?, bench.reloads(1, size)?]))?;
        reload_neighbour = Some(own);
    }
    let send = bench.send()?;
    backend.trim();
    Ok(Hardware {
        version: 1,
        backend: backend.kind().to_string(),
        clock: backend.clock().to_owned(),
        devices: devices
            .iter()
            .map(|d| Device { name: d.name.clone(), memory_bytes: d.memory_bytes, cores: d.cores })
            .collect(),
        offload,
        reload,
        offload_duplex,
        reload_duplex,
        offload_neighbour,
        reload_neighbour,
        send,
        offload_channel: (0..devices.len()).collect(),
        reload_channel: (devices.len()..2 * devices.len()).collect(),
        cost_ns: nanoseconds(began.elapsed()),
        details: None,
    })
}

struct Bench<'a> {
    backend: &'a dyn Backend,
    options: &'a CalibrateOptions,
    progress: &'a mut dyn FnMut(&str),
    cancel: &'a AtomicBool,
}

impl<'a> Bench<'a> {
    /// The links of works that run against each other, size by size.
    fn links<const N: usize>(
        &mut self,
        what: &str,
        works: impl Fn(&Self, usize) -> Result<[Work<'a>; N]>,
    ) -> Result<[Link; N]> {
        let mut points: [Vec<CopyPoint>; N] = std::array::from_fn(|_| Vec::new());
        for &size in &self.options.sizes {
            (self.progress)(&format!("calibrating: {what}, {} KiB", size >> 10));
            let timings = contend(&self.options.timing, works(self, size)?.into(), self.cancel)?;
            for (points, timing) in points.iter_mut().zip(timings) {
                points.push(CopyPoint { bytes: size as u64, time: timing.sample });
            }
        }
        Ok(points.map(fit::fit))
    }

    fn tensor(&self, device: usize, size: usize) -> candle_core::Result<Tensor> {
        Tensor::ones(size / 4, DType::F32, self.backend.device(device)?)
    }

    /// Tensors that small copies take turns with.
    fn tensors(&self, device: usize, size: usize) -> candle_core::Result<Vec<Tensor>> {
        (0..(ROTATION / size).max(1)).map(|_| self.tensor(device, size)).collect()
    }

    fn offloads(&self, device: usize, size: usize) -> Result<Work<'a>> {
        let backend = self.backend;
        let mut tensors: VecDeque<Tensor> = self.tensors(device, size)?.into();
        // As many host buffers as tensors, all written before: each goes back to the pool one rotation
        // later.
        let mut copies = tensors.iter().map(|t| backend.offload(from_ref(t))).collect::<CopyResult<Copies>>()?;
        Ok(Box::new(move || {
            drop(copies.pop_front());
            tensors.rotate_left(1);
            let start = Instant::now();
            let copy = backend.offload(from_ref(&tensors[0]))?;
            backend.synchronise(device)?;
            let ns = nanoseconds(start.elapsed());
            copies.push_back(copy);
            Ok(ns)
        }))
    }

    fn reloads(&self, device: usize, size: usize) -> Result<Work<'a>> {
        let backend = self.backend;
        let mut tensors: VecDeque<Vec<Tensor>> = self.tensors(device, size)?.into_iter().map(|t| vec![t]).collect();
        let mut copies = tensors.iter().map(|t| backend.offload(t)).collect::<CopyResult<Copies>>()?;
        Ok(Box::new(move || {
            drop(tensors.pop_front());
            copies.rotate_left(1);
            let start = Instant::now();
            let back = backend.reload(&copies[0], device)?;
            backend.synchronise(device)?;
            let ns = nanoseconds(start.elapsed());
            tensors.push_back(back);
            Ok(ns)
        }))
    }

    /// Hands tensors of the smallest, a middle and the largest size to a thread that waits for them.
    fn send(&mut self) -> Result<Link> {
        let sizes = &self.options.sizes;
        let mut chosen = vec![sizes[0], sizes[sizes.len() / 2], sizes[sizes.len() - 1]];
        chosen.dedup();
        let mut points = Vec::new();
        for size in chosen {
            (self.progress)(&format!("calibrating: send, {} KiB", size >> 10));
            let timing = self.handover(self.tensor(0, size)?)?;
            points.push(CopyPoint { bytes: size as u64, time: timing.sample });
        }
        Ok(fit::fit(points))
    }

    fn handover(&self, tensor: Tensor) -> Result<Timing> {
        let (to_device, arriving) = mpsc::channel::<(Instant, Tensor)>();
        let (report, reports) = mpsc::channel::<u64>();
        let died = || CalibrateError::Thread("the receiver of a send has ended".to_owned());
        thread::scope(|scope| {
            thread::Builder::new()
                .name("calibrate-send".to_owned())
                .spawn_scoped(scope, move || {
                    for (sent, tensor) in arriving {
                        let ns = nanoseconds(sent.elapsed());
                        drop(tensor);
                        if report.send(ns).is_err() {
                            break;
                        }
                    }
                })
                .map_err(|e| CalibrateError::Thread(e.to_string()))?;
            let to_device = to_device;
            let mut collector = Collector::new(&self.options.timing);
            while !collector.done() {
                check(self.cancel)?;
                let begin = Instant::now();
                let message = tensor.clone();
                thread::sleep(DOZE);
                to_device.send((Instant::now(), message)).map_err(|_| died())?;
                let ns = reports.recv().map_err(|_| died())?;
                collector.push(ns, nanoseconds(begin.elapsed()));
            }
            Ok(collector.finish())
        })
    }
}

fn check(cancel: &AtomicBool) -> Result<()> {
    if cancel.load(Ordering::Relaxed) { Err(CalibrateError::Cancelled) } else { Ok(()) }
}

/// Repeats every work on its own thread, all at the same time, until all have enough samples.
fn contend(options: &TimingOptions, works: Vec<Work<'_>>, cancel: &AtomicBool) -> Result<Vec<Timing>> {
    let count = works.len();
    let (running, satisfied) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = AtomicBool::new(false);
    let repeat = |mut work: Work<'_>| -> Result<Timing> {
        let mut collector = Collector::new(options);
        let mut enough = false;
        // The first run touches the memory; it tells the others that this one is under way.
        work()?;
        running.fetch_add(1, Ordering::SeqCst);
        while satisfied.load(Ordering::SeqCst) < count {
            check(cancel)?;
            if failed.load(Ordering::SeqCst) {
                break;
            }
            let begin = Instant::now();
            let contended = running.load(Ordering::SeqCst) == count;
            let ns = work()?;
            if contended && !enough {
                collector.push(ns, nanoseconds(begin.elapsed()));
                if collector.done() {
                    enough = true;
                    satisfied.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        Ok(collector.finish())
    };
    let repeat = |work| {
        let result = repeat(work);
        // The others would wait for this one for ever.
        if result.is_err() {
            failed.store(true, Ordering::SeqCst);
        }
        result
    };
    thread::scope(|scope| {
        let threads: Vec<_> = works
            .into_iter()
            .map(|work| {
                thread::Builder::new()
                    .name("calibrate-copy".to_owned())
                    .spawn_scoped(scope, || repeat(work))
                    .inspect_err(|_| failed.store(true, Ordering::SeqCst))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err(CalibrateError::Thread("it panicked".to_owned()))),
                Err(e) => Err(CalibrateError::Thread(e.to_string())),
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use optpipe_kernels::cpu::CpuBackend;

    use super::*;

    fn small() -> CalibrateOptions {
        let timing = TimingOptions {
            min_samples: 3,
            max_samples: 5,
            max_warmup: 1,
            time_limit: Duration::from_millis(5),
            ..TimingOptions::default()
        };
        CalibrateOptions { sizes: vec![4 << 10, 64 << 10, 1 << 20], timing }
    }

    #[test]
    fn every_situation_is_measured_at_every_size() {
        let backend = CpuBackend::new(2).unwrap();
        let mut heard = Vec::new();
        let hardware =
            calibrate(&backend, &small(), &mut |text| heard.push(text.to_owned()), &AtomicBool::new(false)).unwrap();
        assert_eq!((hardware.backend.as_str(), hardware.devices.len()), ("cpu", 2));
        let copies = [
            Some(&hardware.offload),
            Some(&hardware.reload),
            Some(&hardware.offload_duplex),
            Some(&hardware.reload_duplex),
            hardware.offload_neighbour.as_ref(),
            hardware.reload_neighbour.as_ref(),
        ];
        for link in copies {
            let link = link.unwrap();
            let sizes: Vec<usize> = link.points.iter().map(|p| p.bytes as usize).collect();
            assert_eq!(sizes, small().sizes);
            assert!(link.points.iter().all(|p| p.time.count >= 3 && p.time.median_ns > 0));
            assert!(link.latency_ns >= 0.0 && link.bytes_per_second > 0.0);
        }
        assert!(hardware.send.points.iter().all(|p| p.time.median_ns > 0));
        let mut channels = [hardware.offload_channel, hardware.reload_channel].concat();
        channels.sort_unstable();
        channels.dedup();
        assert_eq!(channels.len(), 4);
        assert!(heard.iter().any(|text| text.contains("neighbour")));
        assert_eq!(backend.pool().total_bytes(), 0);
    }

    #[test]
    fn one_device_has_no_neighbour() {
        let backend = CpuBackend::new(1).unwrap();
        let hardware = calibrate(&backend, &small(), &mut |_| {}, &AtomicBool::new(false)).unwrap();
        assert_eq!((hardware.offload_neighbour, hardware.reload_neighbour), (None, None));
    }

    #[test]
    fn cancelling_ends_it() {
        let backend = CpuBackend::new(2).unwrap();
        let error = calibrate(&backend, &small(), &mut |_| {}, &AtomicBool::new(true)).unwrap_err();
        assert!(matches!(error, CalibrateError::Cancelled), "{error}");
    }

    #[test]
    fn sizes_must_make_sense() {
        let backend = CpuBackend::new(1).unwrap();
        for sizes in [vec![], vec![6], vec![8, 4], vec![0, 4]] {
            let options = CalibrateOptions { sizes, ..small() };
            let error = calibrate(&backend, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap_err();
            assert!(matches!(error, CalibrateError::Sizes(_)), "{error}");
        }
    }

    #[test]
    fn a_failing_copy_ends_the_others() {
        let works: Vec<Work<'_>> =
            vec![Box::new(|| Ok(1_000_000)), Box::new(|| Err(CopyError::Dtype(candle_core::DType::I64)))];
        let error = contend(&TimingOptions::default(), works, &AtomicBool::new(false)).unwrap_err();
        assert!(error.to_string().contains("tensors of i64 are not copied"), "{error}");
    }
}
