//! The loop: profile, solve, run, feed the measured times back, until throughput stops gaining.
//!
//! ```text
//! calibrate ─ profile ─ structure ─ plan ─┬─ solve ─ run ─ update times ─┐
//!                                         └──────────────────────────────┘ until a StopReason
//! textbook schedules ─ best measured schedule ─ summary, trace, timeline
//! ```
//!
//! The state is the output folder ([`folder::Folder`]): every round that has its `round.yaml` is
//! done, and a tune that was killed goes on from there.

pub mod folder;
pub mod local;
pub mod machine;
pub mod torchrun;
pub mod update;

mod finish;
mod room;
mod structure;
mod textbook;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use optpipe_configs::file::{self, Check};
use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::Job;
use optpipe_configs::model::Model;
use optpipe_configs::profile::Profile;
use optpipe_solver::method::Method;
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Schedule, ScheduleFile};
use optpipe_solver::simulate::simulate;
use optpipe_solver::solve::{Solution, SolveOptions};

use crate::cache::{self, Cache};
use crate::error::{Error, Result};
use crate::measured::Measured;
use crate::plan::{self, Plan};
use crate::progress::Progress;
use crate::solved::Solved;
use crate::summary::{Observed, Predicted, Round, StopReason, Summary};
use crate::text;
use folder::Folder;
use machine::Machine;
use update::RoundTimes;

/// Where ranks of torchrun and the tuner exchange files, in a tune's folder.
pub const TORCHRUN: &str = "torchrun";

/// What a tune works with.
pub struct Tuning<'a> {
    /// What to tune.
    pub job: &'a Job,
    /// Its model.
    pub model: &'a Model,
    /// Hardware given instead of a calibration.
    pub hardware: Option<Hardware>,
    /// A profile given instead of profiling.
    pub profile: Option<Profile>,
    /// Problems solved before.
    pub cache: Option<&'a Cache>,
    /// Where everything is written.
    pub folder: &'a Folder,
    /// What measures and runs.
    pub machine: &'a mut dyn Machine,
    /// Where progress is shown.
    pub progress: &'a Progress,
    /// Set when the user wants to stop.
    pub cancel: &'a AtomicBool,
}

/// A problem's solution and what running it took.
struct Ran {
    solution: Solution,
    yaml: String,
    measured: Measured,
    solve_ns: u64,
    run_ns: u64,
}

/// A finished round with what later rounds need of it.
struct Done {
    round: Round,
    problem: Problem,
    schedule: Schedule,
    measured: Measured,
    times: RoundTimes,
}

impl Tuning<'_> {
    /// Runs the loop to its end, or goes on with what the folder holds.
    ///
    /// # Errors
    /// [`Error::Interrupted`] only when nothing was measured yet; an interrupted tune with a measured
    /// schedule is a summary with [`StopReason::Interrupted`].
    pub fn run(mut self) -> Result<Summary> {
        let hardware = self.hardware()?;
        let job = self.decided_job(&hardware)?;
        let decided = Tuning {
            job: &job,
            model: self.model,
            hardware: None,
            profile: self.profile.take(),
            cache: self.cache,
            folder: self.folder,
            machine: &mut *self.machine,
            progress: self.progress,
            cancel: self.cancel,
        };
        decided.rounds(&hardware)
    }

    /// The loop, for a job in which nothing is open.
    fn rounds(mut self, hardware: &Hardware) -> Result<Summary> {
        let profile = self.profile()?;
        let plan = plan::problem(&profile, hardware, self.job, self.model)?;
        self.progress.line(&describe(&plan));
        let mut rounds = self.finished_rounds()?;
        if !rounds.is_empty() {
            self.progress.line(&format!("resuming after round {}", rounds.len()));
        }
        self.mend(&rounds)?;
        let mut failure = None;
        let stop = loop {
            if let Some(stop) = stop_reason(self.job, rounds.iter().map(|done| &done.round)) {
                break stop;
            }
            if self.cancel.load(Ordering::SeqCst) {
                break StopReason::Interrupted;
            }
            self.progress.left_in_all(time_left(self.job, &rounds));
            match self.round(&plan, &rounds) {
                Ok(done) => rounds.push(done),
                Err(Error::Interrupted(_)) => break StopReason::Interrupted,
                Err(e @ (Error::Lost { .. } | Error::OutOfMemory { .. })) if !rounds.is_empty() => {
                    failure = Some(e.advice().map_or_else(|| e.to_string(), |advice| format!("{e}\n({advice})")));
                    break StopReason::Failed;
                }
                Err(e) => return Err(e),
            }
        };
        if rounds.is_empty() {
            return Err(Error::Interrupted(": nothing was measured yet; --resume goes on from here".to_owned()));
        }
        self.finish(hardware, &profile, &plan, rounds, stop, failure)
    }

    fn hardware(&mut self) -> Result<Hardware> {
        if let Some(found) = self.folder.read("hardware.yaml")? {
            return Ok(found);
        }
        let hardware = match self.hardware.take() {
            Some(given) => given,
            None => {
                self.progress.phase("calibrating: copies between device and host");
                self.machine.calibrate(self.job, self.progress, self.cancel)?
            }
        };
        self.folder.write("hardware.yaml", &hardware)?;
        self.progress.line(&format!(
            "hardware: {} devices, offload {}, reload {}",
            hardware.devices.len(),
            text::rate(hardware.offload.bytes_per_second),
            text::rate(hardware.reload.bytes_per_second)
        ));
        Ok(hardware)
    }

    fn profile(&mut self) -> Result<Profile> {
        if let Some(found) = self.folder.read("profile.yaml")? {
            return Ok(found);
        }
        let profile = match self.profile.take() {
            Some(given) => given,
            None => {
                self.progress.phase("profiling: layers of the model");
                self.machine.profile(self.job, self.model, self.progress, self.cancel)?
            }
        };
        self.folder.write("profile.yaml", &profile)?;
        for warning in unstable(&profile) {
            self.progress.warn(&warning);
        }
        Ok(profile)
    }

    /// The rounds that the folder holds, in order, up to the first that is not complete.
    fn finished_rounds(&self) -> Result<Vec<Done>> {
        let mut rounds = Vec::new();
        for number in 1.. {
            let path = self.folder.round(number, "round.yaml");
            if !path.exists() {
                break;
            }
            let round: Round = file::read_checked(&path)?;
            let problem: Problem = file::read_checked(&self.folder.round(number, "problem.yaml"))?;
            let schedule: ScheduleFile = file::read_checked(&self.folder.round(number, "schedule.yaml"))?;
            let measured: Measured = file::read_checked(&self.folder.round(number, "measured.yaml"))?;
            let times = update::round_times(&measured);
            rounds.push(Done { round, problem, schedule: schedule.schedule, measured, times });
        }
        Ok(rounds)
    }

    /// Writes the best round's problem and schedule again, which a kill between the two left apart: a trainer may
    /// read them while the tune goes on.
    fn mend(&self, rounds: &[Done]) -> Result<()> {
        let Some(best) = best(rounds) else { return Ok(()) };
        for name in ["problem.yaml", "schedule.yaml"] {
            let text = file::read_text(&self.folder.round(best.round.round, name))?;
            file::write_text(&self.folder.path(name), &text).map_err(Error::write)?;
        }
        Ok(())
    }

    /// One round: problem, schedule, measurement, record, each written as soon as it is known.
    fn round(&mut self, plan: &Plan, rounds: &[Done]) -> Result<Done> {
        let number = rounds.len() + 1;
        let times: Vec<RoundTimes> = rounds.iter().map(|done| done.times.clone()).collect();
        let mut problem = update::updated(&plan.problem, &times);
        problem.check().map_err(|invalid| Error::Lost {
            message: format!("round {number}: measured times make no problem: {}: {}", invalid.field, invalid.message),
            hint: "something measured them wrong; a tune with --force begins anew".to_owned(),
        })?;
        room::keep(&mut problem, rounds.last().map(|done| &done.problem));
        let best = best(rounds);
        let Ran { solution, yaml, measured, solve_ns, run_ns } =
            self.solve_and_run(plan, &mut problem, best, number)?;
        self.write_round(number, "measured.yaml", &measured)?;

        let tokens = tokens_per_step(self.job);
        let predicted = Predicted::of(&problem, &solution.schedule, tokens);
        let observed = Observed::of(&measured, problem.devices, tokens);
        let gain =
            best.map(|best| best.round.measured.step.median_ns as f64 / observed.step.median_ns.max(1) as f64 - 1.0);
        let round = Round {
            version: file::VERSION,
            round: number,
            method: solution.method.clone(),
            ratio: observed.step.median_ns as f64 / predicted.step_ns.max(1) as f64,
            predicted,
            measured: observed,
            bound_ns: solution.bound_ns,
            gap: solution.gap(),
            proven: solution.proven,
            gain,
            best_so_far: gain.is_none_or(|gain| gain > 0.0),
            solve_ns,
            run_ns,
            milp: solution.milp.clone(),
        };
        self.write_round(number, "round.yaml", &round)?;
        if round.best_so_far {
            self.folder.write("problem.yaml", &problem)?;
            file::write_text(&self.folder.path("schedule.yaml"), &yaml).map_err(Error::write)?;
        }
        self.progress.line(&round_line(&round));
        let times = update::round_times(&measured);
        Ok(Done { round, problem, schedule: solution.schedule, measured, times })
    }

    fn solve(&self, problem: &Problem, best: Option<&Done>, number: usize) -> Result<Solution> {
        let time_limit = self.job.time_limit().map_err(|invalid| Error::invalid("job", invalid))?;
        let of = self.job.stop.max_rounds;
        self.progress.phase_within(&format!("round {number} of at most {of}: solving"), time_limit);
        // The best schedule so far, its order under the new times, is where the solver starts.
        let start = best.and_then(|best| {
            let order = Order::of(&best.problem, &best.schedule);
            simulate(problem, &order).ok().map(|simulated| simulated.schedule)
        });
        let options = SolveOptions {
            method: Method::Auto,
            time_limit,
            seed: self.job.solver.seed,
            start,
            start_method: best.map(|best| best.round.method.clone()),
            iterations: Some(self.job.solver.iterations).filter(|&n| n > 0),
            ..SolveOptions::default()
        };
        let mut on_event = |event: &optpipe_solver::solve::Event| {
            self.progress.update(&format!("round {number}: solving, {event}"));
        };
        let (solution, hit) = cache::solve(problem, &options, self.cache, &mut on_event, self.cancel)?;
        if let Some(hit) = hit {
            self.progress.line(&format!("round {number}: {hit}"));
        }
        self.write_round(number, "solve.yaml", &Solved::of(&solution, hit))?;
        Ok(solution)
    }

    fn schedule_file(&self, plan: &Plan, solution: &Solution) -> ScheduleFile {
        ScheduleFile {
            method: Some(solution.method.clone()),
            bound_ns: Some(solution.bound_ns),
            model: Some(self.model.name.clone()),
            layer_split: Some(plan.layer_split.clone()),
            placement: Some(plan.problem.placement.clone()),
            microbatches: Some(plan.problem.microbatches),
            ..ScheduleFile::new(solution.schedule.clone())
        }
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.cancel.load(Ordering::SeqCst) { Err(Error::Interrupted(String::new())) } else { Ok(()) }
    }

    fn write_round<T: serde::Serialize>(&self, round: usize, name: &str, value: &T) -> Result<()> {
        file::write(&self.folder.round(round, name), value).map_err(Error::write)
    }
}

/// The fastest measured round; of equals the first.
fn best(rounds: &[Done]) -> Option<&Done> {
    rounds.iter().min_by_key(|done| done.round.measured.step.median_ns)
}

/// Why to stop after these rounds, if at all.
pub fn stop_reason<'a>(
    job: &Job,
    rounds: impl DoubleEndedIterator<Item = &'a Round> + ExactSizeIterator,
) -> Option<StopReason> {
    let count = rounds.len();
    let idle = rounds.rev().take_while(|round| round.gain.is_some_and(|gain| gain < job.stop.tolerance)).count();
    if idle >= job.stop.patience.max(1) {
        Some(StopReason::Converged)
    } else if count >= job.stop.max_rounds.max(1) {
        Some(StopReason::RoundLimit)
    } else {
        None
    }
}

/// About how long a tune goes on after these rounds if it needs all that it may: nothing is known before the first.
fn time_left(job: &Job, rounds: &[Done]) -> Option<Duration> {
    let count = u64::try_from(rounds.len()).ok().filter(|&count| count > 0)?;
    let mean = |of: fn(&Round) -> u64| rounds.iter().map(|done| of(&done.round)).sum::<u64>() / count;
    let (solve, run) = (mean(|round| round.solve_ns), mean(|round| round.run_ns));
    let more = job.stop.max_rounds.saturating_sub(rounds.len()) as u64;
    // The best one and the textbook schedules run once more at the end.
    let compared = if job.run.textbook { textbook::COMPARED.len() as u64 + 1 } else { 0 };
    let ns = solve.saturating_mul(more).saturating_add(run.saturating_mul(more + compared));
    Some(Duration::from_nanos(ns))
}

/// Tokens that one step trains on.
pub fn tokens_per_step(job: &Job) -> u64 {
    (job.batch.sequence_length * job.global_batch()) as u64
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// What each measurement that did not settle is called.
pub fn unstable(profile: &Profile) -> Vec<String> {
    let mut out = Vec::new();
    for layer in &profile.layers {
        let samples = [
            ("forward", &layer.forward),
            ("backward_input", &layer.backward_input),
            ("backward_weight", &layer.backward_weight),
        ];
        for (name, sample) in samples.into_iter().filter(|(_, sample)| !sample.stable) {
            out.push(format!(
                "{name} of the {:?} did not settle: median {}, 5 % below {}, 5 % above {} of {} samples",
                layer.kind,
                text::duration(sample.median_ns as i64),
                text::duration(sample.p05_ns as i64),
                text::duration(sample.p95_ns as i64),
                sample.count
            ));
        }
    }
    out
}

fn describe(plan: &Plan) -> String {
    let stages: Vec<String> = plan
        .stages
        .iter()
        .enumerate()
        .map(|(s, stage)| format!("  stage {s} on device {}: {}", stage.device, stage.layers))
        .collect();
    let memory: Vec<String> = plan
        .memory
        .iter()
        .enumerate()
        .map(|(d, memory)| {
            format!(
                "  device {d}: limit {}; static {} = weights {} + gradients {} + optimizer {} + workspace {}",
                text::bytes(memory.capacity),
                text::bytes(memory.static_bytes()),
                text::bytes(memory.weights),
                text::bytes(memory.gradients),
                text::bytes(memory.optimizer),
                text::bytes(memory.workspace)
            )
        })
        .collect();
    format!("layer split {:?}\n{}\n{}", plan.layer_split, stages.join("\n"), memory.join("\n"))
}

fn round_line(round: &Round) -> String {
    let gain = round.gain.map_or(String::new(), |gain| format!(", gain {:+.1} %", 100.0 * gain));
    format!(
        "round {}: predicted {}, measured {} (x{:.2}){gain}; gap to the bound {}; {} offloads; found by {}",
        round.round,
        text::duration(round.predicted.step_ns),
        text::duration(round.measured.step.median_ns as i64),
        round.ratio,
        text::gap(round.gap),
        round.predicted.offloaded,
        round.method
    )
}

#[cfg(test)]
mod tests;
