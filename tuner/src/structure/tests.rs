//! Searches whose answer is known from the numbers that they are given.

#![allow(clippy::unwrap_used)]

use optpipe_configs::file::{self, Check};
use optpipe_configs::hardware::{Device, Link};
use optpipe_configs::job::NamedPlacement;
use optpipe_configs::profile::{LayerBytes, LayerKind, LayerProfile, Profile, Sample};
use optpipe_solver::check::check;

use super::*;

const MIB: u64 = 1 << 20;

/// Blocks of `ms` a direction, a tenth of it for embedding and head, 8 MiB of activations a sequence.
fn profile(model: &Model, size: usize, ms: f64) -> Profile {
    let layer = |kind, count, ms: f64, activation: u64| {
        let median_ns = (ms * 1e6) as u64;
        let sample = Sample { median_ns, mad_ns: 0, p05_ns: median_ns, p95_ns: median_ns, count: 9, stable: true };
        let activation = activation * MIB * size as u64;
        LayerProfile {
            kind,
            count,
            forward: sample.clone(),
            backward_input: sample.clone(),
            backward_weight: sample,
            bytes: LayerBytes {
                activation,
                weight_context: activation / 2,
                offloadable: activation,
                output: 1,
                workspace: MIB,
            },
            parameters: 1,
            unexplained_bytes: None,
            conditions: None,
        }
    };
    let profile = Profile {
        version: 1,
        model: model.name.clone(),
        backend: "cpu".to_owned(),
        precision: "f32".to_owned(),
        sequence_length: 256,
        microbatch_size: size,
        clock: "made up".to_owned(),
        layers: vec![
            layer(LayerKind::Embedding, 1, ms / 10.0, 1),
            layer(LayerKind::Block, model.layers, ms, 8),
            layer(LayerKind::Head, 1, ms / 10.0, 1),
        ],
        cost_ns: 1,
    };
    profile.check().unwrap();
    profile
}

fn hardware(devices: usize, send_latency_ns: f64) -> Hardware {
    let link = Link { latency_ns: 0.0, bytes_per_second: 1e9, residual: 0.0, points: Vec::new() };
    Hardware {
        version: 1,
        backend: "cpu".to_owned(),
        clock: "made up".to_owned(),
        devices: vec![Device { name: "made up".to_owned(), memory_bytes: 1 << 40, cores: 1 }; devices],
        offload: link.clone(),
        reload: link.clone(),
        offload_duplex: link.clone(),
        reload_duplex: link.clone(),
        offload_neighbour: None,
        reload_neighbour: None,
        send: Link { latency_ns: send_latency_ns, ..link },
        offload_channel: (0..devices).collect(),
        reload_channel: (devices..2 * devices).collect(),
        cost_ns: 1,
        details: None,
    }
}

fn job(yaml: &str) -> (Job, Model) {
    let job: Job = file::parse("job.yaml".as_ref(), &format!("model: llama-15m\n{yaml}")).unwrap();
    job.check().unwrap();
    let model = Model::read(&job.model, None).unwrap();
    (job, model)
}

fn search(yaml: &str, profiles: &[(usize, f64)], send_latency_ns: f64, front: &Front) -> Result<Found> {
    let (job, model) = job(yaml);
    let mut all = Profiles::default();
    for &(size, ms) in profiles {
        all.add(profile(&model, size, ms))?;
    }
    let hardware = hardware(job.pipeline.devices, send_latency_ns);
    let search = Search {
        job: &job,
        model: &model,
        hardware: &hardware,
        profiles: &all,
        cache: None,
        time_limit: Duration::from_millis(1500),
        front,
        progress: &Progress::new(true),
        cancel: &AtomicBool::new(false),
    };
    let found = search.run()?;
    found.job.check().unwrap();
    found.job.decided().unwrap();
    assert!(check(&found.plan.problem, &found.solution.schedule).is_legal());
    let report = &found.report;
    assert_eq!(report.makespan_ns, found.solution.makespan_ns);
    assert!(report.bound_over_all_ns <= report.bound_ns && report.bound_ns <= report.makespan_ns);
    assert_eq!(report.points.iter().filter(|point| point.fate == Fate::Chosen).count(), 1);
    for point in &report.points {
        assert_eq!(point.structure.layer_split.iter().sum::<usize>(), model.layers);
        // What was cut could not have been better, what was solved was not.
        let cut = point.fate == Fate::CutByBound;
        assert!(!cut || point.bound_ns >= report.makespan_ns, "{point:?}");
        assert!(point.makespan_ns.is_none_or(|makespan| makespan >= report.makespan_ns && makespan >= point.bound_ns));
    }
    Ok(found)
}

const FUSED: &str = "batch: {microbatches: 4}\npipeline: {devices: 2, chunks: auto, split_backward: false}\n";

#[test]
fn more_chunks_shorten_the_bubble_and_slow_sends_forbid_them() {
    // A fused backward cannot fill the bubble of one chunk a device; two halve it.
    let found = search(FUSED, &[(1, 10.0)], 0.0, &Front::None).unwrap();
    assert!(found.report.chosen.chunks > 1, "{:?}", found.report.chosen);
    let one = found.report.points.iter().find(|point| point.structure.chunks == 1).unwrap();
    assert!(one.bound_ns > found.solution.makespan_ns || one.makespan_ns.unwrap() > found.solution.makespan_ns);
    // Sends as long as a stage's compute: every chunk more costs more of them than it gains.
    let slow = search(FUSED, &[(1, 10.0)], 60e6, &Front::None).unwrap();
    assert_eq!(slow.report.chosen.chunks, 1);
    assert_eq!(slow.report.chosen.placement, Some(NamedPlacement::Linear));
}

#[test]
fn the_microbatch_size_follows_the_measured_times() {
    let open = "batch: {microbatch_size: auto, global_batch: 8}\npipeline: {devices: 2}\n";
    let sizes = |times: &[(usize, f64)]| search(open, times, 0.0, &Front::None).unwrap().report;
    // Twice the sequences in hardly more time, and four in twice as much as two.
    let report = sizes(&[(1, 10.0), (2, 11.0), (4, 22.0)]);
    assert_eq!((report.chosen.microbatch_size, report.chosen.microbatches), (2, 4));
    assert!(report.points.iter().all(|point| point.times == profiles::Times::Measured));
    // In proportion: small microbatches have the shorter bubble.
    let report = sizes(&[(2, 20.0)]);
    assert_eq!(report.chosen.microbatch_size, 1);
    let one = report.points.iter().find(|point| point.structure.microbatch_size == 1).unwrap();
    assert_eq!(one.times, profiles::Times::ScaledFrom(2));
    assert!(report.text(20).contains("scaled, from size 2"));
}

#[test]
fn a_split_that_does_not_fit_gives_way_to_one_that_does() {
    // The last device has the limit of the first one less the memory of a block.
    let tight = "batch: {microbatches: 4}\npipeline: {devices: 2}\nmemory_limit: [400MiB, 150MiB]\n";
    let found = search(tight, &[(1, 10.0)], 0.0, &Front::None).unwrap();
    let balanced =
        search("batch: {microbatches: 4}\npipeline: {devices: 2}\n", &[(1, 10.0)], 0.0, &Front::None).unwrap();
    assert_eq!(balanced.report.chosen.layer_split, [3, 3]);
    assert!(found.report.chosen.layer_split[1] < 3, "{:?}", found.report.chosen);
    let nowhere = "pipeline: {devices: 2, chunks: auto}\nmemory_limit: 20MiB\n";
    let error = search(nowhere, &[(1, 10.0)], 0.0, &Front::None).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.advice().unwrap().contains("memory_limit to at least"), "{:?}", error.advice());
}

#[test]
fn more_memory_is_never_slower_on_the_front() {
    let open = "batch: {microbatches: 6}\npipeline: {devices: 2, chunks: auto}\nmemory_limit: 240MiB\n";
    let found = search(open, &[(1, 10.0)], 0.0, &Front::Points(4)).unwrap();
    let front = &found.report.front;
    assert!(front.len() >= 4);
    let mut before = i64::MAX;
    for point in front.iter().filter(|point| point.makespan_ns.is_some()) {
        let makespan = point.makespan_ns.unwrap();
        assert!(makespan <= before && point.bound_ns.unwrap() <= makespan, "{point:?}");
        assert!(
            point.peak_bytes.as_ref().unwrap().iter().zip(&point.capacity_bytes).all(|(peak, limit)| peak <= limit)
        );
        before = makespan;
    }
    let own = front.iter().find(|point| point.capacity_bytes == found.plan.problem.bytes.capacity).unwrap();
    assert!(own.makespan_ns.unwrap() <= found.solution.makespan_ns);
    let listed = search(open, &[(1, 10.0)], 0.0, &Front::Capacities(vec![10 * MIB, 1 << 30])).unwrap();
    assert_eq!(listed.report.front.len(), 3);
    assert_eq!(listed.report.front[0].structure, None, "no structure runs in 10 MiB");
}

#[test]
fn by_iterations_a_search_is_repeatable() {
    let open = "batch: {microbatches: 4}\npipeline: {devices: 2, chunks: auto}\nsolver: {iterations: 200}\n";
    let [a, b] = [0, 1].map(|_| search(open, &[(1, 10.0)], 0.0, &Front::None).unwrap());
    assert_eq!(a.report, b.report);
    assert_eq!(a.solution.schedule, b.solution.schedule);
}

#[test]
fn splits_are_written_short() {
    assert_eq!(report::split(&[4, 4, 4, 3, 3, 5]), "3x4 3 3 5");
}
