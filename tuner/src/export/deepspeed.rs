//! A schedule as a `PipeSchedule` of DeepSpeed.
//!
//! DeepSpeed's engine runs whole backwards, one stage a rank, without offloads, and keeps one loss: its last
//! stage has to run each backward right behind the forward. Its sends and receives block, so each message
//! stands in both ranks' lists where the op that needs it begins, in one order over all ranks: whoever waits
//! then waits for an op that stands before.

use std::fmt::Write as _;

use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Op, OpKind, ScheduleFile};
use optpipe_solver::simulate::simulate_unlimited;

use super::units;

/// Why DeepSpeed cannot run a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeepspeedError {
    /// DeepSpeed has one stage a rank, in order.
    #[error("DeepSpeed has one stage a rank, stage s on rank s; this schedule's placement is {0:?}")]
    Placement(
        /// The device of each stage.
        Vec<usize>,
    ),
    /// First and last stage load microbatches in the order of the data.
    #[error("DeepSpeed's first and last stage load data in one order; in this schedule microbatches overtake")]
    Overtaking,
    /// What is left of the schedule waits for itself.
    #[error("the schedule cannot run with the last stage's backwards right behind its forwards: {0}")]
    Order(
        /// Which op waits.
        String,
    ),
}

/// One entry of a rank's list: what DeepSpeed calls an instruction, and its buffer.
type Instruction = (&'static str, usize);

/// A Python file with the class `OptPipeSchedule`, a `PipeSchedule`.
///
/// # Errors
/// [`DeepspeedError`], where the engine has no such stages or the order cannot be kept.
pub fn deepspeed(problem: &Problem, file: &ScheduleFile) -> Result<String, DeepspeedError> {
    if problem.placement.iter().enumerate().any(|(stage, &device)| stage != device)
        || problem.stages() != problem.devices
    {
        return Err(DeepspeedError::Placement(problem.placement.clone()));
    }
    let whole = Problem { split_backward: false, ..problem.clone() };
    let order = Order { devices: sequences(problem, file), channels: Order::of(problem, &file.schedule).channels };
    // Nothing is offloaded: the channels stay empty.
    let order = Order { channels: order.channels.iter().map(|_| Vec::new()).collect(), ..order };
    let simulated = simulate_unlimited(&whole, &order).map_err(|e| DeepspeedError::Order(e.to_string()))?;

    let mut events: Vec<(i64, usize, Op)> = Vec::new();
    for (device, ops) in simulated.schedule.ops.iter().enumerate() {
        for x in ops.iter().filter(|x| matches!(x.op, OpKind::F | OpKind::B)) {
            events.push((x.start_ns, device, Op { kind: x.op, stage: x.stage, microbatch: x.microbatch }));
        }
    }
    // Of ops that start together those of an earlier forward, and of a later backward, stage come first.
    let rank = |op: &Op| if op.kind == OpKind::F { (0, op.stage) } else { (1, problem.stages() - op.stage) };
    events.sort_by_key(|(start, _, op)| (*start, rank(op), op.microbatch));
    let forwards = |stage: usize| -> Vec<usize> {
        let own = events.iter().filter(|(_, _, op)| op.kind == OpKind::F && op.stage == stage);
        own.map(|(_, _, op)| op.microbatch).collect()
    };
    if forwards(0) != forwards(problem.stages() - 1) {
        return Err(DeepspeedError::Overtaking);
    }
    let lists = instructions(problem, &events);

    let mut text = String::new();
    let makespan = units::time(simulated.schedule.makespan_ns);
    let wanted = units::time(file.schedule.makespan_ns);
    let offloads = file.schedule.ops.iter().flatten().filter(|x| x.op == OpKind::O).count();
    let _ = writeln!(text, "{}", HEAD.replace("MAKESPAN", &makespan).replace("WANTED", &wanted).trim_end());
    if offloads > 0 {
        let _ = writeln!(text, "# The schedule offloads {offloads} activations to the host; here they all stay.");
    }
    for (device, (&peak, &capacity)) in simulated.peak_bytes.iter().zip(&problem.bytes.capacity).enumerate() {
        if peak > capacity {
            let (peak, capacity) = (units::bytes(peak), units::bytes(capacity));
            let _ = writeln!(text, "# Rank {device} then needs {peak}, MORE than the limit of {capacity}.");
        }
    }
    let _ = writeln!(text, "\nSTAGES = {}\nMICRO_BATCHES = {}\nSTEPS = [", problem.stages(), problem.microbatches);
    for list in &lists {
        let steps: Vec<String> =
            list.iter().map(|step| format!("[{}]", step.iter().map(call).collect::<Vec<_>>().join(", "))).collect();
        let _ = writeln!(text, "    [{}],", steps.join(",\n     "));
    }
    let _ = writeln!(text, "]\n{CLASS}");
    Ok(text)
}

fn call(instruction: &Instruction) -> String {
    format!("(\"{}\", {})", instruction.0, instruction.1)
}

/// The F, B and W of each device: W behind its B, and at the last stage B behind its F.
fn sequences(problem: &Problem, file: &ScheduleFile) -> Vec<Vec<Op>> {
    let last = problem.stages() - 1;
    let order = Order::of(problem, &file.schedule);
    let sequence = |ops: &Vec<Op>| {
        let mut sequence = Vec::new();
        for &op in ops {
            let backward = |sequence: &mut Vec<Op>| {
                sequence.push(Op { kind: OpKind::B, ..op });
                sequence.push(Op { kind: OpKind::W, ..op });
            };
            match op.kind {
                OpKind::F => {
                    sequence.push(op);
                    if op.stage == last {
                        backward(&mut sequence);
                    }
                }
                OpKind::B if op.stage != last => backward(&mut sequence),
                _ => {}
            }
        }
        sequence
    };
    order.devices.iter().map(sequence).collect()
}

/// The instructions of each rank, one list an op; messages stand where the op that needs them begins.
fn instructions(problem: &Problem, events: &[(i64, usize, Op)]) -> Vec<Vec<Vec<Instruction>>> {
    let stages = problem.stages();
    let mut lists: Vec<Vec<Vec<Instruction>>> = vec![Vec::new(); stages];
    // The buffer of each microbatch in flight, a rank.
    let mut buffers: Vec<Vec<Option<usize>>> = vec![Vec::new(); stages];
    let find =
        |held: &[Option<usize>], microbatch: usize| held.iter().position(|&x| x == Some(microbatch)).unwrap_or(0);
    for &(_, rank, op) in events {
        let j = op.microbatch;
        match op.kind {
            OpKind::F => {
                let free = buffers[rank].iter().position(Option::is_none).unwrap_or(buffers[rank].len());
                if free == buffers[rank].len() {
                    buffers[rank].push(None);
                }
                buffers[rank][free] = Some(j);
                let mut step = Vec::new();
                if rank > 0 {
                    lists[rank - 1].push(vec![("SendActivation", find(&buffers[rank - 1], j))]);
                    step.push(("RecvActivation", free));
                }
                if rank == 0 || rank + 1 == stages {
                    step.push(("LoadMicroBatch", free));
                }
                step.push(("ForwardPass", free));
                lists[rank].push(step);
            }
            _ => {
                let own = find(&buffers[rank], j);
                let mut step = Vec::new();
                if rank + 1 < stages {
                    let theirs = find(&buffers[rank + 1], j);
                    lists[rank + 1].push(vec![("SendGrad", theirs)]);
                    buffers[rank + 1][theirs] = None;
                    step.push(("RecvGrad", own));
                }
                step.push(("BackwardPass", own));
                lists[rank].push(step);
                if rank == 0 {
                    buffers[rank][own] = None;
                }
            }
        }
    }
    lists
}

const HEAD: &str = r#""""A pipeline schedule of OptPipe for DeepSpeed's pipeline engine.

Before the engine's first train_batch:

    import deepspeed.runtime.pipe.schedule as schedule
    from this_file import OptPipeSchedule
    schedule.TrainSchedule = OptPipeSchedule

Limits of the engine, which this file keeps within: one stage a rank; whole backwards, so input and
weight gradient are not apart; no offloading; one loss is kept, so the last stage runs each backward
right behind its forward. gradient_accumulation_steps has to be MICRO_BATCHES.
"""
# Step as simulated, with messages as delays: MAKESPAN; the schedule it comes from: WANTED.
"#;

const CLASS: &str = r#"
from deepspeed.runtime.pipe import schedule as pipe


class OptPipeSchedule(pipe.PipeSchedule):
    """The instructions of this rank's stage, in order."""

    def __init__(self, micro_batches, stages, stage_id):
        if (micro_batches, stages) != (MICRO_BATCHES, STAGES):
            raise ValueError(f"this schedule is for {STAGES} stages and {MICRO_BATCHES} microbatches, "
                             f"not for {stages} and {micro_batches}")
        super().__init__(micro_batches, stages, stage_id)

    def steps(self):
        for step in STEPS[self.stage_id]:
            yield [getattr(pipe, name)(buffer) for name, buffer in step]
        yield [pipe.ReduceTiedGrads(), pipe.ReduceGrads(), pipe.OptimizerStep()]

    def num_pipe_buffers(self):
        return max(2, 1 + max(buffer for step in STEPS[self.stage_id] for _, buffer in step))
"#;
