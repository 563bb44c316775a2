//! What the ranks answer: samples, of which profile.yaml and hardware.yaml are made by the statistics that OptPipe
//! has for its own.

use std::path::PathBuf;

use optpipe_configs::file::{self, Check};
use optpipe_configs::hardware::{CopyPoint, Device, Hardware, Link};
use optpipe_configs::job::Job;
use optpipe_configs::model::Model;
use optpipe_configs::profile::{LayerBytes, LayerKind, LayerProfile, Profile, Sample};
use optpipe_profiler::calibrate::CalibrateOptions;
use optpipe_profiler::calibrate::fit::{UNBOUNDED, fit};
use optpipe_profiler::timing::{TimingOptions, Verdict, judge, summarise};
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::measured::Measured;

/// A reply as it came.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its file.
    pub(super) path: PathBuf,
    /// What that holds.
    pub(super) text: String,
    /// Wall time from the request to the reply, ns.
    pub(super) cost_ns: u64,
}

impl Answer {
    fn parsed<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(file::parse(&self.path, &self.text)?)
    }

    fn checked<T: Check>(&self, value: T) -> Result<T> {
        match value.check() {
            Ok(()) => Ok(value),
            Err(invalid) => Err(Error::failed(file::located(&self.path, &self.text, invalid).to_string())),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Layers {
    clock: String,
    layers: Vec<Layer>,
}

#[derive(Debug, Deserialize)]
struct Layer {
    kind: LayerKind,
    /// Forward, backward_input, backward_weight.
    samples_ns: [Vec<u64>; 3],
    bytes: LayerBytes,
    parameters: u64,
}

#[derive(Debug, Deserialize)]
struct Copies {
    clock: String,
    devices: Vec<Device>,
    offload: Vec<Point>,
    reload: Vec<Point>,
    offload_duplex: Vec<Point>,
    reload_duplex: Vec<Point>,
    offload_neighbour: Option<Vec<Point>>,
    reload_neighbour: Option<Vec<Point>>,
    send: Vec<Point>,
}

#[derive(Debug, Deserialize)]
struct Point {
    bytes: u64,
    samples_ns: Vec<u64>,
}

fn sample(times: &[u64], options: &TimingOptions) -> Sample {
    summarise(times, judge(times, options) == Verdict::Stable)
}

fn link(points: Vec<Point>, options: &TimingOptions) -> Link {
    if points.is_empty() {
        // One device sends nothing.
        return Link { latency_ns: 0.0, bytes_per_second: UNBOUNDED, residual: 0.0, points: Vec::new() };
    }
    let point = |point: Point| CopyPoint { bytes: point.bytes, time: sample(&point.samples_ns, options) };
    fit(points.into_iter().map(point).collect())
}

/// `hardware.yaml` of a reply.
pub(super) fn hardware(answer: &Answer, job: &Job) -> Result<Hardware> {
    let body: Copies = answer.parsed()?;
    let options = CalibrateOptions::default().timing;
    let count = body.devices.len();
    let link = |points| link(points, &options);
    answer.checked(Hardware {
        version: file::VERSION,
        backend: job.backend.name().to_owned(),
        clock: body.clock,
        devices: body.devices,
        offload: link(body.offload),
        reload: link(body.reload),
        offload_duplex: link(body.offload_duplex),
        reload_duplex: link(body.reload_duplex),
        offload_neighbour: body.offload_neighbour.map(link),
        reload_neighbour: body.reload_neighbour.map(link),
        send: link(body.send),
        // A neighbour's copies show in its link, whether or not they share a channel.
        offload_channel: (0..count).collect(),
        reload_channel: (count..2 * count).collect(),
        cost_ns: answer.cost_ns,
        details: None,
    })
}

/// `profile.yaml` of a reply.
pub(super) fn profile(answer: &Answer, job: &Job, model: &Model) -> Result<Profile> {
    let body: Layers = answer.parsed()?;
    let options = TimingOptions::default();
    let tied = if model.tied_embeddings { model.projection_parameters() } else { 0 };
    let mut layers = Vec::with_capacity(body.layers.len());
    for layer in body.layers {
        let (expected, count) = match layer.kind {
            LayerKind::Embedding => (model.embedding_parameters(), 1),
            LayerKind::Block => (model.block_parameters(), model.layers),
            LayerKind::Head => (model.head_parameters() + tied, 1),
        };
        if layer.parameters != expected {
            return Err(Error::failed(format!(
                "{:?}: PyTorch's layer has {} parameters, that of {} has {expected}",
                layer.kind, layer.parameters, model.name
            )));
        }
        let [forward, backward_input, backward_weight] = layer.samples_ns.map(|times| sample(&times, &options));
        layers.push(LayerProfile {
            kind: layer.kind,
            count,
            forward,
            backward_input,
            backward_weight,
            bytes: layer.bytes,
            parameters: layer.parameters,
            unexplained_bytes: None,
            conditions: None,
        });
    }
    answer.checked(Profile {
        version: file::VERSION,
        model: model.name.clone(),
        backend: job.backend.name().to_owned(),
        precision: job.precision.name().to_owned(),
        sequence_length: job.batch.sequence_length,
        microbatch_size: job.microbatch_size(),
        clock: body.clock,
        layers,
        cost_ns: answer.cost_ns,
    })
}

/// Whether what was measured is what was to run.
pub(super) fn check_measured(measured: &Measured, problem: &Problem, schedule: &Schedule) -> Result<()> {
    let mut found: Vec<_> = measured.ops.iter().map(|x| (x.device, x.op, x.stage, x.microbatch)).collect();
    let rows = schedule.ops.iter().enumerate();
    let mut wanted: Vec<_> =
        rows.flat_map(|(device, row)| row.iter().map(move |x| (device, x.op, x.stage, x.microbatch))).collect();
    found.sort_unstable();
    wanted.sort_unstable();
    if found == wanted && measured.peak_bytes.len() == problem.devices {
        return Ok(());
    }
    Err(Error::failed(format!(
        "PyTorch measured {} ops on {} ranks, not the {} on {} of the schedule",
        found.len(),
        measured.peak_bytes.len(),
        wanted.len(),
        problem.devices
    )))
}
