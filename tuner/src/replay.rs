//! One step of a schedule with other op times, as the runner executes it: every queue keeps its order,
//! every device makes its allocations in the schedule's order, each as soon as its bytes are free.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Op, OpKind};

/// The kinds of ops in the order in which they are numbered.
pub(crate) const KINDS: [OpKind; 5] = [OpKind::F, OpKind::B, OpKind::W, OpKind::O, OpKind::R];

/// The number of an op among all that the problem could have: by kind, stage and microbatch, dense from 0.
pub(crate) fn number(problem: &Problem, op: Op) -> usize {
    let kind = KINDS.iter().position(|x| *x == op.kind).unwrap_or(0);
    (kind * problem.stages() + op.stage) * problem.microbatches + op.microbatch
}

/// No op.
const NONE: u32 = u32::MAX;

/// An order made ready for replays. Ops are numbered by kind, stage and microbatch.
pub(crate) struct Replay<'a> {
    problem: &'a Problem,
    /// Devices, then channels.
    queues: Vec<Vec<u32>>,
    /// By op: its queue.
    queue_of: Vec<u32>,
    /// By op: its place among its device's allocations.
    ticket: Vec<u32>,
    /// By op: what must have ended, and how long before.
    waits: Vec<[(u32, i64); 3]>,
    /// By op: whose start may depend on its end.
    wakes: Vec<[u32; 3]>,
    /// By device: the queues that may wait for its memory.
    memory: Vec<Vec<u32>>,
}

/// What happens in one replay.
struct Step {
    end: Vec<Option<i64>>,
    /// By queue: how many of its ops have started, and when the last of them ends.
    next: Vec<usize>,
    free_at: Vec<i64>,
    held: Vec<i64>,
    allocated: Vec<u32>,
    /// Ends of ops and times at which a queue should look again.
    events: BinaryHeap<Reverse<(i64, u32, u32)>>,
}

impl<'a> Replay<'a> {
    /// Makes an order of the problem ready.
    pub(crate) fn new(problem: &'a Problem, order: &Order) -> Self {
        let (stages, microbatches) = (problem.stages(), problem.microbatches);
        let of = |op: &Op| number(problem, *op) as u32;
        let number = |kind, stage, microbatch| of(&Op { kind, stage, microbatch });
        let ops = 5 * stages * microbatches;
        let mut replay = Replay {
            problem,
            queues: Vec::with_capacity(order.devices.len() + order.channels.len()),
            queue_of: vec![NONE; ops],
            ticket: vec![NONE; ops],
            waits: vec![[(NONE, 0); 3]; ops],
            wakes: vec![[NONE; 3]; ops],
            memory: vec![Vec::new(); problem.devices],
        };
        for list in &order.devices {
            let allocations = list.iter().filter(|op| matches!(op.kind, OpKind::F | OpKind::R));
            for (ticket, op) in allocations.enumerate() {
                replay.ticket[of(op) as usize] = ticket as u32;
            }
            replay.queues.push(list.iter().filter(|op| op.kind != OpKind::R).map(of).collect());
        }
        replay.queues.extend(order.channels.iter().map(|list| list.iter().map(of).collect::<Vec<_>>()));
        for (queue, list) in replay.queues.iter().enumerate() {
            for &op in list {
                replay.queue_of[op as usize] = queue as u32;
            }
        }
        for device in 0..problem.devices {
            let mut queues = vec![device as u32];
            for list in &order.channels {
                let own = list.iter().find(|op| op.kind == OpKind::R && problem.placement[op.stage] == device);
                queues.extend(own.map(|op| replay.queue_of[of(op) as usize]));
            }
            replay.memory[device] = queues;
        }
        for stage in 0..stages {
            for microbatch in 0..microbatches {
                let [f, b, w, o, r] = KINDS.map(|kind| number(kind, stage, microbatch));
                if stage > 0 {
                    replay.connect(number(OpKind::F, stage - 1, microbatch), problem.hop_forward(stage - 1), f);
                }
                if stage + 1 < stages {
                    let sender = if problem.split_backward { OpKind::B } else { OpKind::W };
                    replay.connect(number(sender, stage + 1, microbatch), problem.hop_backward(stage), b);
                }
                replay.connect(f, 0, b);
                replay.connect(b, 0, w);
                if replay.queue_of[o as usize] != NONE {
                    replay.connect(f, 0, o);
                    replay.connect(o, 0, r);
                    replay.connect(r, 0, b);
                }
            }
        }
        replay
    }

    fn connect(&mut self, earlier: u32, delay: i64, later: u32) {
        if let Some(free) = self.waits[later as usize].iter_mut().find(|wait| wait.0 == NONE) {
            *free = (earlier, delay);
        }
        if let Some(free) = self.wakes[earlier as usize].iter_mut().find(|wake| **wake == NONE) {
            *free = later;
        }
    }

    fn stage(&self, op: u32) -> usize {
        op as usize / self.problem.microbatches % self.problem.stages()
    }

    fn kind(&self, op: u32) -> OpKind {
        KINDS[op as usize / (self.problem.microbatches * self.problem.stages())]
    }

    /// The step's length when ops take these times; `None` where the order gets stuck.
    pub(crate) fn makespan(&self, times: &[i64]) -> Option<i64> {
        self.ends(times)?.into_iter().flatten().max().or(Some(0))
    }

    /// When each op ends, by its number, when ops take these times; `None` for ops that the order does not
    /// have, and for the whole where the order gets stuck. A legal schedule's order always comes to its end:
    /// what an allocation waits for never waits for it, whatever the times.
    pub(crate) fn ends(&self, times: &[i64]) -> Option<Vec<Option<i64>>> {
        let p = self.problem;
        let mut step = Step {
            end: vec![None; times.len()],
            next: vec![0; self.queues.len()],
            free_at: vec![0; self.queues.len()],
            held: p.bytes.r#static.clone(),
            allocated: vec![0; p.devices],
            events: BinaryHeap::new(),
        };
        let mut look: Vec<u32> = (0..self.queues.len() as u32).collect();
        let mut now = 0;
        loop {
            while let Some(queue) = look.pop() {
                while let Some(op) = self.start(&mut step, queue, now, times) {
                    // An allocation may have been what another queue of the device stood behind.
                    if self.ticket[op as usize] != NONE {
                        look.extend(&self.memory[p.placement[self.stage(op)]]);
                    }
                }
            }
            let Some(Reverse((time, ..))) = step.events.peek().copied() else {
                let ended = self.queues.iter().zip(&step.next).all(|(queue, &next)| next == queue.len());
                return ended.then_some(step.end);
            };
            now = time;
            while let Some(Reverse((_, queue, op))) = step.events.peek().copied().filter(|x| x.0.0 == now) {
                step.events.pop();
                look.push(queue);
                if op != NONE {
                    self.ended(&mut step, op, now, &mut look);
                }
            }
        }
    }

    /// Starts the next op of a queue if nothing holds it back.
    fn start(&self, step: &mut Step, queue: u32, now: i64, times: &[i64]) -> Option<u32> {
        let q = queue as usize;
        let op = *self.queues[q].get(step.next[q])?;
        if step.free_at[q] > now {
            return None;
        }
        let mut ready = 0;
        for &(earlier, delay) in self.waits[op as usize].iter().filter(|wait| wait.0 != NONE) {
            ready = ready.max(step.end[earlier as usize]? + delay);
        }
        if ready > now {
            step.events.push(Reverse((ready, queue, NONE)));
            return None;
        }
        if self.ticket[op as usize] != NONE {
            let stage = self.stage(op);
            let device = self.problem.placement[stage];
            let b = &self.problem.bytes;
            let bytes = if self.kind(op) == OpKind::F { b.activation[stage] } else { b.offloadable[stage] };
            let turn = step.allocated[device] == self.ticket[op as usize];
            if !turn || step.held[device] + bytes > b.capacity[device] {
                return None;
            }
            step.held[device] += bytes;
            step.allocated[device] += 1;
        }
        let end = now + times[op as usize];
        step.next[q] += 1;
        step.free_at[q] = end;
        // It counts as ended when its event comes: after all that happens before, and before all that
        // allocates at that instant.
        step.events.push(Reverse((end, queue, op)));
        Some(op)
    }

    fn ended(&self, step: &mut Step, op: u32, now: i64, look: &mut Vec<u32>) {
        let stage = self.stage(op);
        let device = self.problem.placement[stage];
        let b = &self.problem.bytes;
        let freed = match self.kind(op) {
            OpKind::B => b.activation[stage] - b.weight_context[stage],
            OpKind::W => b.weight_context[stage],
            OpKind::O => b.offloadable[stage],
            OpKind::F | OpKind::R => 0,
        };
        step.held[device] -= freed;
        if freed > 0 {
            look.extend(&self.memory[device]);
        }
        step.end[op as usize] = Some(now);
        look.extend(self.wakes[op as usize].iter().filter(|wake| **wake != NONE).filter_map(|&wake| {
            let queue = self.queue_of[wake as usize];
            (queue != NONE).then_some(queue)
        }));
    }
}
