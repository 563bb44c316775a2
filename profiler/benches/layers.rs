//! Forward, backward_input and backward_weight of each layer of a Llama of 15M parameters, at 256 tokens. Run
//! with `RAYON_NUM_THREADS=1` for the times on one core.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use divan::{Bencher, black_box};
use optpipe_configs::model::Model;
use optpipe_profiler::layer::{Layer, Microbatch};
use optpipe_profiler::model::{BuildOptions, build_layer};

const SEQUENCE: usize = 256;

/// The layers by name, with their index.
const LAYERS: [(&str, usize); 3] = [("embedding", 0), ("block", 1), ("head", 7)];

struct Case {
    layer: Box<dyn Layer>,
    input: Tensor,
    microbatch: Microbatch,
}

impl Case {
    fn new(name: &str) -> Self {
        let model = Model::read("llama-15m", None).unwrap();
        let index = LAYERS.iter().find(|(other, _)| *other == name).unwrap().1;
        let tokens = |shift| {
            let tokens = (0..SEQUENCE).map(|i| ((i * 7919 + shift) % model.vocabulary) as u32).collect();
            Tensor::from_vec(tokens, (1, SEQUENCE), &Device::Cpu).unwrap()
        };
        Self {
            layer: build_layer(&model, index, &BuildOptions::default()).unwrap(),
            input: Tensor::randn(0f32, 1.0, (1, SEQUENCE, model.hidden), &Device::Cpu).unwrap(),
            microbatch: Microbatch { tokens: tokens(0), targets: tokens(1) },
        }
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    LAYERS.iter().map(|(name, _)| *name)
}

#[divan::bench(args = names())]
fn forward(bencher: Bencher, name: &str) {
    let case = Case::new(name);
    bencher.bench_local(|| case.layer.forward(black_box(&case.input), &case.microbatch).unwrap());
}

#[divan::bench(args = names())]
fn backward_input(bencher: Bencher, name: &str) {
    let case = Case::new(name);
    let (output, saved) = case.layer.forward(&case.input, &case.microbatch).unwrap();
    let gradient = output.ones_like().unwrap();
    bencher
        .with_inputs(|| saved.clone())
        .bench_local_values(|saved| case.layer.backward_input(saved, &gradient, &case.microbatch).unwrap());
}

#[divan::bench(args = names())]
fn backward_weight(bencher: Bencher, name: &str) {
    let case = Case::new(name);
    let (output, saved) = case.layer.forward(&case.input, &case.microbatch).unwrap();
    let gradient = output.ones_like().unwrap();
    let (_, context) = case.layer.backward_input(saved, &gradient, &case.microbatch).unwrap();
    bencher
        .with_inputs(|| context.clone())
        .bench_local_values(|context| case.layer.backward_weight(context, &case.microbatch).unwrap());
}

fn main() {
    for (name, _) in LAYERS {
        let case = Case::new(name);
        let (output, saved) = case.layer.forward(&case.input, &case.microbatch).unwrap();
        let (all, offloadable) = (saved.bytes(), saved.offloadable_bytes());
        let gradient = output.ones_like().unwrap();
        let (_, context) = case.layer.backward_input(saved, &gradient, &case.microbatch).unwrap();
        eprintln!("{name}: saved {all} B, of which offloadable {offloadable} B, weight context {} B", context.bytes());
    }
    divan::main();
}
