//! Profiling: what the layers of a model take, in time and in memory.
//!
//! Layers of equal shape are measured once: the embedding, one block for all blocks, the head.
//!
//! **Memory** is taken first, in a run with nothing else going on. What a forward saves, what of it
//! can be offloaded and what a backward_input leaves are counted from the real tensors; the workspace
//! comes from the counting allocator ([`optpipe_kernels::alloc`]), on a GPU from the driver's pool. What these keep
//! after a forward is held against its tensors: a layer that hides memory from the schedule shows. A device holds, while an operation
//! runs, what the schedule counts as `activation`, the operation's input and output, and temporaries.
//! `workspace` is the most of that beyond `activation`, over the three operations.
//!
//! **Times** come from the three operations in the order in which a pipeline runs them, each on fresh
//! tensors. A backward_weight is taken with the summing of its gradients, as it runs in a pipeline. A GPU
//! stamps them itself, by events, and is kept waiting until it has been given all three, so that the host's
//! launches leave no gaps: a pass in which it went on too early does not count, and the next one waits longer. While it computes, NVML is asked for clocks, temperature and what slows the device, and
//! passes during which something did are counted in the profile. A GPU's L2 cache holds what the operation before left there, as in training.
//! Devices of the CPU backend share the processor's memory bandwidth, its caches, its clock and, if there are
//! more devices than cores, its cores. So while device 0 is measured, the other devices' threads go
//! through the same three operations on layers and tensors of their own, from before the first sample
//! until after the last ([`ProfileOptions::concurrent`]). Devices that share one GPU would take turns on it and
//! measure each other's waiting: of those only one computes ([`Backend::physical`]). A program that runs one thread a device
//! also has to keep tensor operations on their own thread: see [`optpipe_kernels::cpu::init_threads`].

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use optpipe_configs::job::{Job, Precision};
use optpipe_configs::model::Model;
use optpipe_configs::profile::{Conditions, LayerBytes, LayerKind, LayerProfile, Profile};
use optpipe_kernels::alloc::Usage;
use optpipe_kernels::backend::{Backend, Stamp};
use optpipe_kernels::gradient::accumulate;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use crate::conditions::{self, Watch};
use crate::layer::{Layer, Microbatch, Saved, WeightContext, storage_id};
use crate::model::{BuildOptions, build_layer};
use crate::timing::{Collector, Timing, TimingOptions, nanoseconds};

/// How long a GPU is kept waiting at first while it is given the launches of a layer, ns.
const HELD_NS: u64 = 3_000_000;
/// At most: whatever a host needs longer for is no matter of launches.
const MOST_HELD_NS: u64 = 192_000_000;

/// How finely allocators give memory, bytes: CUDA's pools grow by pages of this size.
const GRANULARITY: i64 = 2 << 20;

/// How to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct ProfileOptions {
    /// For each layer kind; its three operations are sampled together, until all three are settled.
    pub timing: TimingOptions,
    /// Devices that compute while device 0 is measured, itself included, as far as each is on hardware of its own.
    /// `None`: all of the job's.
    pub concurrent: Option<usize>,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        let timing =
            TimingOptions { time_limit: Duration::from_secs(6), uncertainty: 0.015, ..TimingOptions::default() };
        ProfileOptions { timing, concurrent: None }
    }
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The caller's flag was set.
    #[error("profiling was cancelled")]
    Cancelled,
    /// The backend does not tell the memory of an operation.
    #[error(
        "profiling cannot measure memory: on the CPU, the program needs optpipe_kernels::alloc::Counting as its global allocator"
    )]
    NotCounting,
    /// A layer cannot be built or run.
    #[error("profiling the {layer}: {source}")]
    Layer {
        /// Which layer.
        layer: &'static str,
        /// What candle reports.
        source: candle_core::Error,
    },
    /// A thread could not be started, or died.
    #[error("profiling: a measuring thread failed: {0}")]
    Thread(String),
}

/// Measures the layers of a model at a job's batch and precision. `progress` hears what is being
/// measured, and of measurements that did not settle.
///
/// # Errors
/// [`ProfileError`]; cancelling takes effect within one pass through a layer.
pub fn profile(
    model: &Model,
    job: &Job,
    backend: &dyn Backend,
    options: &ProfileOptions,
    progress: &mut dyn FnMut(&str),
    cancel: &AtomicBool,
) -> Result<Profile, ProfileError> {
    let began = Instant::now();
    if backend.measure(0, &mut || ()).map_err(|source| ProfileError::Layer { layer: "backend", source })?.is_none() {
        return Err(ProfileError::NotCounting);
    }
    let kinds = [
        (LayerKind::Embedding, "embedding", 0, 1),
        (LayerKind::Block, "block", 1, model.layers),
        (LayerKind::Head, "head", model.layers + 1, 1),
    ];
    let mut layers = Vec::new();
    for (kind, name, index, count) in kinds.into_iter().filter(|kind| kind.3 > 0) {
        let failed = |source| ProfileError::Layer { layer: name, source };
        let subject = Subject { model, job, backend, index };
        progress(&format!("profiling: memory of the {name}"));
        check(cancel)?;
        let (bytes, parameters, unexplained_bytes) = subject.memory().map_err(failed)?;
        if let Some(unexplained) = unexplained_bytes {
            progress(&format!(
                "profiling: {name}: its forward keeps {unexplained} bytes beyond its output and saved tensors"
            ));
        }
        progress(&format!("profiling: times of the {name}"));
        let (times, conditions) = subject.times(options, cancel, name)?;
        for (operation, timing) in ["forward", "backward_input", "backward_weight"].iter().zip(&times) {
            if !timing.sample.stable {
                progress(&format!("profiling: {operation} of the {name} did not settle: {}", timing.verdict));
            }
        }
        if let Some(warning) = conditions.as_ref().and_then(conditions::warning) {
            progress(&format!("profiling: {name}: {warning}"));
        }
        let [forward, backward_input, backward_weight] = times.map(|timing| timing.sample);
        layers.push(LayerProfile {
            kind,
            count,
            forward,
            backward_input,
            backward_weight,
            bytes,
            parameters,
            unexplained_bytes,
            conditions,
        });
    }
    Ok(Profile {
        version: 1,
        model: model.name.clone(),
        backend: backend.kind().to_string(),
        precision: job.precision.name().to_owned(),
        sequence_length: job.batch.sequence_length,
        microbatch_size: job.microbatch_size(),
        clock: backend.clock().to_owned(),
        layers,
        cost_ns: nanoseconds(began.elapsed()),
    })
}

fn check(cancel: &AtomicBool) -> Result<(), ProfileError> {
    if cancel.load(Ordering::Relaxed) { Err(ProfileError::Cancelled) } else { Ok(()) }
}

/// What is measured: layer `index` of a model.
#[derive(Clone, Copy)]
struct Subject<'a> {
    model: &'a Model,
    job: &'a Job,
    backend: &'a dyn Backend,
    index: usize,
}

/// A layer of one device with inputs of its own.
struct Rig {
    layer: Box<dyn Layer>,
    microbatch: Microbatch,
    input: Tensor,
    /// Of the output: `None` for a head, whose output is the loss.
    gradient: Option<Tensor>,
    /// Sums of the parameters' gradients.
    sums: Vec<Tensor>,
    /// How long the device is kept waiting before a pass, ns.
    held_ns: Cell<u64>,
}

impl Subject<'_> {
    fn rig(&self, device: usize) -> candle_core::Result<Rig> {
        let (batch, model) = (&self.job.batch, self.model);
        let place = self.backend.device(device)?;
        let dtype = match self.job.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let seed = self.job.solver.seed.wrapping_add(device as u64);
        let layer = build_layer(model, self.index, &BuildOptions { dtype, seed, device: place.clone() })?;
        let mut rng = Pcg64::seed_from_u64(seed);
        let shape = (self.job.microbatch_size(), batch.sequence_length);
        let mut tokens = || {
            let count = shape.0 * shape.1;
            let vocabulary = u32::try_from(model.vocabulary).unwrap_or(u32::MAX).max(1);
            let tokens: Vec<u32> = (0..count).map(|_| rng.random_range(0..vocabulary)).collect();
            Tensor::from_vec(tokens, shape, place)
        };
        let microbatch = Microbatch { tokens: tokens()?, targets: tokens()? };
        let hidden = (shape.0, shape.1, model.hidden);
        let input = if self.index == 0 {
            Tensor::zeros((), dtype, place)?
        } else {
            uniform(&mut rng, hidden, place)?.to_dtype(dtype)?
        };
        let gradient = if self.index == model.layers + 1 {
            None
        } else {
            Some((uniform(&mut rng, hidden, place)? * 1e-3)?.to_dtype(dtype)?)
        };
        let sums = layer.parameters().into_iter().map(|p| Tensor::zeros(p.shape(), DType::F32, place));
        let sums = sums.collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Rig { layer, microbatch, input, gradient, sums, held_ns: Cell::new(HELD_NS) })
    }

    /// Bytes, parameters of the layer, and what a forward keeps that its tensors do not explain.
    fn memory(&self) -> candle_core::Result<(LayerBytes, u64, Option<i64>)> {
        let rig = self.rig(0)?;
        // What is made once for all (tables, pools) is no part of an operation's memory.
        rig.pass(self.backend, 0, || ())?;
        let input_bytes = bytes_of(&rig.input);
        let ((output, saved), in_forward) = self.measured(|| rig.forward())?;
        let unexplained = unexplained(in_forward.kept_bytes, rig.kept_bytes(&output, &saved));
        let gradient = rig.gradient_of(&output)?;
        let (output_bytes, saved_bytes) = (bytes_of(&output), saved.bytes());
        let offloadable = saved.offloadable_bytes();
        drop(output);
        let ((by_input, context), in_backward_input) = self.measured(|| rig.backward_input(saved, &gradient))?;
        drop(by_input);
        let weight_context = context.bytes();
        let ((), in_backward_weight) = self.measured(|| rig.backward_weight(context))?;
        let activation = saved_bytes.max(weight_context);
        // What lived before each operation on its behalf, and what it allocated on top.
        let most = [
            input_bytes + in_forward.peak_bytes,
            saved_bytes + bytes_of(&gradient) + in_backward_input.peak_bytes,
            weight_context + in_backward_weight.peak_bytes,
        ];
        let workspace = most.into_iter().max().unwrap_or(0).saturating_sub(activation);
        let parameters = rig.layer.parameters().iter().map(|p| p.elem_count() as u64).sum();
        let bytes = LayerBytes { activation, weight_context, offloadable, output: output_bytes, workspace };
        Ok((bytes, parameters, unexplained))
    }

    /// Runs an operation on device 0; its result, and the memory that it took.
    fn measured<T>(&self, operation: impl FnOnce() -> candle_core::Result<T>) -> candle_core::Result<(T, Usage)> {
        let (mut operation, mut result) = (Some(operation), None);
        let usage = self.backend.measure(0, &mut || result = operation.take().map(|operation| operation()))?;
        match (result, usage) {
            (Some(result), Some(usage)) => Ok((result?, usage)),
            _ => candle_core::bail!("the backend did not run an operation that it was to measure"),
        }
    }

    /// Times of forward, backward_input and backward_weight on device 0 while the others compute, too, and
    /// the conditions under which they were taken.
    fn times(
        &self,
        options: &ProfileOptions,
        cancel: &AtomicBool,
        name: &'static str,
    ) -> Result<([Timing; 3], Option<Conditions>), ProfileError> {
        let failed = |source| ProfileError::Layer { layer: name, source };
        let others = beside(options.concurrent.unwrap_or(self.job.pipeline.devices), |d| self.backend.physical(d));
        let (over, ready) = (AtomicBool::new(false), AtomicUsize::new(0));
        let load = |device: usize| {
            // Ready in any case: an error ends the measurement by itself, waiting would not.
            let rig = self.rig(device).and_then(|rig| rig.pass(self.backend, device, || ()).map(|_| rig));
            ready.fetch_add(1, Ordering::SeqCst);
            let rig = rig?;
            while !over.load(Ordering::Relaxed) {
                rig.pass(self.backend, device, || ())?;
            }
            candle_core::Result::Ok(())
        };
        let measured = || {
            let rig = self.rig(0).map_err(failed)?;
            let mut collectors = [(); 3].map(|()| Collector::new(&options.timing));
            let mut watch = Watch::default();
            while ready.load(Ordering::SeqCst) < others.len() {
                check(cancel)?;
                rig.pass(self.backend, 0, || ()).map_err(failed)?;
            }
            while !collectors.iter().all(Collector::done) {
                check(cancel)?;
                let begin = Instant::now();
                let ask = || watch.push(self.backend.conditions(0));
                let Some(times) = rig.pass(self.backend, 0, ask).map_err(failed)? else { continue };
                let cost = nanoseconds(begin.elapsed());
                for (collector, ns) in collectors.iter_mut().zip(times) {
                    collector.push(ns, cost);
                }
            }
            Ok((collectors.map(|collector| collector.finish()), watch.finish()))
        };
        thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut started = Ok(());
            for &device in &others {
                let builder = thread::Builder::new().name(format!("profile-{device}"));
                let load = &load;
                match builder.spawn_scoped(scope, move || load(device)) {
                    Ok(thread) => threads.push(thread),
                    Err(e) => started = Err(ProfileError::Thread(e.to_string())),
                }
            }
            let times = started.and_then(|()| measured());
            over.store(true, Ordering::Relaxed);
            for thread in threads {
                let result = thread.join().map_err(|_| ProfileError::Thread("it panicked".to_owned()))?;
                result.map_err(failed)?;
            }
            times
        })
    }
}

impl Rig {
    /// One pass through the three operations on a device; what each took there, ns. All of it is given to the
    /// device before it starts, so that none of the times has gaps of the host's; `None` where it did start before,
    /// and will be kept waiting longer the next time. `meanwhile` runs while a device that is not the host computes.
    fn pass(
        &self,
        backend: &dyn Backend,
        device: usize,
        meanwhile: impl FnOnce(),
    ) -> candle_core::Result<Option<[u64; 3]>> {
        let held_ns = self.held_ns.get();
        let going_on = backend.hold(device, held_ns)?;
        let stamp = || backend.stamp(device);
        let start = stamp()?;
        let (output, saved) = self.forward()?;
        let forward = [start, stamp()?];
        let gradient = self.gradient_of(&output)?;
        drop(output);
        let start = stamp()?;
        let (by_input, context) = self.backward_input(saved, &gradient)?;
        let backward_input = [start, stamp()?];
        drop((by_input, gradient));
        let start = stamp()?;
        self.backward_weight(context)?;
        let backward_weight = [start, stamp()?];
        let too_early = going_on.is_some_and(|moment| moment.has_come().unwrap_or(true));
        meanwhile();
        backend.synchronise(device)?;
        if too_early {
            if held_ns >= MOST_HELD_NS {
                candle_core::bail!("the host takes more than {} ms to launch the layer", held_ns / 1_000_000);
            }
            self.held_ns.set(2 * held_ns);
            return Ok(None);
        }
        let took = |[from, to]: &[Stamp; 2]| from.until(to);
        Ok(Some([took(&forward)?, took(&backward_input)?, took(&backward_weight)?]))
    }

    fn forward(&self) -> candle_core::Result<(Tensor, Saved)> {
        self.layer.forward(&self.input, &self.microbatch)
    }

    /// Bytes of what a forward made and left: its output and its saved tensors, but for the memory of its input.
    fn kept_bytes(&self, output: &Tensor, saved: &Saved) -> u64 {
        let Microbatch { tokens, targets } = &self.microbatch;
        let mut seen = [&self.input, tokens, targets].map(storage_id).to_vec();
        let mut bytes = 0;
        for tensor in std::iter::once(output).chain(saved.0.iter().map(|saved| &saved.tensor)) {
            if !seen.contains(&storage_id(tensor)) {
                seen.push(storage_id(tensor));
                bytes += bytes_of(tensor);
            }
        }
        bytes
    }

    /// The gradient of the loss by the output: 1 if the output is the loss.
    fn gradient_of(&self, output: &Tensor) -> candle_core::Result<Tensor> {
        self.gradient.clone().map_or_else(|| output.ones_like(), Ok)
    }

    fn backward_input(&self, saved: Saved, gradient: &Tensor) -> candle_core::Result<(Option<Tensor>, WeightContext)> {
        self.layer.backward_input(saved, gradient, &self.microbatch)
    }

    fn backward_weight(&self, context: WeightContext) -> candle_core::Result<()> {
        let gradients = self.layer.backward_weight(context, &self.microbatch)?;
        self.sums.iter().zip(&gradients).try_for_each(|(sum, gradient)| accumulate(sum, gradient, false))
    }
}

/// What an allocator kept beyond the bytes of tensors, if that is more than how finely it allocates.
fn unexplained(kept: i64, tensors: u64) -> Option<i64> {
    let beyond = kept.saturating_sub_unsigned(tensors);
    (beyond.abs() > GRANULARITY).then_some(beyond)
}

/// Of so many devices those that compute beside device 0 on hardware that neither it nor one before them is on.
fn beside(devices: usize, physical: impl Fn(usize) -> usize) -> Vec<usize> {
    let (mut taken, mut list) = (vec![physical(0)], Vec::new());
    for device in 1..devices {
        let own = physical(device);
        if !taken.contains(&own) {
            taken.push(own);
            list.push(device);
        }
    }
    list
}

/// Numbers between -1 and 1.
fn uniform(rng: &mut Pcg64, shape: (usize, usize, usize), device: &Device) -> candle_core::Result<Tensor> {
    let numbers: Vec<f32> = (0..shape.0 * shape.1 * shape.2).map(|_| 2.0 * rng.random::<f32>() - 1.0).collect();
    Tensor::from_vec(numbers, shape, device)
}

fn bytes_of(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
