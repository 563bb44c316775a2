//! A model spread over devices, and its steps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::DType;
use optpipe_configs::job::Precision;
use optpipe_configs::split;
use optpipe_kernels::budget::Budget;
use optpipe_profiler::model::{BuildOptions, layer_count};
use optpipe_solver::order::Order;
use optpipe_solver::schedule::Op;

use super::RunPlan;
use super::board::Board;
use super::data;
use super::error::RunError;
use super::ledger::Ledger;
use super::optimizer::Update;
use super::program::Program;
use super::stage::NamedGradient;
use super::worker::{Command, Reply, Runner, Shared};

/// How often the caller's flag and the watchdog are looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// How long threads have to finish the op they are in once the run has ended early.
const GRACE: Duration = Duration::from_secs(5);

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
}

impl Pipeline {
    /// Starts the threads and builds the layers. The order is run as it is: whether it is one of a legal
    /// schedule is up to the caller.
    ///
    /// # Errors
    /// [`RunError::Plan`], [`RunError::Schedule`] where an op is missing, repeated or in the wrong place,
    /// [`RunError::Static`], [`RunError::Cancelled`], and what building the layers or a thread reports.
    pub fn start(plan: &RunPlan, order: &Order, cancel: &AtomicBool) -> Result<Pipeline, RunError> {
        let program = Program::compile(plan.problem, order)?;
        let shared = Arc::new(share(plan, program)?);
        let (answer, replies) = channel();
        let mut pipeline = Pipeline {
            commands: Vec::new(),
            replies,
            threads: Vec::new(),
            stall_timeout: plan.stall_timeout,
            data: (plan.seed, (plan.microbatch_size, plan.sequence_length)),
            learning_rate: plan.learning_rate,
            steps: 0,
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
        pipeline.tell(|| Command::Prepare);
        pipeline.collect(cancel, None, |_| ())?;
        Ok(pipeline)
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for sender in &self.commands {
            // A thread that is gone has left its reason on the board, where `collect` finds it.
            let _ = sender.send(command());
        }
    }

    /// Takes one reply of every thread; ends the run if the caller wants it or, with a patience, if nothing
    /// goes on for so long.
    fn collect(
        &mut self,
        cancel: &AtomicBool,
        patience: Option<Duration>,
        mut take: impl FnMut(Reply),
    ) -> Result<(), RunError> {
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
            if let Some(patience) = patience {
                self.shared.board.watch(patience);
            }
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
        let shared = Arc::clone(&self.shared);
        let (seed, shape) = self.data;
        let microbatches = shared.problem.microbatches;
        let vocabulary = shared.model.vocabulary;
        let device = &shared.build[0].device;
        let batch = data::step(seed, self.steps, microbatches, shape, vocabulary, device)
            .map_err(|e| RunError::Plan { field: "data", message: e.to_string() })?;
        let batch = Arc::new(batch);
        shared.board.begin_step(self.steps);
        self.tell(|| Command::Step(Arc::clone(&batch)));
        let mut record = StepRecord { ops: Vec::new(), step_ns: 0, loss: 0.0, offloaded_bytes: 0 };
        self.collect(cancel, Some(self.stall_timeout), |reply| {
            if let Reply::Step { times, losses, offloaded } = reply {
                record.ops.extend(times);
                record.loss += losses.iter().sum::<f64>() / microbatches as f64;
                record.offloaded_bytes += offloaded;
            }
        })?;
        let first = record.ops.iter().map(|x| x.1).min().unwrap_or(0);
        for (_, start, end) in &mut record.ops {
            (*start, *end) = (*start - first, *end - first);
        }
        record.step_ns = record.ops.iter().map(|x| x.2).max().unwrap_or(0);
        if !record.loss.is_finite() {
            return Err(RunError::Diverged { step: self.steps as usize, loss: record.loss });
        }
        if shared.model.tied_embeddings {
            self.tell(|| Command::ShareTied);
            self.collect(cancel, None, |_| ())?;
        }
        self.steps += 1;
        Ok(record)
    }

    /// Updates the weights by the last step's gradients; returns how long that took, ns.
    ///
    /// # Errors
    /// [`RunError::Cancelled`], and what the update reports.
    pub fn optimize(&mut self, cancel: &AtomicBool) -> Result<u64, RunError> {
        let step = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let update = Update { optimizer: self.shared.optimizer, learning_rate: self.learning_rate, step };
        let start = Instant::now();
        self.tell(|| Command::Update(update));
        self.collect(cancel, None, |_| ())?;
        Ok(start.elapsed().as_nanos() as u64)
    }

    /// The gradients of the last step, by layer; to be asked for before [`Pipeline::optimize`].
    ///
    /// # Errors
    /// [`RunError::Cancelled`], and what copying them reports.
    pub fn gradients(&mut self, cancel: &AtomicBool) -> Result<Vec<NamedGradient>, RunError> {
        self.tell(|| Command::Gradients);
        let mut list = Vec::new();
        self.collect(cancel, None, |reply| {
            if let Reply::Gradients(part) = reply {
                list.extend(part);
            }
        })?;
        list.sort_by_key(|x| x.layer);
        Ok(list)
    }

    /// Most bytes that the tensors of each device have held at once since the start or the last
    /// [`Pipeline::reset_peaks`], static ones and the workspace set aside included.
    pub fn peak_bytes(&self) -> Vec<u64> {
        self.shared.ledgers.iter().map(Ledger::peak).collect()
    }

    /// Counts the peaks anew.
    pub fn reset_peaks(&self) {
        self.shared.ledgers.iter().for_each(Ledger::reset_peak);
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

/// Checks that the parts of the plan belong together and sets up what the threads share.
fn share(plan: &RunPlan, program: Program) -> Result<Shared, RunError> {
    let problem = plan.problem;
    let wrong = |field, message| Err(RunError::Plan { field, message });
    let (stages, devices) = (problem.stages(), problem.devices);
    let blocks: usize = plan.layer_split.iter().sum();
    if plan.layer_split.len() != stages || blocks != plan.model.layers {
        return wrong(
            "layer_split",
            format!(
                "expected {stages} stages with the {} blocks of {} in all, found {:?}",
                plan.model.layers, plan.model.name, plan.layer_split
            ),
        );
    }
    let layers = split::layer_ranges(plan.layer_split);
    if layers.last().map(|range| range.end) != Some(layer_count(plan.model)) {
        return wrong("layer_split", format!("expected {} layers in all, found {layers:?}", layer_count(plan.model)));
    }
    if let Some(stage) = layers.iter().position(|range| range.is_empty()) {
        return wrong("layer_split", format!("stage {stage} holds no layer"));
    }
    if plan.backend.devices().len() < devices {
        let found = plan.backend.devices().len();
        return wrong("backend", format!("expected {devices} devices, found {found}"));
    }
    if plan.microbatch_size == 0 || plan.sequence_length == 0 {
        return wrong("microbatch_size", "expected at least one sequence of at least one token".to_owned());
    }
    if plan.sequence_length > plan.model.max_positions {
        return wrong(
            "sequence_length",
            format!(
                "expected at most the model's {} positions, found {}",
                plan.model.max_positions, plan.sequence_length
            ),
        );
    }
    let workspace = match plan.workspace {
        Some(list) if list.len() == devices => list.to_vec(),
        Some(list) => return wrong("workspace", format!("expected one entry a device, found {}", list.len())),
        None => vec![0; devices],
    };
    let dtype = match plan.precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let build: Vec<BuildOptions> =
        (0..devices).map(|d| BuildOptions { dtype, seed: plan.seed, device: plan.backend.device(d).clone() }).collect();
    let mut budgets = Vec::with_capacity(devices);
    let mut fixed = Vec::with_capacity(devices);
    for device in 0..devices {
        let bytes = |list: &[i64]| u64::try_from(list[device]).unwrap_or(0);
        let capacity = plan.enforce_capacity.then(|| bytes(&problem.bytes.capacity));
        // The board finds every deadlock of this run, also between a device and another's copies; the
        // budget's own patience is there for a defect of the board.
        let budget = Budget::with_patience(device, capacity, plan.stall_timeout.saturating_add(GRACE));
        match budget.reserve_fixed(bytes(&problem.bytes.r#static)) {
            Ok(reservation) => fixed.push(reservation),
            Err(e) => return wrong("problem.bytes.static", e.to_string()),
        }
        budgets.push(budget);
    }
    let pairs = program.pairs();
    Ok(Shared {
        problem: problem.clone(),
        model: plan.model.clone(),
        layers,
        build,
        optimizer: plan.optimizer,
        enforce_capacity: plan.enforce_capacity,
        workspace,
        backend: Arc::clone(&plan.backend),
        board: Board::new(program, budgets),
        fixed,
        ledgers: (0..devices).map(|_| Ledger::new(0)).collect(),
        clock: Instant::now(),
        outputs: (0..pairs).map(|_| Mutex::new(None)).collect(),
        gradients: (0..pairs).map(|_| Mutex::new(None)).collect(),
        parked: (0..pairs).map(|_| Mutex::default()).collect(),
        tied: [Mutex::new(None), Mutex::new(None)],
    })
}
