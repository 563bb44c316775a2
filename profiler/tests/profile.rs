//! Profiling in a program that counts its allocations. One test alone: others beside it would count.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_configs::job::{Batch, Count, Job, Pipeline, Precision};
use optpipe_configs::model::Model;
use optpipe_configs::profile::{LayerBytes, LayerKind, Profile};
use optpipe_kernels::alloc::Counting;
use optpipe_kernels::cpu::CpuBackend;
use optpipe_profiler::profile::{ProfileError, ProfileOptions, profile};
use optpipe_profiler::timing::TimingOptions;

#[global_allocator]
static ALLOCATOR: Counting = Counting::SYSTEM;

const HIDDEN: u64 = 32;
const VOCABULARY: u64 = 3000;
const TOKENS: u64 = 2 * 48;

fn tiny() -> Model {
    Model {
        name: "tiny".to_owned(),
        hidden: HIDDEN as usize,
        layers: 5,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 64,
        vocabulary: VOCABULARY as usize,
        ..Model::read("llama-15m", None).unwrap()
    }
}

fn job(precision: Precision) -> Job {
    let batch = Batch { microbatch_size: Count::Fixed(2), sequence_length: 48, ..Batch::default() };
    let pipeline = Pipeline { devices: 2, ..Pipeline::default() };
    Job { precision, batch, pipeline, ..Job::default() }
}

fn measure(job: &Job) -> Profile {
    let timing = TimingOptions {
        min_samples: 3,
        max_samples: 5,
        max_warmup: 2,
        time_limit: Duration::from_millis(50),
        ..TimingOptions::default()
    };
    let options = ProfileOptions { timing, concurrent: None };
    let backend = CpuBackend::new(2).unwrap();
    let mut heard = Vec::new();
    let cancel = AtomicBool::new(false);
    let result = profile(&tiny(), job, &backend, &options, &mut |text| heard.push(text.to_owned()), &cancel).unwrap();
    assert!(heard.iter().any(|text| text.contains("block")));
    cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = profile(&tiny(), job, &backend, &options, &mut |_| {}, &cancel).unwrap_err();
    assert!(matches!(error, ProfileError::Cancelled), "{error}");
    result
}

fn bytes(profile: &Profile) -> Vec<LayerBytes> {
    profile.layers.iter().map(|layer| layer.bytes).collect()
}

#[test]
fn layers_are_measured_once_a_kind_and_their_memory_exactly() {
    let measured = measure(&job(Precision::F32));
    let kinds: Vec<_> = measured.layers.iter().map(|layer| (layer.kind, layer.count)).collect();
    assert_eq!(kinds, [(LayerKind::Embedding, 1), (LayerKind::Block, 5), (LayerKind::Head, 1)]);
    for layer in &measured.layers {
        let b = layer.bytes;
        assert!(b.weight_context <= b.activation && b.offloadable <= b.activation, "{b:?}");
        assert!((3..=5).contains(&layer.forward.count));
        assert!(layer.forward.median_ns > 0 && layer.backward_weight.median_ns > 0);
    }
    let [embedding, block, head] = &measured.layers[..] else { panic!("three groups") };
    assert_eq!((embedding.parameters, embedding.bytes.output), (VOCABULARY * HIDDEN, 4 * TOKENS * HIDDEN));
    assert_eq!((block.bytes.output, head.bytes.output), (4 * TOKENS * HIDDEN, 4));
    // The gradient of a matrix is a temporary of its size until it is summed.
    for layer in [embedding, head] {
        assert!(layer.bytes.activation + layer.bytes.workspace >= 4 * VOCABULARY * HIDDEN, "{:?}", layer.bytes);
    }
    // Input and output live beside what a block saves, save that the saved input is the input.
    assert!(block.bytes.workspace >= block.bytes.output, "{:?}", block.bytes);

    // Bytes are no matter of chance.
    assert_eq!(bytes(&measure(&job(Precision::F32))), bytes(&measured));
    let narrow = measure(&job(Precision::Bf16));
    assert_eq!(narrow.precision, "bf16");
    assert_eq!(narrow.layers[1].bytes.output, 2 * TOKENS * HIDDEN);
}
