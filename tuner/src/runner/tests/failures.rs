//! Whatever goes wrong ends with an error that says where, and nothing hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use candle_core::{Device, Tensor};
use optpipe_kernels::alloc::Usage;
use optpipe_kernels::arena::HostTensors;
use optpipe_kernels::backend::{Backend, BackendKind, DeviceInfo, Stamp};
use optpipe_kernels::copy::CopyError;
use optpipe_solver::method::Method;
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Op, OpKind};
use optpipe_solver::simulate::simulate_unlimited;
use optpipe_solver::textbook;

use super::super::{Pipeline, RunError, RunPlan, Worker, run};
use super::fixture::{SHAPE, backend, problem, tiny, with_offloads};

/// The problem and order of a small 1F1B.
fn small() -> (optpipe_configs::model::Model, Problem, Order) {
    let model = tiny("llama-15m", 2, true);
    let problem = problem(&model, &[1, 1], &[0, 1], 3);
    let order = textbook::order(&problem, Method::OneFOneB).unwrap();
    (model, problem, order)
}

/// One step of an order, whatever it is.
fn attempt(problem: &Problem, order: &Order, change: impl FnOnce(&mut RunPlan)) -> Result<(), RunError> {
    let (model, _, _) = small();
    let schedule = simulate_unlimited(problem, &small().2).unwrap().schedule;
    let mut plan = RunPlan::new(&model, &[1, 1], problem, &schedule, backend(2));
    (plan.microbatch_size, plan.sequence_length) = SHAPE;
    change(&mut plan);
    let never = AtomicBool::new(false);
    let mut pipeline = Pipeline::start(&plan, order, &never)?;
    pipeline.step(&never)?;
    pipeline.optimize(&never)?;
    Ok(())
}

#[test]
fn tensors_larger_than_planned_end_the_run_where_memory_ends() {
    let (_, mut problem, order) = small();
    problem.bytes.activation[1] /= 2;
    problem.bytes.weight_context[1] /= 4;
    problem.bytes.offloadable[1] = 0;
    problem.bytes.capacity[1] = problem.bytes.r#static[1] + problem.bytes.activation[1];
    match attempt(&problem, &order, |_| ()) {
        Err(RunError::Memory { device: 1, op, held, capacity, actual, planned }) => {
            assert_eq!((op.kind, op.stage), (OpKind::F, 1));
            assert!(held > capacity && actual > planned, "{held} {capacity} {actual} {planned}");
        }
        other => panic!("{other:?}"),
    }
    attempt(&problem, &order, |plan| plan.enforce_capacity = false).unwrap();
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let (_, mut problem, order) = small();
    problem.bytes.capacity[0] = problem.bytes.r#static[0] - 1;
    assert!(matches!(attempt(&problem, &order, |_| ()), Err(RunError::Plan { .. })));
    problem.bytes.r#static[0] /= 2;
    assert!(matches!(attempt(&problem, &order, |_| ()), Err(RunError::Static { device: 0, .. })));
    problem.bytes.capacity[0] = 1 << 40;
    let error = attempt(&problem, &order, |plan| plan.workspace = Some(&[0, 1 << 50]));
    assert!(matches!(error, Err(RunError::Static { device: 1, .. })), "{error:?}");
}

#[test]
fn an_order_with_a_cycle_is_found_at_once() {
    let (_, problem, mut order) = small();
    order.devices[1].swap(0, 1);
    let error = attempt(&problem, &order, |_| ()).unwrap_err();
    let RunError::Deadlock { waits } = &error else { panic!("{error}") };
    assert!(
        waits.contains("device 1: B(stage 1, microbatch 0) waits for the end of F(stage 1, microbatch 0)"),
        "{waits}"
    );
}

#[test]
fn an_order_that_needs_more_memory_than_there_is_is_found_at_once() {
    let (_, mut problem, _) = small();
    let order = textbook::order(&problem, Method::Gpipe).unwrap();
    problem.bytes.capacity[0] = problem.bytes.r#static[0] + 2 * problem.bytes.activation[0];
    let error = attempt(&problem, &order, |_| ()).unwrap_err();
    let RunError::Deadlock { waits } = &error else { panic!("{error}") };
    assert!(waits.contains("device 0: F(stage 0, microbatch 2) waits for "), "{waits}");
    assert!(waits.contains("bytes on device 0"), "{waits}");
}

#[test]
fn reloads_in_an_order_against_their_tickets_are_found_at_once() {
    let (_, problem, order) = small();
    let mut order = with_offloads(&problem, &order, |op| op.stage == 0, 0);
    // On the channel in the opposite order of the device's allocations.
    order.channels[2].reverse();
    let error = attempt(&problem, &order, |_| ()).unwrap_err();
    let RunError::Deadlock { waits } = &error else { panic!("{error}") };
    assert!(waits.contains("channel 2: R(stage 0, microbatch 2) waits for"), "{waits}");
}

#[test]
fn lists_with_missing_or_misplaced_ops_are_refused() {
    let (_, problem, order) = small();
    let mut missing = order.clone();
    missing.devices[0].pop();
    let mut misplaced = order.clone();
    misplaced.devices.swap(0, 1);
    let mut repeated = order.clone();
    repeated.devices[0].push(Op { kind: OpKind::F, stage: 0, microbatch: 0 });
    let mut unpaired = order.clone();
    unpaired.channels = vec![vec![Op { kind: OpKind::O, stage: 0, microbatch: 0 }]];
    let mut unknown = order;
    unknown.devices[0].push(Op { kind: OpKind::F, stage: 9, microbatch: 0 });
    for (order, text) in [
        (missing, "stands 0 times"),
        (misplaced, "is no op of device 0"),
        (repeated, "stands 2 times"),
        (unpaired, "and its reload"),
        (unknown, "F(stage 9, microbatch 0) is no op"),
    ] {
        let error = attempt(&problem, &order, |_| ()).unwrap_err();
        assert!(matches!(error, RunError::Schedule { .. }), "{error:?}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn schedules_that_break_a_rule_are_refused() {
    let (model, mut problem, order) = small();
    let schedule = simulate_unlimited(&problem, &order).unwrap().schedule;
    let go = |problem: &Problem, enforce| {
        let mut plan = RunPlan::new(&model, &[1, 1], problem, &schedule, backend(2));
        (plan.microbatch_size, plan.sequence_length) = SHAPE;
        plan.enforce_capacity = enforce;
        run(&plan, &mut |_| (), &AtomicBool::new(false))
    };
    problem.bytes.capacity[0] = problem.bytes.r#static[0] + problem.bytes.activation[0];
    assert!(matches!(go(&problem, true), Err(RunError::Schedule { .. })));
    let peaks = go(&problem, false).unwrap().peak_bytes;
    assert!(peaks[0] as i64 > problem.bytes.capacity[0], "{peaks:?}");
    problem.time_ns.forward[0] += 1;
    assert!(matches!(go(&problem, false), Err(RunError::Schedule { .. })));
}

#[test]
fn a_cancelled_run_ends() {
    let (model, problem, order) = small();
    let schedule = simulate_unlimited(&problem, &order).unwrap().schedule;
    let mut plan = RunPlan::new(&model, &[1, 1], &problem, &schedule, backend(2));
    (plan.microbatch_size, plan.sequence_length) = SHAPE;
    plan.steps = usize::MAX / 2;
    let cancel = AtomicBool::new(false);
    let mut steps = 0;
    let result = run(
        &plan,
        &mut |_| {
            steps += 1;
            cancel.store(steps == 3, Ordering::Relaxed);
        },
        &cancel,
    );
    assert!(matches!(result, Err(RunError::Cancelled)));
    assert_eq!(steps, 3);
    let cancelled = AtomicBool::new(true);
    assert!(matches!(run(&plan, &mut |_| (), &cancelled), Err(RunError::Cancelled)));
}

/// A backend of which one part goes wrong.
#[derive(Debug)]
struct Broken {
    sound: Arc<dyn Backend>,
    part: Part,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Offload,
    /// What device 1 computes.
    Compute,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Fail,
    Full,
    Panic,
    Hang,
}

impl Backend for Broken {
    fn kind(&self) -> BackendKind {
        self.sound.kind()
    }

    fn clock(&self) -> &'static str {
        self.sound.clock()
    }

    fn devices(&self) -> &[DeviceInfo] {
        self.sound.devices()
    }

    fn device(&self, index: usize) -> candle_core::Result<&Device> {
        self.sound.device(index)
    }

    fn synchronise(&self, index: usize) -> candle_core::Result<()> {
        if self.part == Part::Compute && index == 1 {
            match self.how {
                How::Fail => candle_core::bail!("the device is gone"),
                How::Full => candle_core::bail!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
                How::Panic => panic!("the device is gone"),
                How::Hang => std::thread::sleep(Duration::from_secs(3)),
            }
        }
        self.sound.synchronise(index)
    }

    fn offload(&self, tensors: &[Tensor]) -> Result<HostTensors, CopyError> {
        if self.part == Part::Offload {
            match self.how {
                How::Fail => return Err(CopyError::Dtype(tensors[0].dtype())),
                How::Full => {
                    return Err(CopyError::Driver(
                        "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".to_owned(),
                    ));
                }
                How::Panic => panic!("the link is gone"),
                How::Hang => std::thread::sleep(Duration::from_secs(3)),
            }
        }
        self.sound.offload(tensors)
    }

    fn reload(&self, host: &HostTensors, index: usize) -> Result<Vec<Tensor>, CopyError> {
        self.sound.reload(host, index)
    }

    fn prepare_host(&self, index: usize, sizes: &[usize]) -> Result<(), CopyError> {
        self.sound.prepare_host(index, sizes)
    }

    fn send(&self, tensor: &Tensor, to: usize) -> candle_core::Result<Tensor> {
        self.sound.send(tensor, to)
    }

    fn stamp(&self, index: usize) -> candle_core::Result<Stamp> {
        self.sound.stamp(index)
    }

    fn measure(&self, index: usize, operation: &mut dyn FnMut()) -> candle_core::Result<Option<Usage>> {
        self.sound.measure(index, operation)
    }
}

/// How a step ends of which one part goes wrong; stage 1 offloads its first microbatch.
fn broken(part: Part, how: How) -> RunError {
    let (_, problem, order) = small();
    let order = with_offloads(&problem, &order, |op| (op.stage, op.microbatch) == (1, 0), 0);
    attempt(&problem, &order, |plan| {
        plan.backend = Arc::new(Broken { sound: backend(2), part, how });
        if matches!(how, How::Hang) {
            plan.stall_timeout = Duration::from_secs(1);
        }
    })
    .unwrap_err()
}

#[test]
fn what_a_thread_meets_is_told_with_its_op() {
    for (part, kind, at, message) in [
        (Part::Offload, OpKind::O, Worker::Channel(1), "the link is gone"),
        (Part::Compute, OpKind::F, Worker::Device(1), "the device is gone"),
    ] {
        let first = Some(Op { kind, stage: 1, microbatch: 0 });
        let error = broken(part, How::Fail);
        assert!(matches!(&error, RunError::Op { worker, op, .. } if (*worker, *op) == (at, first)), "{error:?}");
        let error = broken(part, How::Full);
        assert!(matches!(&error, RunError::OutOfMemory { device: 1, op, .. } if *op == first), "{error:?}");
        let error = broken(part, How::Panic);
        assert!(
            matches!(&error, RunError::Panic { worker, op, message: said }
                if (*worker, *op) == (at, first) && said == message),
            "{error:?}"
        );
        let error = broken(part, How::Hang);
        let RunError::Stalled { waits, .. } = &error else { panic!("{error}") };
        let letter = kind.letter();
        assert!(waits.contains(&format!("{at}: runs {letter}(stage 1, microbatch 0)")), "{waits}");
    }
}
