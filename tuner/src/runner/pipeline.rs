//! A model spread over devices, and its steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use optpipe_solver::order::Order;
use optpipe_solver::schedule::Op;

use super::RunPlan;
use super::board::Arrivals;
use super::data;
use super::error::{RunError, Worker};
use super::ledger::Ledger;
use super::optimizer::Update;
use super::program::Program;
use super::share::share;
use super::stage::NamedGradient;
use super::worker::{Command, Reply, Runner, Shared, Timed, lock};

/// How often the caller's flag and the watchdog are looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// How long threads have to finish the op they are in once the run has ended early.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// One step as it happened.
#[derive(Debug, Clone)]
pub struct StepRecord {
    /// Each op with its start and end, ns from the start of the step's first op, in each thread's order.
    pub ops: Vec<(Op, u64, u64)>,
    /// From the start of the first op to the end of the last, ns.
    pub step_ns: u64,
    /// Mean loss over the microbatches.
    pub loss: f64,
    /// Bytes copied to the host.
    pub offloaded_bytes: u64,
}

/// The threads of a run, with the model's layers built and the order of a step compiled.
///
/// A step is [`Pipeline::step`], then [`Pipeline::optimize`]. Dropping ends the threads.
pub struct Pipeline {
    shared: Arc<Shared>,
    commands: Vec<Sender<Command>>,
    replies: Receiver<(usize, Reply)>,
    threads: Vec<JoinHandle<()>>,
    stall_timeout: Duration,
    data: (u64, (usize, usize)),
    learning_rate: f64,
    steps: u64,
    /// What devices that do not take part send in every step.
    supplied: Vec<Supply>,
}

/// What a device that does not take part sends to one that does, the same for every microbatch.
#[derive(Debug, Clone)]
pub(super) enum Supply {
    /// The input of a stage.
    Input(usize, Tensor),
    /// The gradient by a stage's output.
    Gradient(usize, Tensor),
}

/// A step of all threads.
pub(super) struct Executed {
    /// Each op with its times on the run's clock, in each thread's order.
    pub(super) times: Vec<Timed>,
    /// Mean loss over the microbatches.
    pub(super) loss: f64,
    /// Bytes copied to the host.
    pub(super) offloaded_bytes: u64,
    /// The time on the run's clock from which arrivals count.
    pub(super) origin_ns: u64,
}

/// Time for the threads to wake up before a step with arrivals begins.
const LEAD: Duration = Duration::from_millis(1);

impl Pipeline {
    /// Starts the threads and builds the layers. The order is run as it is: whether it is one of a legal
    /// schedule is up to the caller.
    ///
    /// # Errors
    /// [`RunError::Plan`], [`RunError::Schedule`] where an op is missing, repeated or in the wrong place,
    /// [`RunError::Static`], [`RunError::Cancelled`], and what building the layers or a thread reports.
    pub fn start(plan: &RunPlan, order: &Order, cancel: &AtomicBool) -> Result<Pipeline, RunError> {
        let program = Program::compile(plan.problem, order)?;
        Pipeline::launch(plan, program, (0..plan.problem.devices).collect(), cancel)
    }

    /// As [`Pipeline::start`] for the part of one device, on the backend's first one: no other device's layers
    /// are built, and what comes from others has to be [supplied](Pipeline::supply).
    pub(super) fn start_alone(
        plan: &RunPlan,
        order: &Order,
        device: usize,
        cancel: &AtomicBool,
    ) -> Result<Pipeline, RunError> {
        let program = Program::compile(plan.problem, order)?.alone(plan.problem, device);
        Pipeline::launch(plan, program, vec![0; plan.problem.devices], cancel)
    }

    fn launch(plan: &RunPlan, program: Program, place: Vec<usize>, cancel: &AtomicBool) -> Result<Pipeline, RunError> {
        let shared = Arc::new(share(plan, program, place)?);
        let (answer, replies) = channel();
        let mut pipeline = Pipeline {
            commands: Vec::new(),
            replies,
            threads: Vec::new(),
            stall_timeout: plan.stall_timeout,
            data: (plan.seed, (plan.microbatch_size, plan.sequence_length)),
            learning_rate: plan.learning_rate,
            steps: 0,
            supplied: Vec::new(),
            shared,
        };
        for (index, worker) in pipeline.shared.board.program.workers.iter().enumerate() {
            let (sender, commands) = channel();
            let runner = Runner { shared: Arc::clone(&pipeline.shared), index, commands, replies: answer.clone() };
            let thread = std::thread::Builder::new().name(worker.worker.to_string()).spawn(move || runner.run())?;
            pipeline.commands.push(sender);
            pipeline.threads.push(thread);
        }
        drop(answer);
        pipeline.ask(|| Command::Prepare, cancel, |_| ())?;
        Ok(pipeline)
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for sender in &self.commands {
            // A thread that is gone has left its reason on the board, where `collect` finds it.
            let _ = sender.send(command());
        }
    }

    /// Has all threads do something between two steps, and takes a reply of each.
    fn ask(
        &mut self,
        command: impl Fn() -> Command,
        cancel: &AtomicBool,
        take: impl FnMut(Reply),
    ) -> Result<(), RunError> {
        self.shared.board.begin_other();
        self.tell(command);
        self.collect(cancel, take)
    }

    /// Takes one reply of every thread; ends the run if the caller wants it, or if nothing goes on for too long.
    fn collect(&mut self, cancel: &AtomicBool, mut take: impl FnMut(Reply)) -> Result<(), RunError> {
        let mut missing = self.commands.len();
        let mut ended: Option<Instant> = None;
        while missing > 0 {
            match self.replies.recv_timeout(GLANCE) {
                Ok((_, Reply::Failed)) => {
                    missing -= 1;
                    ended.get_or_insert_with(Instant::now);
                }
                Ok((_, reply)) => {
                    missing -= 1;
                    take(reply);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if cancel.load(Ordering::Relaxed) {
                self.shared.board.fail(RunError::Cancelled);
            }
            self.shared.board.watch(self.stall_timeout);
            if self.shared.board.is_stopped() && ended.get_or_insert_with(Instant::now).elapsed() > GRACE {
                // A thread is inside an op that does not return. It cannot be ended from outside; it ends
                // with the process, and holds nothing that anyone waits for.
                self.threads.clear();
                break;
            }
        }
        match self.shared.board.take_failure() {
            Some(reason) => Err(reason),
            None if missing > 0 => Err(RunError::Cancelled),
            None => Ok(()),
        }
    }

    /// Runs forward and backward of one step. The weights stay as they are.
    ///
    /// # Errors
    /// Every [`RunError`] of an op; afterwards this pipeline can do nothing more.
    pub fn step(&mut self, cancel: &AtomicBool) -> Result<StepRecord, RunError> {
        let Executed { times, loss, offloaded_bytes, .. } = self.execute(None, cancel)?;
        let first = times.iter().map(|x| x.start_ns).min().unwrap_or(0);
        let ops: Vec<_> = times.iter().map(|x| (x.op, x.start_ns - first, x.end_ns - first)).collect();
        let step_ns = ops.iter().map(|x| x.2).max().unwrap_or(0);
        Ok(StepRecord { ops, step_ns, loss, offloaded_bytes })
    }

    /// What devices that do not take part send in every step from now on.
    pub(super) fn supply(&mut self, supplied: Vec<Supply>) {
        self.supplied = supplied;
    }

    /// [`Pipeline::step`] where no op starts before its time (by op number, ns from the step's origin).
    pub(super) fn execute(&mut self, earliest_ns: Option<Vec<u64>>, cancel: &AtomicBool) -> Result<Executed, RunError> {
        let shared = Arc::clone(&self.shared);
        let (seed, shape) = self.data;
        let microbatches = shared.problem.microbatches;
        let vocabulary = shared.model.vocabulary;
        let device = &shared.build[0].device;
        let batch = data::step(seed, self.steps, microbatches, shape, vocabulary, device)
            .map_err(|e| RunError::Plan { field: "data", message: e.to_string() })?;
        let batch = Arc::new(batch);
        for supply in &self.supplied {
            let (table, stage, tensor) = match supply {
                Supply::Input(stage, tensor) => (&shared.outputs, stage - 1, tensor),
                Supply::Gradient(stage, tensor) => (&shared.gradients, *stage, tensor),
            };
            for slot in &table[stage * microbatches..][..microbatches] {
                *lock(slot) = Some(tensor.clone());
            }
        }
        let origin = Instant::now() + LEAD;
        shared.board.begin_step(self.steps, earliest_ns.map(|earliest_ns| Arrivals { origin, earliest_ns }));
        self.tell(|| Command::Step(Arc::clone(&batch)));
        let origin_ns = origin.duration_since(shared.clock).as_nanos() as u64;
        let mut executed = Executed { times: Vec::new(), loss: 0.0, offloaded_bytes: 0, origin_ns };
        self.collect(cancel, |reply| {
            if let Reply::Step { times, losses, offloaded } = reply {
                executed.times.extend(times);
                executed.loss += losses.iter().sum::<f64>() / microbatches as f64;
                executed.offloaded_bytes += offloaded;
            }
        })?;
        if !executed.loss.is_finite() {
            return Err(RunError::Diverged { step: self.steps as usize, loss: executed.loss });
        }
        if shared.model.tied_embeddings {
            self.ask(|| Command::ShareTied, cancel, |_| ())?;
            self.stand_in_for_tied();
        }
        self.steps += 1;
        Ok(executed)
    }

    /// Where the other end of a tied matrix does not take part, a gradient of the same shape and scale stands
    /// in for its own.
    fn stand_in_for_tied(&self) {
        let stages = self.shared.problem.stages();
        if (0..stages).all(|stage| self.shared.board.program.is_here(stage)) {
            return;
        }
        let [embedding, head] = &self.shared.tied;
        let (mut embedding, mut head) = (lock(embedding), lock(head));
        if embedding.is_none() {
            embedding.clone_from(&head);
        } else if head.is_none() {
            head.clone_from(&embedding);
        }
    }

    /// Updates the weights by the last step's gradients; returns how long that took, ns.
    ///
    /// # Errors
    /// [`RunError::Cancelled`], and what the update reports.
    pub fn optimize(&mut self, cancel: &AtomicBool) -> Result<u64, RunError> {
        let step = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let update = Update { optimizer: self.shared.optimizer, learning_rate: self.learning_rate, step };
        let start = Instant::now();
        self.ask(|| Command::Update(update), cancel, |_| ())?;
        Ok(start.elapsed().as_nanos() as u64)
    }

    /// The gradients of the last step, by layer; to be asked for before [`Pipeline::optimize`].
    ///
    /// # Errors
    /// [`RunError::Cancelled`], and what copying them reports.
    pub fn gradients(&mut self, cancel: &AtomicBool) -> Result<Vec<NamedGradient>, RunError> {
        let mut list = Vec::new();
        self.ask(
            || Command::Gradients,
            cancel,
            |reply| {
                if let Reply::Gradients(part) = reply {
                    list.extend(part);
                }
            },
        )?;
        list.sort_by_key(|x| x.layer);
        Ok(list)
    }

    /// Most bytes that the tensors of each device have held at once since the start or the last
    /// [`Pipeline::reset_peaks`], static ones and the workspace set aside included.
    pub fn peak_bytes(&self) -> Vec<u64> {
        self.shared.ledgers.iter().map(Ledger::peak).collect()
    }

    /// The same of one device as its own allocator counts it, temporaries and tensors under way included. `None`
    /// where that does not tell.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn allocator_peak_bytes(&self, device: usize) -> Result<Option<u64>, RunError> {
        self.shared.backend.peak_bytes(self.shared.place[device]).map_err(|e| self.unreadable(device, &e))
    }

    /// Counts the peaks anew.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn reset_peaks(&self) -> Result<(), RunError> {
        self.shared.ledgers.iter().for_each(Ledger::reset_peak);
        for (device, &place) in self.shared.place.iter().enumerate() {
            self.shared.backend.restart_peak(place).map_err(|e| self.unreadable(device, &e))?;
        }
        Ok(())
    }

    fn unreadable(&self, device: usize, error: &candle_core::Error) -> RunError {
        RunError::Op { worker: Worker::Device(device), op: None, message: error.to_string() }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.commands.clear();
        for thread in self.threads.drain(..) {
            // Its panic, if any, is on the board already.
            let _ = thread.join();
        }
    }
}
