//! Loss and every gradient equal those of the same model without a pipeline.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use optpipe_configs::job::{Optimizer, Precision};
use optpipe_configs::memory;
use optpipe_configs::model::Model;
use optpipe_kernels::cpu::CpuBackend;
use optpipe_solver::check::check;
use optpipe_solver::method::Method;
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Op;
use optpipe_solver::simulate::simulate_unlimited;
use optpipe_solver::textbook;
use proptest::prelude::*;

use super::super::{Pipeline, RunPlan, run};
use super::fixture::{SHAPE, backend, problem, random_order, tiny, tolerance, with_offloads};
use super::reference::Reference;

/// Distance of the whole vectors, relative to the expected one.
fn error(expected: &[f64], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let (mut distance, mut norm) = (0.0, 0.0);
    for (&e, &f) in expected.iter().zip(found) {
        distance += (e - f64::from(f)).powi(2);
        norm += e * e;
    }
    if distance == 0.0 { 0.0 } else { (distance / norm).sqrt() }
}

/// Runs an order for three steps, on exactly the memory that its schedule needs, and holds every step
/// against the reference.
fn prove(model: &Model, split: &[usize], problem: &Problem, order: &Order, optimizer: Optimizer) {
    let simulated = simulate_unlimited(problem, order).unwrap();
    let mut problem = problem.clone();
    problem.bytes.capacity.clone_from(&simulated.peak_bytes);
    let report = check(&problem, &simulated.schedule);
    assert!(report.is_legal(), "{:?}", report.violations);

    let never = AtomicBool::new(false);
    let mut plan = RunPlan::new(model, split, &problem, &simulated.schedule, backend(problem.devices));
    (plan.microbatch_size, plan.sequence_length) = SHAPE;
    plan.optimizer = optimizer;
    plan.learning_rate = if optimizer == Optimizer::Sgd { 0.1 } else { 1e-3 };
    plan.seed = 7;
    let order = Order::of(&problem, &simulated.schedule);
    let mut pipeline = Pipeline::start(&plan, &order, &never).unwrap();
    let mut reference = Reference::new(model, plan.seed, optimizer);
    for step in 0..3 {
        let record = pipeline.step(&never).unwrap();
        let expected = reference.step(problem.microbatches);
        let off = (record.loss - expected.loss).abs() / expected.loss;
        assert!(off <= tolerance(), "step {step}: loss {} instead of {}", record.loss, expected.loss);
        let gradients = pipeline.gradients(&never).unwrap();
        assert_eq!(gradients.len(), expected.gradients.iter().map(Vec::len).sum::<usize>());
        let mut found = gradients.iter();
        for (layer, list) in expected.gradients.iter().enumerate() {
            for expected in list {
                let gradient = found.next().unwrap();
                assert_eq!(gradient.layer, layer);
                let numbers = gradient.gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let off = error(expected, &numbers);
                assert!(off <= tolerance(), "step {step}: layer {layer}, {}: off by {off:e}", gradient.name);
            }
        }
        // An embedding alone saves nothing: its offloads copy nothing.
        let planned = report.offloaded_bytes as u64;
        assert!(record.offloaded_bytes <= planned && (record.offloaded_bytes > 0) == (planned > 0));
        pipeline.optimize(&never).unwrap();
        reference.optimize(&expected, plan.learning_rate);
    }
    for (device, (&peak, &limit)) in pipeline.peak_bytes().iter().zip(&simulated.peak_bytes).enumerate() {
        assert!(peak as i64 <= limit, "device {device}: {peak} bytes, {limit} planned");
    }
}

/// The textbook order of a method as it is, with everything offloaded, and with every second one.
fn prove_textbook(model: &Model, split: &[usize], placement: &[usize], microbatches: usize, method: Method) {
    let problem = problem(model, split, placement, microbatches);
    let order = textbook::order(&problem, method).unwrap();
    prove(model, split, &problem, &order, Optimizer::Sgd);
    let all = |_: Op| true;
    prove(model, split, &problem, &with_offloads(&problem, &order, all, 0), Optimizer::Sgd);
    let some = |op: Op| (op.stage + op.microbatch).is_multiple_of(2);
    prove(model, split, &problem, &with_offloads(&problem, &order, some, 2), Optimizer::Sgd);
}

#[test]
fn one_stage_a_device() {
    let (tied, untied) = (tiny("llama-15m", 3, true), tiny("llama-15m", 3, false));
    for method in [Method::Gpipe, Method::OneFOneB, Method::ZbH1, Method::ZbH2] {
        prove_textbook(&tied, &[2, 1], &[0, 1], 4, method);
        prove_textbook(&untied, &[1, 1, 1], &[0, 1, 2], 5, method);
        prove_textbook(&tied, &[2, 1, 0], &[0, 1, 2], 4, method);
    }
}

#[test]
fn two_stages_a_device() {
    let (tied, untied) = (tiny("llama-15m", 4, true), tiny("llama-15m", 4, false));
    for (method, placement) in [
        (Method::Interleaved, [0, 1, 0, 1]),
        (Method::Gpipe, [0, 1, 0, 1]),
        (Method::ZbV, [0, 1, 1, 0]),
        (Method::Gpipe, [0, 1, 1, 0]),
    ] {
        prove_textbook(&tied, &[1, 1, 1, 1], &placement, 4, method);
        prove_textbook(&untied, &[1, 2, 1, 0], &placement, 4, method);
    }
    let placement = [0, 1, 2, 2, 1, 0];
    prove_textbook(&tied, &[0, 1, 1, 1, 1, 0], &placement, 6, Method::ZbV);
}

#[test]
fn one_device_has_the_tied_matrix_once() {
    for tied in [true, false] {
        let model = tiny("llama-15m", 2, tied);
        prove_textbook(&model, &[2], &[0], 3, Method::OneFOneB);
    }
}

#[test]
fn every_family() {
    for preset in ["gpt2", "qwen2.5-0.5b", "qwen3-0.6b", "mistral-7b"] {
        let mut model = tiny(preset, 2, Model::read(preset, None).unwrap().tied_embeddings);
        model.kv_heads = if preset == "gpt2" { 2 } else { 1 };
        prove_textbook(&model, &[1, 1], &[0, 1], 3, Method::ZbH1);
    }
}

#[test]
fn fused_backward() {
    let model = tiny("llama-15m", 3, true);
    let mut problem = problem(&model, &[1, 1, 1], &[0, 1, 2], 4);
    problem.split_backward = false;
    let order = textbook::order(&problem, Method::OneFOneB).unwrap();
    prove(&model, &[1, 1, 1], &problem, &order, Optimizer::Sgd);
    prove(&model, &[1, 1, 1], &problem, &with_offloads(&problem, &order, |_| true, 0), Optimizer::Sgd);
}

/// AdamW divides by the gradient's own size, so that rounding counts in full wherever the true gradient
/// is 0; the model has no such parameters.
#[test]
fn adamw() {
    let model = tiny("llama-15m", 3, true);
    let problem = problem(&model, &[2, 1], &[0, 1], 4);
    let order = textbook::order(&problem, Method::ZbH2).unwrap();
    prove(&model, &[2, 1], &problem, &order, Optimizer::Adamw);
}

#[test]
fn static_bytes_are_those_of_the_plan() {
    let model = tiny("llama-15m", 2, true);
    let never = AtomicBool::new(false);
    for placement in [vec![0], vec![0, 1], vec![0, 1, 0]] {
        let split = [vec![2], vec![1, 1], vec![1, 1, 0]][placement.len() - 1].clone();
        let problem = problem(&model, &split, &placement, 1);
        let schedule = textbook::schedule(&problem, Method::Gpipe).unwrap();
        for precision in [Precision::F32, Precision::Bf16] {
            for optimizer in [Optimizer::Adamw, Optimizer::Sgd] {
                let mut plan = RunPlan::new(&model, &split, &problem, &schedule, backend(problem.devices));
                (plan.microbatch_size, plan.sequence_length) = SHAPE;
                (plan.precision, plan.optimizer) = (precision, optimizer);
                let order = Order::of(&problem, &schedule);
                let pipeline = Pipeline::start(&plan, &order, &never).unwrap();
                let stages = memory::stages(&model, &split, precision, optimizer);
                let expected: Vec<u64> =
                    memory::devices(&stages, &placement, problem.devices).iter().map(|x| x.total()).collect();
                assert_eq!(pipeline.peak_bytes(), expected);
            }
        }
    }
}

#[test]
fn host_memory_is_there_before_the_first_step() {
    let model = tiny("llama-15m", 2, false);
    for (method, split) in [(Method::Gpipe, &[1, 1][..]), (Method::OneFOneB, &[2])] {
        let problem = problem(&model, split, &vec![0; split.len()], 4);
        let order = with_offloads(&problem, &textbook::order(&problem, method).unwrap(), |_| true, 1);
        let schedule = simulate_unlimited(&problem, &order).unwrap().schedule;
        let cpu = Arc::new(CpuBackend::new(1).unwrap());
        let mut plan = RunPlan::new(&model, split, &problem, &schedule, cpu.clone());
        (plan.microbatch_size, plan.sequence_length) = SHAPE;
        let never = AtomicBool::new(false);
        let mut pipeline = Pipeline::start(&plan, &Order::of(&problem, &schedule), &never).unwrap();
        let prepared = cpu.pool().total_bytes();
        assert!(pipeline.step(&never).unwrap().offloaded_bytes > 0);
        assert_eq!(cpu.pool().total_bytes(), prepared, "{method}");
    }
}

#[test]
fn the_loss_falls_and_every_op_is_measured() {
    let model = tiny("llama-15m", 2, true);
    for precision in [Precision::F32, Precision::Bf16] {
        let problem = problem(&model, &[1, 1], &[0, 1], 4);
        let order = textbook::order(&problem, Method::OneFOneB).unwrap();
        let order = with_offloads(&problem, &order, |op| op.stage == 0, 1);
        let schedule = simulate_unlimited(&problem, &order).unwrap().schedule;
        let mut plan = RunPlan::new(&model, &[1, 1], &problem, &schedule, backend(2));
        (plan.microbatch_size, plan.sequence_length) = SHAPE;
        (plan.precision, plan.learning_rate) = (precision, 1e-2);
        (plan.warmup_steps, plan.steps) = (2, 18);
        let mut seen = 0;
        let measured = run(
            &plan,
            &mut |progress| {
                seen += 1;
                assert_eq!((progress.steps_done, progress.steps), (seen, 20));
                assert_eq!(progress.measured, seen > 2);
            },
            &AtomicBool::new(false),
        )
        .unwrap();
        assert_eq!(seen, 20);
        assert!(measured.losses[19] < 0.8 * measured.losses[0], "{:?}", measured.losses);
        assert_eq!(measured.ops.len(), 2 * 4 * 3 + 2 * 4);
        assert_eq!((measured.steps_ns.len(), measured.step.count, measured.optimizer.count), (18, 18, 18));
        let offloadable = problem.bytes.offloadable[0] as u64 / if precision == Precision::F32 { 1 } else { 2 };
        assert!(measured.offloaded_bytes > 0 && measured.offloaded_bytes <= 4 * offloadable);
        let last = measured.ops.iter().map(|x| x.end_ns).max().unwrap();
        assert!(measured.steps_ns.contains(&last));
        let mut busy = [0; 2];
        for (device, busy) in busy.iter_mut().enumerate() {
            let mut end = 0;
            for x in measured.ops.iter().filter(|x| x.device == device && x.op.is_compute()) {
                assert!(x.start_ns >= end && x.end_ns >= x.start_ns, "{x:?} before {end}");
                (end, *busy) = (x.end_ns, *busy + x.end_ns - x.start_ns);
            }
        }
        let comparison = crate::measured::compare(&problem, &schedule, &measured);
        assert_eq!(comparison.measured_step_ns, measured.step.median_ns);
        assert_eq!(comparison.kinds.len(), 2 * 3 + 2);
        assert!(comparison.kinds.iter().all(|x| x.count == 4 && x.range_ns[0] <= x.measured_ns));
        assert_eq!(comparison.devices.iter().map(|x| x.measured_busy_ns).collect::<Vec<_>>(), busy);
        assert!(comparison.replayed_step_ns.unwrap() > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the order, the placement, the split and the links: the gradients are right and nothing
    /// gets stuck, on exactly the memory that the schedule needs.
    #[test]
    fn any_order(
        seed: u64,
        placement in proptest::collection::vec(0usize..3, 1..5),
        tied: bool,
        links in 0usize..3,
        microbatches in 1usize..5,
        cuts in proptest::collection::vec(0usize..4, 4),
    ) {
        let model = tiny("llama-15m", 3, tied);
        let stages = placement.len();
        // Inner stages hold at least one block, as far as there are blocks.
        let inner = stages.saturating_sub(2);
        let mut split: Vec<usize> = (0..stages).map(|s| usize::from(s > 0 && s + 1 < stages)).collect();
        for cut in &cuts[..3 - inner] {
            split[cut % stages] += 1;
        }
        let mut problem = problem(&model, &split, &placement, microbatches);
        let devices = problem.devices;
        match links {
            0 => {}
            1 => problem.reload_channel = (0..devices).collect(),
            _ => (problem.offload_channel, problem.reload_channel) = (vec![5; devices], vec![2; devices]),
        }
        prove(&model, &split, &problem, &random_order(&problem, seed), Optimizer::Sgd);
    }
}
