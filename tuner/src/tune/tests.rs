//! The loop on a made-up machine: exact times, failures on demand, the real solver.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use optpipe_configs::hardware::{Device, Hardware, Link};
use optpipe_configs::job::{Batch, Count, Job, MemoryLimit};
use optpipe_configs::model::Model;
use optpipe_configs::profile::{LayerBytes, LayerKind, LayerProfile, Profile, Sample};
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;
use optpipe_solver::simulate::{simulate, simulate_unlimited};

use super::Tuning;
use super::folder::{Earlier, Folder};
use super::machine::Machine;
use crate::error::{Error, Result};
use crate::measured::{Measured, MeasuredOp};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::summary::{Cost, StopReason, Summary};

const MIB: u64 = 1 << 20;

fn sample(median_ns: u64) -> Sample {
    Sample { median_ns, mad_ns: 0, p05_ns: median_ns, p95_ns: median_ns, count: 5, stable: true }
}

/// Ops take `slowdown` times what the profile says, device 1's backward_weight another 1.5 times.
struct MadeUp<'a> {
    slowdown: f64,
    /// Runs until one fails, if any does.
    fails_after: Option<usize>,
    /// How it fails.
    error: fn() -> Error,
    /// Set when the failing run begins.
    cancel: Option<&'a AtomicBool>,
    /// The run in which everything takes so many times as long, if there is one.
    disturbed: Option<(usize, f64)>,
    runs: usize,
}

impl MadeUp<'_> {
    fn new() -> Self {
        let error = || Error::failed("made up");
        MadeUp { slowdown: 1.3, fails_after: None, error, cancel: None, disturbed: None, runs: 0 }
    }
}

impl Machine for MadeUp<'_> {
    fn calibrate(&mut self, job: &Job, _: &Progress, _: &AtomicBool) -> Result<Hardware> {
        let link = Link { latency_ns: 10_000.0, bytes_per_second: 4e9, residual: 0.0, points: Vec::new() };
        let devices = job.pipeline.devices;
        Ok(Hardware {
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
            send: link,
            offload_channel: (0..devices).collect(),
            reload_channel: (devices..2 * devices).collect(),
            cost_ns: 1,
            details: None,
        })
    }

    fn profile(&mut self, job: &Job, model: &Model, _: &Progress, _: &AtomicBool) -> Result<Profile> {
        let layer = |kind, count, ms: u64, activation: u64| LayerProfile {
            kind,
            count,
            forward: sample(ms * 1_000_000),
            backward_input: sample(ms * 1_100_000),
            backward_weight: sample(ms * 900_000),
            bytes: LayerBytes {
                activation: activation * MIB,
                weight_context: activation * MIB / 2,
                offloadable: activation * MIB,
                output: MIB,
                workspace: MIB,
            },
            parameters: 1,
            unexplained_bytes: None,
            conditions: None,
        };
        Ok(Profile {
            version: 1,
            model: model.name.clone(),
            backend: "cpu".to_owned(),
            precision: "f32".to_owned(),
            sequence_length: job.batch.sequence_length,
            microbatch_size: job.microbatch_size(),
            clock: "made up".to_owned(),
            layers: vec![
                layer(LayerKind::Embedding, 1, 1, 1),
                layer(LayerKind::Block, model.layers, 10, 8),
                layer(LayerKind::Head, 1, 12, 12),
            ],
            cost_ns: 1,
        })
    }

    fn run(
        &mut self,
        plan: &Plan,
        problem: &Problem,
        schedule: &Schedule,
        enforce_capacity: bool,
        _: &Progress,
        _: &AtomicBool,
    ) -> Result<Measured> {
        if self.fails_after == Some(self.runs) {
            self.fails_after = None;
            if let Some(cancel) = self.cancel {
                cancel.store(true, Ordering::SeqCst);
            }
            return Err((self.error)());
        }
        let disturbance = self.disturbed.filter(|&(run, _)| run == self.runs).map_or(1.0, |(_, factor)| factor);
        self.runs += 1;
        // What the ops really take does not depend on what the tuner believes by now.
        let profiled = &plan.problem;
        let mut real = problem.clone();
        let slower = |x: &i64| (*x as f64 * self.slowdown) as i64;
        real.time_ns.forward = profiled.time_ns.forward.iter().map(slower).collect();
        real.time_ns.backward_input = profiled.time_ns.backward_input.iter().map(slower).collect();
        real.time_ns.backward_weight = profiled.time_ns.backward_weight.iter().map(slower).collect();
        real.time_ns.backward_weight[1] = (real.time_ns.backward_weight[1] as f64 * 1.5) as i64;
        let run = if enforce_capacity { simulate } else { simulate_unlimited };
        let simulated = run(&real, &Order::of(problem, schedule)).map_err(|e| Error::failed(e.to_string()))?;
        let ops: Vec<MeasuredOp> = simulated
            .schedule
            .ops
            .iter()
            .enumerate()
            .flat_map(|(device, list)| list.iter().map(move |op| (device, op)))
            .map(|(device, op)| {
                let disturbed = |ns: i64| (ns as f64 * disturbance) as u64;
                let (start_ns, duration) = (disturbed(op.start_ns), disturbed(real.duration(op.op, op.stage)));
                MeasuredOp {
                    device,
                    op: op.op,
                    stage: op.stage,
                    microbatch: op.microbatch,
                    start_ns,
                    end_ns: start_ns + duration,
                    median_ns: duration,
                }
            })
            .collect();
        let step = (simulated.schedule.makespan_ns as f64 * disturbance) as u64;
        Ok(Measured {
            version: 1,
            backend: "cpu".to_owned(),
            step: sample(step),
            optimizer: sample(1),
            steps_ns: vec![step],
            losses: vec![1.0],
            peak_bytes: simulated.peak_bytes.iter().map(|&b| b as u64).collect(),
            allocator_peak_bytes: None,
            offloaded_bytes: 0,
            ops,
        })
    }
}

fn job() -> (Job, Model) {
    let mut job = Job::default();
    job.batch.microbatches = 4;
    // By iterations rather than by the clock, so that equal tunes have equal results.
    job.solver.time_limit = "60s".to_owned();
    job.solver.iterations = 2000;
    // Static memory is about 130 and 150 MiB, a microbatch 25 and 37 MiB: three of four do not fit.
    job.memory_limit = Some(MemoryLimit::All("240MiB".to_owned()));
    let model = Model::read(&job.model, None).unwrap();
    (job, model)
}

fn tune(root: &Path, job: &Job, model: &Model, machine: &mut MadeUp<'_>, cancel: &AtomicBool) -> Result<Summary> {
    let folder = Folder::open(root, job, model, Earlier::Resume)?;
    let progress = Progress::new(true);
    let cache = None;
    Tuning { job, model, hardware: None, profile: None, cache, folder: &folder, machine, progress: &progress, cancel }
        .run()
}

/// What must not depend on the wall clock.
fn without_clock(mut summary: Summary) -> Summary {
    summary.cost = Cost::default();
    summary.milp = None;
    for round in &mut summary.rounds {
        round.solve_ns = 0;
        round.run_ns = 0;
        round.milp = None;
    }
    summary
}

#[test]
fn measured_times_replace_the_profile_and_the_loop_converges() {
    let folder = tempfile::tempdir().unwrap();
    let (job, model) = job();
    let summary = tune(folder.path(), &job, &model, &mut MadeUp::new(), &AtomicBool::new(false)).unwrap();
    assert_eq!(summary.stop, StopReason::Converged);
    assert!(summary.rounds[0].ratio > 1.1, "the profile is too fast, copies are not: {}", summary.rounds[0].ratio);
    for round in &summary.rounds[1..] {
        assert!(
            (round.ratio - 1.0).abs() < 0.02,
            "round {} is predicted from measured times: {}",
            round.round,
            round.ratio
        );
    }
    let fastest = summary.rounds.iter().map(|round| round.measured.step.median_ns).min().unwrap();
    assert_eq!(summary.best.measured.as_ref().unwrap().step.median_ns, fastest);
    assert!(summary.best.fits());
    let gpipe = &summary.textbook[0];
    assert!(!gpipe.fits() && gpipe.measured.is_some(), "GPipe needs more than the limit and is measured all the same");
    for name in summary.files.keys() {
        assert!(folder.path().join(name.trim_end_matches('/')).exists(), "{name}");
    }
}

#[test]
fn a_tune_that_fails_in_any_round_resumes_to_the_same_result() {
    let (job, model) = job();
    let never = AtomicBool::new(false);
    let whole = tempfile::tempdir().unwrap();
    let mut machine = MadeUp::new();
    let expected = without_clock(tune(whole.path(), &job, &model, &mut machine, &never).unwrap());
    for fails_after in 0..machine.runs {
        let folder = tempfile::tempdir().unwrap();
        let mut failing = MadeUp { fails_after: Some(fails_after), ..MadeUp::new() };
        assert!(tune(folder.path(), &job, &model, &mut failing, &never).is_err());
        let resumed = tune(folder.path(), &job, &model, &mut MadeUp::new(), &never).unwrap();
        assert_eq!(without_clock(resumed), expected, "failed in run {fails_after}");
    }
}

#[test]
fn a_run_that_is_lost_ends_in_a_summary_of_what_was_measured_and_resumes_to_the_same_result() {
    let (job, model) = job();
    let never = AtomicBool::new(false);
    let whole = tempfile::tempdir().unwrap();
    let mut machine = MadeUp::new();
    let expected = without_clock(tune(whole.path(), &job, &model, &mut machine, &never).unwrap());
    let rounds = expected.rounds.len();
    for fails_after in 0..machine.runs {
        let folder = tempfile::tempdir().unwrap();
        let error = || Error::Lost { message: "device 1: panicked".to_owned(), hint: "run it again".to_owned() };
        let mut failing = MadeUp { fails_after: Some(fails_after), error, ..MadeUp::new() };
        let outcome = tune(folder.path(), &job, &model, &mut failing, &never);
        match fails_after {
            // Nothing was measured yet.
            0 => assert!(outcome.unwrap_err().to_string().contains("device 1: panicked")),
            _ if fails_after < rounds => {
                let summary = outcome.unwrap();
                assert_eq!((summary.stop, summary.rounds.len()), (StopReason::Failed, fails_after));
                assert!(summary.failure.unwrap().contains("device 1: panicked"));
                assert!(folder.path().join("report.html").exists() && folder.path().join("schedule.yaml").exists());
            }
            // Only the comparison lacks it.
            _ => {
                let summary = outcome.unwrap();
                let notes = summary.textbook.iter().filter_map(|outcome| outcome.note.as_deref());
                let lost = notes.filter(|note| note.contains("device 1: panicked")).count();
                assert_eq!(lost, usize::from(fails_after > rounds), "the first comparison is with ourselves");
                assert!(folder.path().join("report.html").exists());
            }
        }
        let resumed = tune(folder.path(), &job, &model, &mut MadeUp::new(), &never).unwrap();
        assert_eq!(without_clock(resumed), expected, "lost in run {fails_after}");
    }
}

#[test]
fn memory_that_does_not_suffice_is_planned_for() {
    let (job, model) = job();
    let never = AtomicBool::new(false);
    for fails_after in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let error = || Error::OutOfMemory {
            device: 1,
            over_bytes: Some(MIB),
            message: "device 1: out of memory".to_owned(),
            hint: String::new(),
        };
        let mut failing = MadeUp { fails_after: Some(fails_after), error, ..MadeUp::new() };
        let summary = tune(folder.path(), &job, &model, &mut failing, &never).unwrap();
        assert_eq!(summary.stop, StopReason::Converged);
        // 5 % less of the limit from then on, and schedules that fit it.
        let path = folder.path().join(format!("rounds/{:02}/problem.yaml", summary.rounds.len()));
        let problem: Problem = optpipe_configs::file::read_checked(&path).unwrap();
        assert_eq!(problem.bytes.capacity, [240 * MIB as i64, 228 * MIB as i64]);
        assert!(summary.rounds.last().unwrap().predicted.peak_bytes[1] <= 228 * MIB);
    }
}

#[test]
fn one_measurement_that_is_far_off_changes_no_result() {
    let (job, model) = job();
    let never = AtomicBool::new(false);
    let calm = tempfile::tempdir().unwrap();
    let mut machine = MadeUp::new();
    let expected = tune(calm.path(), &job, &model, &mut machine, &never).unwrap();
    let schedule = |folder: &Path| std::fs::read_to_string(folder.join("schedule.yaml")).unwrap();
    for run in 0..expected.rounds.len() {
        for factor in [10.0, 0.1] {
            let folder = tempfile::tempdir().unwrap();
            let mut disturbed = MadeUp { disturbed: Some((run, factor)), ..MadeUp::new() };
            let summary = tune(folder.path(), &job, &model, &mut disturbed, &never).unwrap();
            assert_eq!(without_clock(summary), without_clock(expected.clone()), "run {run}, times {factor}");
            assert_eq!(schedule(folder.path()), schedule(calm.path()), "run {run}, times {factor}");
            assert_eq!(disturbed.runs, machine.runs + 1, "it was measured once more");
        }
    }
}

#[test]
fn an_interrupt_keeps_the_best_and_before_the_first_measurement_says_so() {
    let (job, model) = job();
    for fails_after in [0, 1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let cancel = AtomicBool::new(false);
        let error = || Error::Interrupted(String::new());
        let mut machine = MadeUp { fails_after: Some(fails_after), error, cancel: Some(&cancel), ..MadeUp::new() };
        let outcome = tune(folder.path(), &job, &model, &mut machine, &cancel);
        if fails_after == 0 {
            assert_eq!(outcome.unwrap_err().exit_code(), 130);
            continue;
        }
        let summary = outcome.unwrap();
        assert_eq!((summary.stop, summary.rounds.len()), (StopReason::Interrupted, fails_after));
        assert!(folder.path().join("schedule.yaml").exists() && folder.path().join("timeline.svg").exists());
    }
}

#[test]
fn what_is_auto_is_decided_once_and_measured_at_every_size() {
    let (mut job, model) = job();
    job.batch = Batch { microbatch_size: Count::Auto, global_batch: Some(4), ..job.batch };
    job.pipeline.chunks = Count::Auto;
    job.stop.max_rounds = 1;
    job.run.textbook = false;
    let never = AtomicBool::new(false);
    let whole = tempfile::tempdir().unwrap();
    let expected = tune(whole.path(), &job, &model, &mut MadeUp::new(), &never).unwrap();
    for name in ["structure/profile-1.yaml", "structure/profile-2.yaml", "structure/search.yaml", "profile.yaml"] {
        assert!(whole.path().join(name).exists(), "{name}");
    }
    assert_eq!(expected.tokens_per_step, 4 * 256);
    // This machine's layers take as long for two sequences as for one.
    assert_eq!(expected.microbatches, 2);
    // Interrupted after the search, it goes on with what that decided.
    let folder = tempfile::tempdir().unwrap();
    assert!(tune(folder.path(), &job, &model, &mut MadeUp { fails_after: Some(0), ..MadeUp::new() }, &never).is_err());
    let search = std::fs::read_to_string(folder.path().join("structure/search.yaml")).unwrap();
    let resumed = tune(folder.path(), &job, &model, &mut MadeUp::new(), &never).unwrap();
    assert_eq!(without_clock(resumed), without_clock(expected));
    assert_eq!(std::fs::read_to_string(folder.path().join("structure/search.yaml")).unwrap(), search);
}

#[test]
fn the_round_limit_ends_a_tune_that_keeps_gaining() {
    let folder = tempfile::tempdir().unwrap();
    let (mut job, model) = job();
    job.stop.max_rounds = 1;
    job.run.textbook = false;
    let summary = tune(folder.path(), &job, &model, &mut MadeUp::new(), &AtomicBool::new(false)).unwrap();
    assert_eq!((summary.stop, summary.rounds.len()), (StopReason::RoundLimit, 1));
    assert!(summary.textbook.iter().all(|outcome| outcome.measured.is_none() && outcome.note.is_some()));
}

#[test]
fn too_little_memory_names_the_device_the_bytes_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (mut job, model) = job();
    job.memory_limit = Some(MemoryLimit::All("160MiB".to_owned()));
    let error = tune(folder.path(), &job, &model, &mut MadeUp::new(), &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("lacks"), "{error}");
    assert!(error.advice().unwrap().contains("memory_limit to at least"), "{:?}", error.advice());
}
