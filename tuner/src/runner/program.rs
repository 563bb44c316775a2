//! A schedule made ready to run: everything that an op needs to know is looked up by its number.

use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Op, OpKind};

use super::error::{OpName, RunError, Worker};
use crate::replay::KINDS;

/// No op, no ticket.
pub(super) const NONE: u32 = u32::MAX;

/// Broken rules that an error quotes.
pub(super) const QUOTED: usize = 5;

/// What one thread does in a step.
#[derive(Debug, Clone)]
pub(super) struct WorkerProgram {
    /// Which thread.
    pub(super) worker: Worker,
    /// Its ops in order.
    pub(super) ops: Vec<Op>,
}

/// One step for all threads.
#[derive(Debug, Clone)]
pub(super) struct Program {
    stages: usize,
    microbatches: usize,
    /// Devices, then channels.
    pub(super) workers: Vec<WorkerProgram>,
    /// By op number: ops that must have ended.
    dependencies: Vec<[u32; 3]>,
    /// By op number: position among its device's allocations of a step.
    tickets: Vec<u32>,
    /// Allocations of a step, a device.
    pub(super) allocations: Vec<u64>,
    /// By stage: whether its ops are carried out here.
    here: Vec<bool>,
}

impl Program {
    /// Gives each thread its list, each op what it waits for and each allocation its ticket.
    ///
    /// Only what running needs is checked: each F, B and W once and on its device, reloads for
    /// offloads and the other way round. Whether the order can be run at all (no cycle, memory) is up
    /// to the caller.
    pub(super) fn compile(problem: &Problem, order: &Order) -> Result<Program, RunError> {
        let (stages, microbatches) = (problem.stages(), problem.microbatches);
        let mut names: Vec<usize> = problem.offload_channel.iter().chain(&problem.reload_channel).copied().collect();
        names.sort_unstable();
        names.dedup();
        let mut broken = Vec::new();
        if order.devices.len() != problem.devices || order.channels.len() > names.len() {
            broken.push(format!(
                "expected {} devices and at most {} channels, found {} and {}",
                problem.devices,
                names.len(),
                order.devices.len(),
                order.channels.len()
            ));
        }
        let pairs = stages * microbatches;
        let mut program = Program {
            stages,
            microbatches,
            workers: Vec::new(),
            dependencies: vec![[NONE; 3]; 5 * pairs],
            tickets: vec![NONE; 5 * pairs],
            allocations: vec![0; problem.devices],
            here: vec![true; stages],
        };
        let known = |op: &Op| op.stage < stages && op.microbatch < microbatches;
        // How often each op stands in a list where it may stand; a reload stands in two.
        let mut seen = vec![0u8; 5 * pairs];
        let mut reloads_seen = vec![0u8; pairs];
        for (device, list) in order.devices.iter().enumerate() {
            let mut ops = Vec::with_capacity(list.len());
            for op in list {
                if !known(op) || op.kind == OpKind::O || problem.placement[op.stage] != device {
                    broken.push(format!("{} is no op of device {device}", OpName(*op)));
                    continue;
                }
                if matches!(op.kind, OpKind::F | OpKind::R) {
                    let number = program.number(*op);
                    program.tickets[number] = program.allocations[device] as u32;
                    program.allocations[device] += 1;
                }
                let count = if op.kind == OpKind::R {
                    &mut reloads_seen[op.stage * microbatches + op.microbatch]
                } else {
                    ops.push(*op);
                    &mut seen[program.number(*op)]
                };
                *count = count.saturating_add(1);
            }
            program.workers.push(WorkerProgram { worker: Worker::Device(device), ops });
        }
        for (list, &channel) in order.channels.iter().zip(&names) {
            for op in list {
                let own = known(op)
                    && match op.kind {
                        OpKind::O => problem.offload_channel[problem.placement[op.stage]] == channel,
                        OpKind::R => problem.reload_channel[problem.placement[op.stage]] == channel,
                        _ => false,
                    };
                if !own {
                    broken.push(format!("{} is no op of channel {channel}", OpName(*op)));
                    continue;
                }
                let count = &mut seen[program.number(*op)];
                *count = count.saturating_add(1);
            }
            program.workers.push(WorkerProgram { worker: Worker::Channel(channel), ops: list.clone() });
        }
        for stage in 0..stages {
            for microbatch in 0..microbatches {
                program.connect(problem, stage, microbatch, &seen, &reloads_seen, &mut broken);
            }
        }
        if broken.is_empty() {
            Ok(program)
        } else {
            let count = broken.len();
            broken.truncate(QUOTED);
            Err(RunError::Schedule { count, first: broken })
        }
    }

    /// The part that one device does by itself: its own list and those of the channels that it uses. On a
    /// channel that it shares, the others' copies keep their places.
    pub(super) fn alone(mut self, problem: &Problem, device: usize) -> Program {
        let own = |op: &Op| problem.placement[op.stage] == device;
        self.workers.retain_mut(|list| match list.worker {
            Worker::Device(other) => other == device,
            Worker::Channel(_) => {
                // Nothing waits for what others copy after the device's last copy.
                list.ops.truncate(list.ops.iter().rposition(own).map_or(0, |last| last + 1));
                !list.ops.is_empty()
            }
        });
        self.here = problem.placement.iter().map(|&other| other == device).collect();
        self
    }

    /// How many microbatches of a stage are on the host at once, or a few more.
    pub(super) fn on_host(&self, stage: usize) -> usize {
        let ticket = |kind, microbatch| self.tickets[self.number(Op { kind, stage, microbatch })];
        let mut changes: Vec<(u32, bool)> = Vec::new();
        for microbatch in 0..self.microbatches {
            let back = ticket(OpKind::R, microbatch);
            if back != NONE {
                changes.extend([(ticket(OpKind::F, microbatch), true), (back, false)]);
            }
        }
        changes.sort_unstable();
        let (mut now, mut most) = (0_usize, 0);
        for &(_, leaves) in &changes {
            now = if leaves { now + 1 } else { now.saturating_sub(1) };
            most = most.max(now);
        }
        // A reload takes the device's memory at its turn, and gives the host's back at its end.
        (most + 1).min(changes.len() / 2)
    }

    /// Whether the ops of a stage are carried out here.
    pub(super) fn is_here(&self, stage: usize) -> bool {
        self.here[stage]
    }

    /// Counts the ops of one stage and microbatch and notes what each of them waits for.
    fn connect(
        &mut self,
        problem: &Problem,
        stage: usize,
        microbatch: usize,
        seen: &[u8],
        reloads: &[u8],
        broken: &mut Vec<String>,
    ) {
        let of = |kind, stage| Op { kind, stage, microbatch };
        let [f, b, w, o, r] =
            [OpKind::F, OpKind::B, OpKind::W, OpKind::O, OpKind::R].map(|kind| self.number(of(kind, stage)));
        for (kind, number) in [(OpKind::F, f), (OpKind::B, b), (OpKind::W, w)] {
            if seen[number] != 1 {
                broken.push(format!("{} stands {} times, expected once", OpName(of(kind, stage)), seen[number]));
            }
        }
        let counts = [seen[o], seen[r], reloads[stage * self.microbatches + microbatch]];
        if counts != [0; 3] && counts != [1; 3] {
            broken.push(format!(
                "{} and its reload: expected both once or neither, found {} and {} on channels and {} on the device",
                OpName(of(OpKind::O, stage)),
                counts[0],
                counts[1],
                counts[2]
            ));
        }
        if stage > 0 {
            self.dependencies[f][0] = self.number(of(OpKind::F, stage - 1)) as u32;
        }
        self.dependencies[b][0] = f as u32;
        if stage + 1 < self.stages {
            let sender = if problem.split_backward { OpKind::B } else { OpKind::W };
            self.dependencies[b][1] = self.number(of(sender, stage + 1)) as u32;
        }
        if seen[o] > 0 {
            self.dependencies[b][2] = r as u32;
            self.dependencies[o][0] = f as u32;
            self.dependencies[r][0] = o as u32;
        }
        self.dependencies[w][0] = b as u32;
    }

    /// The number of an op: dense from 0.
    pub(super) fn number(&self, op: Op) -> usize {
        let kind = match op.kind {
            OpKind::F => 0,
            OpKind::B => 1,
            OpKind::W => 2,
            OpKind::O => 3,
            OpKind::R => 4,
        };
        (kind * self.stages + op.stage) * self.microbatches + op.microbatch
    }

    /// The op of a number.
    pub(super) fn op(&self, number: usize) -> Op {
        let pair = number % (self.stages * self.microbatches);
        Op {
            kind: KINDS[number / (self.stages * self.microbatches)],
            stage: pair / self.microbatches,
            microbatch: pair % self.microbatches,
        }
    }

    /// The place of a stage and microbatch in tables that have one entry for each.
    pub(super) fn pair(&self, op: Op) -> usize {
        op.stage * self.microbatches + op.microbatch
    }

    /// Stages times microbatches.
    pub(super) fn pairs(&self) -> usize {
        self.stages * self.microbatches
    }

    /// All ops there could be: one more than the largest number.
    pub(super) fn numbers(&self) -> usize {
        self.dependencies.len()
    }

    /// The numbers of the ops that must have ended before this one starts.
    pub(super) fn dependencies(&self, number: usize) -> impl Iterator<Item = usize> + '_ {
        self.dependencies[number].iter().filter(|&&d| d != NONE).map(|&d| d as usize)
    }

    /// The ticket of an allocation of a device in a step.
    pub(super) fn ticket(&self, device: usize, op: Op, step: u64) -> u64 {
        step * self.allocations[device] + u64::from(self.tickets[self.number(op)])
    }
}
