//! Who has done what: the threads of a run meet here.
//!
//! A thread announces what it is about to wait for, so that a run that cannot go on is found the moment
//! its last thread stops, and can say what every thread waits for.

use std::fmt::Write as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use optpipe_kernels::budget::{Budget, Reservation};
use optpipe_solver::schedule::Op;

use super::error::{OpName, RunError};
use super::program::Program;

/// The run ends early; the reason is on the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped;

/// What a thread does.
#[derive(Debug, Clone, Copy)]
enum Activity {
    /// Between steps, or between two ops.
    Free,
    Running(Op),
    /// Waits until the ops that this one depends on have ended.
    Waiting(Op),
    /// Waits for the time at which something comes from another device.
    Arriving(Op),
    /// Waits for its turn and for room on a device.
    Allocating {
        op: Op,
        device: usize,
        ticket: u64,
        bytes: u64,
    },
    /// Has done its list.
    Finished,
}

/// When things come from devices that do not take part in this run.
#[derive(Debug, Clone)]
pub(super) struct Arrivals {
    /// The time from which they count.
    pub(super) origin: Instant,
    /// By op number, ns: before which an op does not start; of another device's copy, when it leaves the
    /// channel.
    pub(super) earliest_ns: Vec<u64>,
}

struct State {
    step: u64,
    done: Vec<bool>,
    arrivals: Option<Arrivals>,
    activities: Vec<Activity>,
    progress: Instant,
    failed: Option<RunError>,
    stopped: bool,
}

/// The meeting place of one run.
pub(super) struct Board {
    pub(super) program: Program,
    budgets: Vec<Budget>,
    state: Mutex<State>,
    /// One a thread: an op's end wakes only those whose wait it ends.
    wakes: Vec<Condvar>,
}

impl Board {
    pub(super) fn new(program: Program, budgets: Vec<Budget>) -> Board {
        let workers = program.workers.len();
        let state = State {
            step: 0,
            done: vec![false; program.numbers()],
            arrivals: None,
            activities: vec![Activity::Free; workers],
            progress: Instant::now(),
            failed: None,
            stopped: false,
        };
        let wakes = (0..workers).map(|_| Condvar::new()).collect();
        Board { program, budgets, state: Mutex::new(state), wakes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change below can panic halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the last step's ops. All threads are idle. What ops of other devices bring about counts as
    /// done; when it is there, the arrivals say.
    pub(super) fn begin_step(&self, step: u64, arrivals: Option<Arrivals>) {
        let mut state = self.lock();
        state.step = step;
        for (number, done) in state.done.iter_mut().enumerate() {
            *done = !self.program.is_here(self.program.op(number).stage);
        }
        state.arrivals = arrivals;
        state.activities.fill(Activity::Free);
        state.progress = Instant::now();
    }

    /// Something other than a step begins. All threads are idle.
    pub(super) fn begin_other(&self) {
        let mut state = self.lock();
        state.activities.fill(Activity::Free);
        state.progress = Instant::now();
    }

    /// Returns once all that `op` depends on has ended.
    pub(super) fn await_dependencies(&self, worker: usize, op: Op) -> Result<(), Stopped> {
        let mut state = self.lock();
        while !state.stopped {
            if self.ready(&state, op) {
                state.activities[worker] = Activity::Free;
                return Ok(());
            }
            state.activities[worker] = Activity::Waiting(op);
            self.detect_deadlock(&mut state);
            if !state.stopped {
                state = self.wakes[worker].wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        Err(Stopped)
    }

    /// Returns once all that `op` needs from devices that do not take part has arrived; of an op of such a
    /// device, once it has left its channel.
    pub(super) fn await_arrival(&self, worker: usize, op: Op) -> Result<(), Stopped> {
        let mut state = self.lock();
        while !state.stopped {
            let left = state.arrivals.as_ref().map(|arrivals| {
                let at = arrivals.origin + Duration::from_nanos(arrivals.earliest_ns[self.program.number(op)]);
                at.saturating_duration_since(Instant::now())
            });
            let Some(left) = left.filter(|left| !left.is_zero()) else {
                state.activities[worker] = Activity::Free;
                return Ok(());
            };
            state.activities[worker] = Activity::Arriving(op);
            state = self.wakes[worker].wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.progress = Instant::now();
        }
        Err(Stopped)
    }

    /// Takes the bytes that `op` allocates on a device, at its turn in the device's order.
    pub(super) fn allocate(&self, worker: usize, op: Op, device: usize, bytes: u64) -> Result<Reservation, Stopped> {
        let ticket = {
            let mut state = self.lock();
            if state.stopped {
                return Err(Stopped);
            }
            let ticket = self.program.ticket(device, op, state.step);
            state.activities[worker] = Activity::Allocating { op, device, ticket, bytes };
            self.detect_deadlock(&mut state);
            ticket
        };
        match self.budgets[device].reserve(ticket, bytes) {
            Ok(reservation) => {
                self.lock().activities[worker] = Activity::Free;
                Ok(reservation)
            }
            // After a stop this is the stop's echo, and `fail` keeps the first reason.
            Err(e) => {
                self.fail(RunError::Budget { op, message: e.to_string() });
                Err(Stopped)
            }
        }
    }

    /// Notes that `op` starts.
    pub(super) fn started(&self, worker: usize, op: Op) -> Result<(), Stopped> {
        let mut state = self.lock();
        state.activities[worker] = Activity::Running(op);
        state.progress = Instant::now();
        if state.stopped { Err(Stopped) } else { Ok(()) }
    }

    /// Notes that `op` has ended, and wakes who waited for it.
    pub(super) fn ended(&self, worker: usize, op: Op) {
        let mut state = self.lock();
        state.done[self.program.number(op)] = true;
        state.activities[worker] = Activity::Free;
        state.progress = Instant::now();
        for (activity, wake) in state.activities.iter().zip(&self.wakes) {
            if let Activity::Waiting(waiting) = activity
                && self.ready(&state, *waiting)
            {
                wake.notify_one();
            }
        }
    }

    /// Notes that a thread has done its list.
    pub(super) fn finished(&self, worker: usize) {
        let mut state = self.lock();
        state.activities[worker] = Activity::Finished;
        state.progress = Instant::now();
        self.detect_deadlock(&mut state);
    }

    /// Ends the run for all threads. The first reason stays.
    pub(super) fn fail(&self, reason: RunError) {
        self.stop(&mut self.lock(), reason);
    }

    fn stop(&self, state: &mut State, reason: RunError) {
        if !state.stopped {
            state.stopped = true;
            state.failed = Some(reason);
        }
        for budget in &self.budgets {
            budget.abort("the run ends");
        }
        for wake in &self.wakes {
            wake.notify_all();
        }
    }

    /// Whether the run ends early.
    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// The reason for the early end, once.
    pub(super) fn take_failure(&self) -> Option<RunError> {
        self.lock().failed.take()
    }

    /// The op that a thread is in.
    pub(super) fn current(&self, worker: usize) -> Option<Op> {
        match self.lock().activities[worker] {
            Activity::Running(op)
            | Activity::Waiting(op)
            | Activity::Arriving(op)
            | Activity::Allocating { op, .. } => Some(op),
            Activity::Free | Activity::Finished => None,
        }
    }

    /// Ends the run if nothing has started or ended for this long.
    pub(super) fn watch(&self, patience: Duration) {
        let mut state = self.lock();
        let after = state.progress.elapsed();
        // What arrives at a known time is no standstill.
        let arriving = state.activities.iter().any(|activity| matches!(activity, Activity::Arriving(_)));
        if !state.stopped && !arriving && after >= patience {
            let waits = self.describe(&state);
            self.stop(&mut state, RunError::Stalled { after, waits });
        }
    }

    fn ready(&self, state: &State, op: Op) -> bool {
        self.program.dependencies(self.program.number(op)).all(|d| state.done[d])
    }

    /// Ends the run if every thread waits for something that only another of them can bring about.
    ///
    /// A thread that computes or copies, or that may go on although it has not yet woken, is none of
    /// them: so what is read here, the budgets included, cannot change while all others stand still.
    fn detect_deadlock(&self, state: &mut State) {
        let stuck = |activity: &Activity| match *activity {
            Activity::Free | Activity::Running(_) | Activity::Arriving(_) => false,
            Activity::Finished => true,
            Activity::Waiting(op) => !self.ready(state, op),
            Activity::Allocating { device, ticket, bytes, .. } => self.budgets[device].must_wait(ticket, bytes),
        };
        let all_finished = state.activities.iter().all(|a| matches!(a, Activity::Finished));
        if !state.stopped && !all_finished && state.activities.iter().all(stuck) {
            let waits = self.describe(state);
            self.stop(state, RunError::Deadlock { waits });
        }
    }

    /// One line a thread.
    fn describe(&self, state: &State) -> String {
        let mut text = String::new();
        for (activity, worker) in state.activities.iter().zip(&self.program.workers) {
            let _ = write!(text, "  {}: ", worker.worker);
            let _ = match *activity {
                Activity::Free => writeln!(text, "outside of an op"),
                Activity::Finished => writeln!(text, "has done its list"),
                Activity::Running(op) => writeln!(text, "runs {}", OpName(op)),
                Activity::Arriving(op) => writeln!(text, "{} waits for what another device sends", OpName(op)),
                Activity::Waiting(op) => {
                    let missing: Vec<String> = self
                        .program
                        .dependencies(self.program.number(op))
                        .filter(|&d| !state.done[d])
                        .map(|d| OpName(self.program.op(d)).to_string())
                        .collect();
                    writeln!(text, "{} waits for the end of {}", OpName(op), missing.join(" and "))
                }
                Activity::Allocating { op, device, ticket, bytes } => {
                    let budget = &self.budgets[device];
                    let (next, held) = (budget.next_ticket(), budget.held());
                    let capacity = budget.capacity().map_or_else(|| "no limit".to_owned(), |c| format!("{c} bytes"));
                    let turn = if next < ticket {
                        format!(", after {} earlier allocations of the device", ticket - next)
                    } else {
                        String::new()
                    };
                    writeln!(
                        text,
                        "{} waits for {bytes} bytes on device {device}{turn}: {held} held of {capacity}",
                        OpName(op)
                    )
                }
            };
        }
        text.truncate(text.trim_end().len());
        text
    }
}
