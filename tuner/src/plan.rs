//! From measurements to a problem: stages, their times and bytes, static memory, copies, capacities.
//!
//! - A stage's time is the sum of its layers' median times, its bytes the sums of its layers' bytes.
//! - `static` of a device: weights, gradients and optimizer states of its stages, and the largest
//!   workspace of any of its layers.
//! - Offloads and reloads of a stage are one copy of its offloadable bytes. Its rate is the slowest
//!   of the measured situations that the hardware's channels allow at the same time: the other
//!   direction, where offload and reload have channels of their own, and the neighbouring device,
//!   where it has. In a pipeline in its steady state all of these run together. Where the hardware has
//!   links of each device they count, else those of device 0 for all. Beside compute, which is nearly always, a
//!   copy takes longer by what the calibration measured. What copies cost compute is not in its times: it depends
//!   on how much of an op they cover.
//! - PyTorch has no input gradient of the first stage: there its weight gradient is the whole backward, which
//!   takes the place of B, so W takes no time.
//! - An activation or gradient sent to the next stage is one copy over the link between devices.

use optpipe_configs::file::{Check, Invalid};
use optpipe_configs::hardware::{Hardware, Link};
use optpipe_configs::job::{Backend, Engine, Job, Precision};
use optpipe_configs::memory;
use optpipe_configs::model::Model;
use optpipe_configs::profile::{LayerKind, LayerProfile, Profile};
use optpipe_configs::split;
use optpipe_solver::problem::{Problem, Sizes, Times};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::noise::Spreads;
use crate::text;

/// A problem with how it came about.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The problem.
    pub problem: Problem,
    /// Transformer blocks of each stage.
    pub layer_split: Vec<usize>,
    /// Sequences a microbatch.
    pub microbatch_size: usize,
    /// What each stage holds.
    pub stages: Vec<StagePlan>,
    /// Static memory of each device.
    pub memory: Vec<DeviceMemory>,
}

/// What a stage holds and takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StagePlan {
    /// Its device.
    pub device: usize,
    /// Its layers, as `embedding + 3 blocks`.
    pub layers: String,
    /// Transformer blocks.
    pub blocks: usize,
    /// Parameters (numbers, not bytes).
    pub parameters: u64,
    /// F, ns.
    pub forward_ns: i64,
    /// B, ns.
    pub backward_input_ns: i64,
    /// W, ns.
    pub backward_weight_ns: i64,
    /// Bytes that one microbatch holds from F to B.
    pub activation_bytes: i64,
    /// The part of them that can go to the host.
    pub offloadable_bytes: i64,
}

/// Where a device's static memory goes, bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceMemory {
    /// Weights, at the job's precision.
    pub weights: u64,
    /// Gradients.
    pub gradients: u64,
    /// Optimizer states and master weights.
    pub optimizer: u64,
    /// The largest workspace of one of its layers.
    pub workspace: u64,
    /// The limit that holds on this device.
    pub capacity: u64,
}

impl DeviceMemory {
    /// What is held all the time.
    pub fn static_bytes(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.workspace
    }
}

/// The problem of a job on measured hardware with a measured model.
///
/// # Errors
/// Bad input where profile, hardware and job do not belong together or cannot be split; infeasible
/// where a device cannot hold one microbatch.
pub fn problem(profile: &Profile, hardware: &Hardware, job: &Job, model: &Model) -> Result<Plan> {
    let plan = unlimited(profile, hardware, job, model)?;
    feasible(&plan.problem, &plan.memory)?;
    Ok(plan)
}

/// [`problem`], whether or not the devices' memory suffices for it.
///
/// # Errors
/// Bad input where profile, hardware and job do not belong together or cannot be split.
pub fn unlimited(profile: &Profile, hardware: &Hardware, job: &Job, model: &Model) -> Result<Plan> {
    job.decided().map_err(|invalid| Error::invalid("job", invalid))?;
    same_measurement(profile, hardware, job, model)?;
    let devices = job.pipeline.devices;
    let placement = job.placement();
    let layers = expand(profile);
    let layer_split = match job.layer_split() {
        Some(split) => split.to_vec(),
        None => {
            let times: Vec<u64> = layers.iter().map(|layer| total_ns(layer)).collect();
            split::balance(&times, &placement).map_err(|e| Error::input(format!("pipeline: {e}")))?
        }
    };
    let ranges = split::layer_ranges(&layer_split);
    if ranges.last().map(|range| range.end) != Some(layers.len()) || ranges.len() != placement.len() {
        return Err(Error::invalid(
            "job",
            Invalid::new(
                "pipeline.layer_split",
                format!(
                    "expected {} stages with {} blocks in all, found {layer_split:?}",
                    placement.len(),
                    model.layers
                ),
            ),
        ));
    }

    let copies: Vec<(Vec<&Link>, Vec<&Link>)> = (0..devices).map(|device| copies(hardware, device)).collect();
    let mut t = Times {
        forward: Vec::new(),
        backward_input: Vec::new(),
        backward_weight: Vec::new(),
        send_forward: Vec::new(),
        send_backward: Vec::new(),
        offload: Vec::new(),
        reload: Vec::new(),
    };
    let mut sizes = Sizes {
        activation: Vec::new(),
        weight_context: Vec::new(),
        offloadable: Vec::new(),
        r#static: Vec::new(),
        capacity: Vec::new(),
    };
    let parameters = memory::stage_parameters(model, &layer_split);
    let mut workspace = vec![0; devices];
    let mut stages = Vec::with_capacity(placement.len());
    for (s, range) in ranges.iter().enumerate() {
        let held = &layers[range.clone()];
        let sum = |of: fn(&LayerProfile) -> u64| to_i64(held.iter().map(|layer| of(layer)).sum());
        t.forward.push(sum(|x| x.forward.median_ns));
        let (input, weight) = (sum(|x| x.backward_input.median_ns), sum(|x| x.backward_weight.median_ns));
        let whole = s == 0 && job.run.engine == Engine::Torch;
        t.backward_input.push(if whole { input.saturating_add(weight) } else { input });
        t.backward_weight.push(if whole { 0 } else { weight });
        sizes.activation.push(sum(|x| x.bytes.activation));
        sizes.weight_context.push(sum(|x| x.bytes.weight_context));
        let offloadable: u64 = held.iter().map(|x| x.bytes.offloadable).sum();
        sizes.offloadable.push(to_i64(offloadable));
        let (copy_out, copy_in) = &copies[placement[s]];
        let [beside_out, beside_in] = hardware.copies_beside_compute(placement[s]);
        t.offload.push(scaled(slowest(copy_out, offloadable), beside_out));
        t.reload.push(scaled(slowest(copy_in, offloadable), beside_in));
        if s + 1 < ranges.len() {
            let output = held.last().map_or(0, |layer| layer.bytes.output);
            let (here, there) = (placement[s], placement[s + 1]);
            t.send_forward.push(to_i64(hardware.send_ns(here, there, output)));
            t.send_backward.push(to_i64(hardware.send_ns(there, here, output)));
        }
        let largest = held.iter().map(|layer| layer.bytes.workspace).max().unwrap_or(0);
        let device = placement[s];
        workspace[device] = largest.max(workspace[device]);
        stages.push(StagePlan {
            device,
            layers: name_of(held),
            blocks: layer_split[s],
            parameters: parameters[s],
            forward_ns: t.forward[s],
            backward_input_ns: t.backward_input[s],
            backward_weight_ns: t.backward_weight[s],
            activation_bytes: sizes.activation[s],
            offloadable_bytes: sizes.offloadable[s],
        });
    }

    let capacity = job.capacity_bytes(hardware).map_err(|invalid| Error::invalid("job", invalid))?;
    let by_stage = memory::stages(model, &layer_split, job.precision, job.optimizer);
    let by_device = memory::devices(&by_stage, &placement, devices);
    let memory: Vec<DeviceMemory> = by_device
        .iter()
        .zip(workspace)
        .zip(&capacity)
        .map(|((bytes, workspace), &capacity)| DeviceMemory {
            weights: bytes.weights,
            gradients: bytes.gradients,
            optimizer: bytes.optimizer,
            workspace,
            capacity,
        })
        .collect();
    sizes.r#static = memory.iter().map(|device| to_i64(device.static_bytes())).collect();
    sizes.capacity = capacity.iter().map(|&bytes| to_i64(bytes)).collect();

    let problem = Problem {
        devices,
        placement,
        microbatches: job.batch.microbatches,
        split_backward: job.pipeline.split_backward,
        time_ns: t,
        bytes: sizes,
        offload_channel: hardware.offload_channel[..devices].to_vec(),
        reload_channel: hardware.reload_channel[..devices].to_vec(),
    };
    problem.check().map_err(|invalid| Error::invalid("the problem of this job", invalid))?;
    Ok(Plan { problem, layer_split, microbatch_size: job.microbatch_size(), stages, memory })
}

/// The measured spreads of the ops of a split: those of the layers of each stage, and of the copies.
pub fn spreads(profile: &Profile, hardware: &Hardware, layer_split: &[usize]) -> Spreads {
    let layers = expand(profile);
    let held: Vec<Vec<&LayerProfile>> =
        split::layer_ranges(layer_split).into_iter().map(|range| layers[range].to_vec()).collect();
    Spreads::measured(&held, &hardware.offload, &hardware.reload)
}

/// Infeasible, with what a job can do about it.
fn feasible(problem: &Problem, memory: &[DeviceMemory]) -> Result<()> {
    problem.feasible().map_err(|e| {
        let device = &memory[e.device];
        let hint = format!(
            "device {} holds {} of weights, gradients and optimizer states and {} of workspace all the time; set \
             memory_limit to at least {} bytes ({}), or use more devices, a smaller batch.microbatch_size or \
             batch.sequence_length, or optimizer: sgd",
            e.device,
            text::bytes(device.weights + device.gradients + device.optimizer),
            text::bytes(device.workspace),
            e.needed_bytes,
            text::bytes(e.needed_bytes.unsigned_abs()),
        );
        Error::from(e).hint(hint)
    })
}

/// Whether these numbers were measured for this job.
pub(crate) fn same_measurement(profile: &Profile, hardware: &Hardware, job: &Job, model: &Model) -> Result<()> {
    let differs = |field: &str, expected: String, found: String| {
        Err(Error::input(format!("profile: {field}: expected {expected} as in the job, found {found}"))
            .hint("measure again with `optpipe profile JOB -o profile.yaml`"))
    };
    let backend = match job.backend {
        Backend::Cpu => "cpu",
        Backend::Cuda => "cuda",
    };
    let precision = match job.precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    if profile.sequence_length != job.batch.sequence_length {
        return differs("sequence_length", job.batch.sequence_length.to_string(), profile.sequence_length.to_string());
    }
    if profile.microbatch_size != job.microbatch_size() {
        return differs("microbatch_size", job.microbatch_size().to_string(), profile.microbatch_size.to_string());
    }
    if profile.precision != precision {
        return differs("precision", precision.to_owned(), profile.precision.clone());
    }
    if profile.backend != backend {
        return differs("backend", backend.to_owned(), profile.backend.clone());
    }
    let layers = profile.layers.iter().fold(0_usize, |sum, group| sum.saturating_add(group.count));
    if layers != model.layers + 2 {
        return differs(
            "layers",
            format!("{} layers: embedding, {} blocks, head", model.layers + 2, model.layers),
            layers.to_string(),
        );
    }
    let kinds: Vec<LayerKind> = expand(profile).iter().map(|layer| layer.kind).collect();
    let blocks = kinds.iter().filter(|kind| **kind == LayerKind::Block).count();
    let ends = (kinds.first(), kinds.last());
    if kinds.len() != blocks + 2 || ends != (Some(&LayerKind::Embedding), Some(&LayerKind::Head)) {
        return Err(Error::input("profile: layers: expected one embedding, then the blocks, then one head"));
    }
    let devices = job.pipeline.devices;
    let shortest = hardware.devices.len().min(hardware.offload_channel.len()).min(hardware.reload_channel.len());
    if shortest < devices {
        return Err(Error::input(format!(
            "hardware: devices: expected at least the {devices} of the job's pipeline, found {shortest}"
        ))
        .hint(format!(
            "measure again with `optpipe calibrate --backend {backend} --devices {devices} -o hardware.yaml`"
        )));
    }
    if hardware.backend != backend {
        return Err(Error::input(format!(
            "hardware: backend: expected {backend} as in the job, found {}",
            hardware.backend
        ))
        .hint(format!(
            "measure again with `optpipe calibrate --backend {backend} --devices {devices} -o hardware.yaml`"
        )));
    }
    Ok(())
}

/// One entry a layer.
fn expand(profile: &Profile) -> Vec<&LayerProfile> {
    profile.layers.iter().flat_map(|group| std::iter::repeat_n(group, group.count)).collect()
}

/// All that a layer computes for one microbatch, ns.
pub fn total_ns(layer: &LayerProfile) -> u64 {
    layer
        .forward
        .median_ns
        .saturating_add(layer.backward_input.median_ns)
        .saturating_add(layer.backward_weight.median_ns)
}

/// The links that may limit a device's offloads and reloads; see the module's text.
fn copies(hardware: &Hardware, device: usize) -> (Vec<&Link>, Vec<&Link>) {
    if let Some(own) = hardware.details.as_ref().and_then(|details| details.links.get(device)) {
        let (mut out, mut back) = (vec![&own.offload], vec![&own.reload]);
        if hardware.offload_channel[device] != hardware.reload_channel[device] {
            out.push(&own.offload_duplex);
            back.push(&own.reload_duplex);
        }
        // Measured beside devices on other channels only.
        out.extend(&own.offload_neighbour);
        back.extend(&own.reload_neighbour);
        return (out, back);
    }
    let (mut out, mut back) = (vec![&hardware.offload], vec![&hardware.reload]);
    let both_ways = |(o, r): (&usize, &usize)| o != r;
    if hardware.offload_channel.iter().zip(&hardware.reload_channel).any(both_ways) {
        out.push(&hardware.offload_duplex);
        back.push(&hardware.reload_duplex);
    }
    let private = |channels: &[usize]| channels.windows(2).any(|pair| pair[0] != pair[1]);
    if private(&hardware.offload_channel) {
        out.extend(&hardware.offload_neighbour);
    }
    if private(&hardware.reload_channel) {
        back.extend(&hardware.reload_neighbour);
    }
    (out, back)
}

fn slowest(links: &[&Link], bytes: u64) -> i64 {
    to_i64(links.iter().map(|link| link.copy_ns(bytes)).max().unwrap_or(0))
}

fn scaled(ns: i64, factor: f64) -> i64 {
    (ns as f64 * factor).round() as i64
}

/// Values beyond the range are caught by the problem's own check.
fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// `embedding + 3 blocks`.
fn name_of(layers: &[&LayerProfile]) -> String {
    let blocks = layers.iter().filter(|layer| layer.kind == LayerKind::Block).count();
    let mut parts = Vec::new();
    if layers.first().is_some_and(|layer| layer.kind == LayerKind::Embedding) {
        parts.push("embedding".to_owned());
    }
    match blocks {
        0 => {}
        1 => parts.push("1 block".to_owned()),
        n => parts.push(format!("{n} blocks")),
    }
    if layers.last().is_some_and(|layer| layer.kind == LayerKind::Head) {
        parts.push("head".to_owned());
    }
    parts.join(" + ")
}
