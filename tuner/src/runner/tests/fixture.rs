//! Tiny models, their problems, and orders with offloads.
//!
//! Runs are on this machine's processor, or, with OPTPIPE_TEST_DEVICE=cuda, on its GPUs.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use candle_core::Tensor;
use optpipe_configs::job::{Optimizer, Precision};
use optpipe_configs::{memory, model::Model, split};
use optpipe_kernels::backend::{Backend, BackendKind, open};
use optpipe_kernels::cpu::CpuBackend;
use optpipe_profiler::model::{BuildOptions, build};
use optpipe_solver::order::Order;
use optpipe_solver::problem::{Problem, Sizes, Times};
use optpipe_solver::schedule::{Op, OpKind};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::super::data;

pub(in super::super) const SHAPE: (usize, usize) = (2, 8);

/// A model of a known family, shrunk to nothing.
pub(in super::super) fn tiny(preset: &str, layers: usize, tied: bool) -> Model {
    let mut model = Model::read(preset, None).unwrap();
    (model.hidden, model.layers, model.heads, model.kv_heads, model.head_dim) = (16, layers, 2, 2, 8);
    (model.intermediate, model.vocabulary, model.max_positions) = (24, 40, 16);
    model.tied_embeddings = tied;
    model
}

/// Where the environment wants tests to run.
pub(super) static KIND: LazyLock<BackendKind> = LazyLock::new(|| {
    std::env::var("OPTPIPE_TEST_DEVICE").map_or(BackendKind::Cpu, |name| name.parse().unwrap_or_else(|e| panic!("{e}")))
});

/// Part of the whole by which a gradient or a loss may differ from the model's without a pipeline: on a GPU, whose
/// products sum in another order than the processor's that they are compared with, by rounding in f32.
pub(super) fn tolerance() -> f64 {
    if *KIND == BackendKind::Cpu { 1e-5 } else { 1e-4 }
}

pub(in super::super) fn backend(devices: usize) -> Arc<dyn Backend> {
    // Opening GPUs takes longer than a test.
    static OPENED: LazyLock<Mutex<HashMap<usize, Arc<dyn Backend>>>> = LazyLock::new(Mutex::default);
    match *KIND {
        BackendKind::Cpu => Arc::new(CpuBackend::new(devices).unwrap()),
        kind => Arc::clone(OPENED.lock().unwrap().entry(devices).or_insert_with(|| open(kind, devices).unwrap())),
    }
}

/// Saved bytes, context bytes and offloadable bytes of each layer, as a profile has them.
fn layer_bytes(model: &Model) -> Vec<[i64; 3]> {
    let backend = backend(1);
    let device = backend.device(0).unwrap();
    let layers = build(model, &BuildOptions { device: device.clone(), ..BuildOptions::default() }).unwrap();
    let microbatch = data::microbatch(0, 0, 0, SHAPE, model.vocabulary, device).unwrap();
    let mut x = Tensor::new(0f32, device).unwrap();
    let mut list = Vec::new();
    for layer in &layers {
        let (output, saved) = layer.forward(&x, &microbatch).unwrap();
        let (kept, offloadable) = (saved.bytes() as i64, saved.offloadable_bytes() as i64);
        let gradient = output.ones_like().unwrap();
        let (_, context) = layer.backward_input(saved, &gradient, &microbatch).unwrap();
        list.push([kept.max(context.bytes() as i64), context.bytes() as i64, offloadable]);
        x = output;
    }
    list
}

/// The problem of a model, without a memory limit that matters.
pub(in super::super) fn problem(
    model: &Model,
    layer_split: &[usize],
    placement: &[usize],
    microbatches: usize,
) -> Problem {
    let (stages, devices) = (placement.len(), placement.iter().max().unwrap() + 1);
    let layers = layer_bytes(model);
    let ranges = split::layer_ranges(layer_split);
    let sum = |k: usize| ranges.iter().map(|r| layers[r.clone()].iter().map(|x| x[k]).sum()).collect::<Vec<i64>>();
    let by_stage = memory::stages(model, layer_split, Precision::F32, Optimizer::Adamw);
    let fixed = memory::devices(&by_stage, placement, devices).iter().map(|x| x.total() as i64).collect();
    Problem {
        devices,
        placement: placement.to_vec(),
        microbatches,
        split_backward: true,
        time_ns: Times {
            forward: vec![100; stages],
            backward_input: vec![100; stages],
            backward_weight: vec![80; stages],
            send_forward: vec![5; stages - 1],
            send_backward: vec![5; stages - 1],
            offload: vec![60; stages],
            reload: vec![60; stages],
        },
        bytes: Sizes {
            activation: sum(0),
            weight_context: sum(1),
            offloadable: sum(2),
            r#static: fixed,
            capacity: vec![1 << 40; devices],
        },
        offload_channel: (0..devices).collect(),
        reload_channel: (devices..2 * devices).collect(),
    }
}

/// The order with the given ones parked on the host: each is reloaded `ahead` ops before its backward.
pub(in super::super) fn with_offloads(
    problem: &Problem,
    order: &Order,
    parked: impl Fn(Op) -> bool,
    ahead: usize,
) -> Order {
    let mut line: Vec<Vec<Op>> = Vec::new();
    for list in &order.devices {
        let mut ops: Vec<Op> = Vec::new();
        for &op in list {
            let like = |kind| Op { kind, ..op };
            match op.kind {
                OpKind::F => {
                    ops.push(op);
                    if parked(op) {
                        ops.push(like(OpKind::O));
                    }
                }
                OpKind::B if parked(op) => {
                    let own = ops.iter().position(|x| *x == like(OpKind::O)).unwrap();
                    let at = ops.len().saturating_sub(ahead).max(own + 1);
                    ops.insert(at, like(OpKind::R));
                    ops.push(op);
                }
                _ => ops.push(op),
            }
        }
        line.push(ops);
    }
    project(problem, line)
}

/// Lists with all ops of each device, as an order.
fn project(problem: &Problem, line: Vec<Vec<Op>>) -> Order {
    let mut names: Vec<usize> = problem.offload_channel.iter().chain(&problem.reload_channel).copied().collect();
    names.sort_unstable();
    names.dedup();
    let mut channels = vec![Vec::new(); names.len()];
    for (device, list) in line.iter().enumerate() {
        for op in list {
            let name = match op.kind {
                OpKind::O => problem.offload_channel[device],
                OpKind::R => problem.reload_channel[device],
                _ => continue,
            };
            channels[names.binary_search(&name).unwrap()].push(*op);
        }
    }
    let devices = line.into_iter().map(|list| list.into_iter().filter(|op| op.kind != OpKind::O).collect()).collect();
    Order { devices, channels }
}

/// Any order at all: ops in a random sequence that keeps to their dependencies, some of them with
/// offloads.
pub(in super::super) fn random_order(problem: &Problem, seed: u64) -> Order {
    let mut rng = Pcg64::seed_from_u64(seed);
    let (stages, microbatches) = (problem.stages(), problem.microbatches);
    let mut open: Vec<Op> = Vec::new();
    for stage in 0..stages {
        for microbatch in 0..microbatches {
            let parked = rng.random_range(0..2) == 0;
            for kind in [OpKind::F, OpKind::B, OpKind::W, OpKind::O, OpKind::R] {
                if parked || kind.is_compute() {
                    open.push(Op { kind, stage, microbatch });
                }
            }
        }
    }
    let mut line = vec![Vec::new(); problem.devices];
    let mut channels: Vec<(usize, Op)> = Vec::new();
    while !open.is_empty() {
        let waits = |kind, op: &Op, stage| open.contains(&Op { kind, stage, microbatch: op.microbatch });
        let ready: Vec<usize> = (0..open.len())
            .filter(|&i| {
                let (op, s) = (&open[i], open[i].stage);
                !match op.kind {
                    OpKind::F => s > 0 && waits(OpKind::F, op, s - 1),
                    OpKind::B => {
                        waits(OpKind::F, op, s)
                            || waits(OpKind::R, op, s)
                            || (s + 1 < stages && waits(OpKind::B, op, s + 1))
                    }
                    OpKind::W => waits(OpKind::B, op, s),
                    OpKind::O => waits(OpKind::F, op, s),
                    OpKind::R => waits(OpKind::O, op, s),
                }
            })
            .collect();
        let op = open.swap_remove(ready[rng.random_range(0..ready.len())]);
        let device = problem.placement[op.stage];
        match op.kind {
            OpKind::O => channels.push((problem.offload_channel[device], op)),
            OpKind::R => {
                channels.push((problem.reload_channel[device], op));
                line[device].push(op);
            }
            _ => line[device].push(op),
        }
    }
    let mut names: Vec<usize> = problem.offload_channel.iter().chain(&problem.reload_channel).copied().collect();
    names.sort_unstable();
    names.dedup();
    let list = |name| channels.iter().filter(|(n, _)| *n == name).map(|(_, op)| *op).collect();
    Order { devices: line, channels: names.into_iter().map(list).collect() }
}
