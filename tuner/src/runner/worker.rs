//! The threads: one a device, which computes, and one a channel, which copies.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use candle_core::{Result, Tensor};
use optpipe_configs::job::Optimizer;
use optpipe_configs::model::Model;
use optpipe_kernels::backend::{Backend, is_out_of_memory};
use optpipe_kernels::budget::Reservation;
use optpipe_profiler::layer::Microbatch;
use optpipe_profiler::model::BuildOptions;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Op, OpKind};

use super::board::{Board, Stopped};
use super::error::{RunError, Worker};
use super::ledger::Ledger;
use super::optimizer::Update;
use super::parked::Parked;
use super::stage::{DistinctBytes, NamedGradient, Stage, TiedEnd, scalar};

/// What all threads of a run share.
pub(super) struct Shared {
    pub(super) problem: Problem,
    pub(super) model: Model,
    /// Layers of each stage.
    pub(super) layers: Vec<std::ops::Range<usize>>,
    pub(super) build: Vec<BuildOptions>,
    pub(super) optimizer: Optimizer,
    pub(super) enforce_capacity: bool,
    pub(super) workspace: Vec<u64>,
    pub(super) backend: Arc<dyn Backend>,
    /// By device of the problem: the device of the backend.
    pub(super) place: Vec<usize>,
    pub(super) board: Board,
    /// The static bytes of each device, held as long as the run lasts.
    #[expect(dead_code, reason = "held, not read")]
    pub(super) fixed: Vec<Reservation>,
    pub(super) ledgers: Vec<Ledger>,
    /// One clock for all threads.
    pub(super) clock: Instant,
    /// By stage and microbatch: the forward's output, until the next stage takes it.
    pub(super) outputs: Vec<Mutex<Option<Tensor>>>,
    /// By stage and microbatch: the gradient by the stage's output, until the stage takes it.
    pub(super) gradients: Vec<Mutex<Option<Tensor>>>,
    pub(super) parked: Vec<Mutex<Parked>>,
    /// Gradients of the shared matrix: the embedding's and the head's, when they are on two stages.
    pub(super) tied: [Mutex<Option<Tensor>>; 2],
}

/// What a thread is told to do.
pub(super) enum Command {
    /// Build the layers.
    Prepare,
    /// Its ops of one step.
    Step(Arc<Vec<Microbatch>>),
    /// Put the gradient that another stage needs where that finds it.
    ShareTied,
    /// The optimizer step.
    Update(Update),
    /// Copies of the gradients.
    Gradients,
}

/// When an op ran, ns of the run's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timed {
    pub(super) op: Op,
    /// From when on it waited for nothing: what follows until its start is the device's own doing, such as
    /// taking over its input.
    pub(super) ready_ns: u64,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
}

/// What a thread answers; nothing but [`Reply::Failed`] once the reason is on the board.
pub(super) enum Reply {
    /// Each of its ops with its times, and the losses of its forwards.
    Step {
        times: Vec<Timed>,
        losses: Vec<f64>,
        offloaded: u64,
    },
    /// Done.
    Done,
    Gradients(Vec<NamedGradient>),
    Failed,
}

/// Locks what one op at a time looks at.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked ended the run; nothing of it is used again.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread until its commands end.
pub(super) struct Runner {
    pub(super) shared: Arc<Shared>,
    /// Its number on the board.
    pub(super) index: usize,
    pub(super) commands: Receiver<Command>,
    pub(super) replies: Sender<(usize, Reply)>,
}

/// What a device's thread owns.
#[derive(Default)]
struct Compute {
    /// By stage; `None` for those of other devices.
    stages: Vec<Option<Stage>>,
    /// The gradient of the step's loss by a microbatch's loss, and what an embedding gets as input.
    constants: Option<(Tensor, Tensor)>,
    /// Bytes of a stage's saved tensors as of the last forward.
    expected: Vec<u64>,
    distinct: DistinctBytes,
}

impl Runner {
    /// Carries out the commands. Whatever fails, a panic included, goes to the board.
    pub(super) fn run(self) {
        let _near = self.near();
        let mut compute = Compute::default();
        while let Ok(command) = self.commands.recv() {
            let result = catch_unwind(AssertUnwindSafe(|| self.obey(&mut compute, command)));
            let reply = match result {
                Ok(Ok(reply)) => reply,
                Ok(Err(Stopped)) => Reply::Failed,
                Err(panic) => {
                    let op = self.shared.board.current(self.index);
                    let message = panic_message(panic.as_ref());
                    self.shared.board.fail(RunError::Panic { worker: self.worker(), op, message });
                    Reply::Failed
                }
            };
            let failed = matches!(reply, Reply::Failed);
            if self.replies.send((self.index, reply)).is_err() || failed {
                return;
            }
        }
    }

    pub(super) fn worker(&self) -> Worker {
        self.shared.board.program.workers[self.index].worker
    }

    /// Passes a value on; an error ends the run.
    fn check<T, E: ToString>(
        &self,
        op: Option<Op>,
        result: std::result::Result<T, E>,
    ) -> std::result::Result<T, Stopped> {
        result.map_err(|e| {
            let (worker, message) = (self.worker(), e.to_string());
            let device = match worker {
                Worker::Device(device) => Some(device),
                Worker::Channel(_) => op.map(|op| self.shared.problem.placement[op.stage]),
            };
            self.shared.board.fail(match device {
                Some(device) if is_out_of_memory(&message) => RunError::OutOfMemory { device, op, message },
                _ => RunError::Op { worker, op, message },
            });
            Stopped
        })
    }

    /// Builds the layers of this device's stages.
    fn prepare(&self, compute: &mut Compute) -> std::result::Result<Reply, Stopped> {
        let shared = &*self.shared;
        let stages = shared.problem.stages();
        compute.expected =
            (0..stages).map(|s| u64::try_from(shared.problem.bytes.activation[s]).unwrap_or(0)).collect();
        let Worker::Device(device) = self.worker() else {
            self.prepare_host();
            return Ok(Reply::Done);
        };
        let options = &shared.build[device];
        for s in 0..stages {
            let own = shared.problem.placement[s] == device;
            let stage = own
                .then(|| Stage::build(&shared.model, shared.layers[s].clone(), options, shared.optimizer))
                .transpose();
            compute.stages.push(self.check(None, stage)?);
        }
        let constants = scalar(1.0 / shared.problem.microbatches as f64, options)
            .and_then(|gradient| Ok((gradient, scalar(0.0, options)?)));
        compute.constants = Some(self.check(None, constants)?);
        let tensors: u64 = compute.stages.iter().flatten().map(Stage::static_bytes).sum();
        let workspace = shared.workspace[device];
        let capacity = u64::try_from(shared.problem.bytes.capacity[device]).unwrap_or(0);
        if shared.enforce_capacity && tensors + workspace > capacity {
            shared.board.fail(RunError::Static { device, tensors, workspace, capacity });
            return Err(Stopped);
        }
        shared.ledgers[device].replace(0, tensors + workspace);
        Ok(Reply::Done)
    }

    fn obey(&self, compute: &mut Compute, command: Command) -> std::result::Result<Reply, Stopped> {
        match command {
            Command::Prepare => self.prepare(compute),
            Command::Step(microbatches) => self.step(compute, &microbatches),
            Command::ShareTied => {
                for stage in compute.stages.iter().flatten() {
                    if let Some((end, gradient)) = stage.tied() {
                        *lock(&self.shared.tied[(end == TiedEnd::Head) as usize]) = Some(gradient.clone());
                    }
                }
                Ok(Reply::Done)
            }
            Command::Update(update) => {
                for stage in compute.stages.iter_mut().flatten() {
                    let tied = self.check(None, self.tied_sum(stage))?;
                    self.check(None, stage.update(update, tied.as_ref()))?;
                }
                Ok(Reply::Done)
            }
            Command::Gradients => {
                let mut list = Vec::new();
                for stage in compute.stages.iter().flatten() {
                    let tied = self.check(None, self.tied_sum(stage))?;
                    list.extend(self.check(None, stage.gradients(tied.as_ref()))?);
                }
                Ok(Reply::Gradients(list))
            }
        }
    }

    /// The whole gradient of the matrix that this stage shares with another. Both stages add the same two
    /// in the same order, so that their copies stay equal to the last bit.
    fn tied_sum(&self, stage: &Stage) -> Result<Option<Tensor>> {
        if stage.tied().is_none() {
            return Ok(None);
        }
        let Worker::Device(device) = self.worker() else { return Ok(None) };
        let [embedding, head] = self.shared.tied.each_ref().map(|end| {
            let Some(gradient) = lock(end).clone() else {
                candle_core::bail!("one of the two gradients of the tied matrix is missing")
            };
            self.at_home(&gradient, device)
        });
        Ok(Some((embedding? + head?)?))
    }

    fn step(&self, compute: &mut Compute, microbatches: &[Microbatch]) -> std::result::Result<Reply, Stopped> {
        let program = &self.shared.board.program.workers[self.index];
        let microbatches = &self.check(None, self.placed(microbatches))?;
        let mut times = Vec::with_capacity(program.ops.len());
        let mut losses = Vec::new();
        let mut offloaded = 0;
        for &op in &program.ops {
            if !self.shared.board.program.is_here(op.stage) {
                // Another device's copy occupies the channel.
                self.shared.board.await_arrival(self.index, op)?;
                continue;
            }
            self.shared.board.await_dependencies(self.index, op)?;
            self.shared.board.await_arrival(self.index, op)?;
            let memory = self.allocate(op)?;
            let ready_ns = self.now();
            let start_ns = match op.kind {
                OpKind::F => self.forward(compute, op, &microbatches[op.microbatch], memory, &mut losses)?,
                OpKind::B => self.backward_input(compute, op, &microbatches[op.microbatch])?,
                OpKind::W => self.backward_weight(compute, op, &microbatches[op.microbatch])?,
                OpKind::O => self.offload(op, &mut offloaded)?,
                OpKind::R => self.reload(op, memory)?,
            };
            if op.kind.is_compute() {
                // What a device was given may still be running there.
                let place = self.place(self.shared.problem.placement[op.stage]);
                self.check(Some(op), self.shared.backend.synchronise(place))?;
            }
            times.push(Timed { op, ready_ns, start_ns, end_ns: self.now() });
            self.shared.board.ended(self.index, op);
        }
        self.shared.board.finished(self.index);
        Ok(Reply::Step { times, losses, offloaded })
    }

    /// The microbatches' tokens where this thread's device needs them.
    fn placed(&self, microbatches: &[Microbatch]) -> Result<Vec<Microbatch>> {
        let Worker::Device(device) = self.worker() else { return Ok(Vec::new()) };
        let placed = |x: &Microbatch| {
            Ok(Microbatch { tokens: self.at_home(&x.tokens, device)?, targets: self.at_home(&x.targets, device)? })
        };
        microbatches.iter().map(placed).collect()
    }

    /// A tensor that was sent from one device to another, on the other.
    fn receive(&self, tensor: Tensor, from: usize, to: usize) -> Result<Tensor> {
        if from == to { Ok(tensor) } else { self.shared.backend.send(&tensor, self.place(to)) }
    }

    /// Where a device of the problem is carried out: the number of the backend's device.
    pub(super) fn place(&self, device: usize) -> usize {
        self.shared.place[device]
    }

    /// A tensor where a device of the problem computes: itself, or a copy.
    fn at_home(&self, tensor: &Tensor, device: usize) -> Result<Tensor> {
        let (backend, place) = (&self.shared.backend, self.place(device));
        if tensor.device().same_device(backend.device(place)?) {
            Ok(tensor.clone())
        } else {
            backend.send(tensor, place)
        }
    }

    fn now(&self) -> u64 {
        self.shared.clock.elapsed().as_nanos() as u64
    }

    /// The start of an op's own time.
    fn start(&self, op: Op) -> std::result::Result<u64, Stopped> {
        self.shared.board.started(self.index, op)?;
        Ok(self.now())
    }

    /// What the problem says that an op takes of its device's memory, at the op's turn; `None` for ops that
    /// take nothing.
    fn allocate(&self, op: Op) -> std::result::Result<Option<Reservation>, Stopped> {
        let problem = &self.shared.problem;
        let planned = match op.kind {
            OpKind::F => Self::planned(&problem.bytes.activation, op),
            OpKind::R => Self::planned(&problem.bytes.offloadable, op),
            OpKind::B | OpKind::W | OpKind::O => return Ok(None),
        };
        self.shared.board.allocate(self.index, op, problem.placement[op.stage], planned).map(Some)
    }

    /// What the problem says of a stage, bytes.
    fn planned(list: &[i64], op: Op) -> u64 {
        u64::try_from(list[op.stage]).unwrap_or(0)
    }

    /// Counts real bytes; beyond the capacity they end the run.
    fn count(&self, op: Op, old: u64, new: u64, planned: u64) -> std::result::Result<(), Stopped> {
        let shared = &*self.shared;
        let device = shared.problem.placement[op.stage];
        let held = shared.ledgers[device].replace(old, new);
        let capacity = u64::try_from(shared.problem.bytes.capacity[device]).unwrap_or(0);
        if shared.enforce_capacity && held > capacity {
            shared.board.fail(RunError::Memory { device, op, held, capacity, actual: new, planned });
            return Err(Stopped);
        }
        Ok(())
    }

    fn stage<'a>(&self, compute: &'a mut Compute, op: Op) -> std::result::Result<&'a mut Stage, Stopped> {
        let stage = compute.stages.get_mut(op.stage).and_then(Option::as_mut);
        self.check(Some(op), stage.ok_or("this device does not hold the stage"))
    }

    fn forward(
        &self,
        compute: &mut Compute,
        op: Op,
        microbatch: &Microbatch,
        memory: Option<Reservation>,
        losses: &mut Vec<f64>,
    ) -> std::result::Result<u64, Stopped> {
        let shared = &*self.shared;
        let (placement, pair) = (&shared.problem.placement, shared.board.program.pair(op));
        let device = placement[op.stage];
        let planned = Self::planned(&shared.problem.bytes.activation, op);
        let input = if op.stage == 0 {
            self.check(Some(op), compute.constants.as_ref().map(|(_, zero)| zero.clone()).ok_or("no input"))?
        } else {
            let sender = Op { stage: op.stage - 1, ..op };
            let sent = lock(&shared.outputs[shared.board.program.pair(sender)]).take();
            let sent = self.check(Some(op), sent.ok_or("the stage before sent nothing"))?;
            self.check(Some(op), self.receive(sent, placement[op.stage - 1], device))?
        };
        let expected = compute.expected[op.stage];
        self.count(op, 0, expected, planned)?;
        let start = self.start(op)?;
        let (output, saved) = {
            let stage = self.stage(compute, op)?;
            self.check(Some(op), stage.forward(input, microbatch))?
        };
        if op.stage + 1 == placement.len() {
            let loss = self.check(Some(op), output.to_scalar::<f32>())?;
            losses.push(f64::from(loss));
        } else if shared.board.program.is_here(op.stage + 1) {
            *lock(&shared.outputs[pair]) = Some(output);
        }
        let bytes = compute.distinct.of(saved.iter().flat_map(|saved| saved.0.iter().map(|x| &x.tensor)));
        self.count(op, expected, bytes, planned)?;
        compute.expected[op.stage] = bytes;
        let mut parked = lock(&shared.parked[pair]);
        *parked = Parked::new(saved, bytes, memory);
        Ok(start)
    }

    fn backward_input(
        &self,
        compute: &mut Compute,
        op: Op,
        microbatch: &Microbatch,
    ) -> std::result::Result<u64, Stopped> {
        let shared = &*self.shared;
        let (placement, pair) = (&shared.problem.placement, shared.board.program.pair(op));
        let gradient = if op.stage + 1 == placement.len() {
            self.check(Some(op), compute.constants.as_ref().map(|(one, _)| one.clone()).ok_or("no gradient"))?
        } else {
            let sent = lock(&shared.gradients[pair]).take();
            let sent = self.check(Some(op), sent.ok_or("the stage behind sent nothing"))?;
            self.check(Some(op), self.receive(sent, placement[op.stage + 1], placement[op.stage]))?
        };
        let mut parked = lock(&shared.parked[pair]);
        let saved = std::mem::take(&mut parked.saved);
        let start = self.start(op)?;
        let (by_input, context) = {
            let stage = self.stage(compute, op)?;
            self.check(Some(op), stage.backward_input(saved, gradient, microbatch))?
        };
        if let (Some(by_input), true) = (by_input, op.stage > 0 && shared.board.program.is_here(op.stage - 1)) {
            let receiver = Op { stage: op.stage - 1, ..op };
            *lock(&shared.gradients[shared.board.program.pair(receiver)]) = Some(by_input);
        }
        let bytes = compute.distinct.of(context.iter().flat_map(|context| context.0.iter()));
        let planned = Self::planned(&shared.problem.bytes.weight_context, op);
        self.count(op, parked.bytes, bytes, planned)?;
        parked.bytes = bytes;
        parked.context = context;
        if let Some(reservation) = &mut parked.reservation {
            reservation.shrink_to(planned);
        }
        Ok(start)
    }

    fn backward_weight(
        &self,
        compute: &mut Compute,
        op: Op,
        microbatch: &Microbatch,
    ) -> std::result::Result<u64, Stopped> {
        let pair = self.shared.board.program.pair(op);
        let Parked { context, bytes, reservation, .. } = std::mem::take(&mut *lock(&self.shared.parked[pair]));
        let start = self.start(op)?;
        let stage = self.stage(compute, op)?;
        self.check(Some(op), stage.backward_weight(context, microbatch))?;
        self.count(op, bytes, 0, 0)?;
        drop(reservation);
        Ok(start)
    }

    fn offload(&self, op: Op, offloaded: &mut u64) -> std::result::Result<u64, Stopped> {
        let shared = &*self.shared;
        let mut parked = lock(&shared.parked[shared.board.program.pair(op)]);
        let start = self.start(op)?;
        let freed = self.check(Some(op), parked.offload(&*shared.backend))?;
        self.count(op, freed, 0, 0)?;
        *offloaded += freed;
        let planned = Self::planned(&shared.problem.bytes.offloadable, op);
        let part = parked.reservation.as_mut().map(|whole| whole.split(planned));
        drop(part);
        Ok(start)
    }

    fn reload(&self, op: Op, memory: Option<Reservation>) -> std::result::Result<u64, Stopped> {
        let shared = &*self.shared;
        let device = shared.problem.placement[op.stage];
        let planned = Self::planned(&shared.problem.bytes.offloadable, op);
        let mut parked = lock(&shared.parked[shared.board.program.pair(op)]);
        self.count(op, 0, parked.host_bytes(), planned)?;
        let start = self.start(op)?;
        self.check(Some(op), parked.reload(&*shared.backend, self.place(device)))?;
        let merged = match (parked.reservation.as_mut(), memory) {
            (Some(whole), Some(memory)) => whole.merge(memory).map_err(|_| "memory of another device"),
            _ => Err("nothing is left on the device"),
        };
        self.check(Some(op), merged)?;
        Ok(start)
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
