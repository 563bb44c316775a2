//! The watchdog: an improvement on a thread of its own, which can be left behind.
//!
//! HiGHS looks at its time limit and at the callbacks between steps, some of which (presolve, cuts at the
//! root) can be long; so can be building a large model. The thread owns all that it works on and tells what
//! it finds through a channel, so that nobody has to wait for it once time is up: it ends by itself at the
//! next point where it looks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::improve::Improvement;
use super::{Known, MilpError, MilpOptions, MilpPoint, MilpStats};
use crate::problem::Problem;
use crate::schedule::Schedule;

/// How often it is looked whether time is up.
const POLL: Duration = Duration::from_millis(10);
/// How long the thread may take to end, as a share of the time limit, and the bounds of that.
const GRACE_SHARE: f64 = 0.03;
const GRACE: [Duration; 2] = [Duration::from_millis(30), Duration::from_millis(300)];

/// What the thread has come to.
#[derive(Debug, Clone)]
pub(super) struct Update {
    /// A schedule shorter than any before.
    pub(super) schedule: Option<Schedule>,
    /// Bound for all schedules, ns, if the MILP has proven one.
    pub(super) bound: Option<i64>,
    pub(super) point: Option<MilpPoint>,
    pub(super) stats: MilpStats,
}

/// What the thread is told while it works.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) stop: AtomicBool,
    known: Mutex<Known>,
}

impl Inbox {
    /// What others have found since this was asked last.
    pub(super) fn take(&self) -> Known {
        std::mem::take(&mut *self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, known: Known) {
        let mut waiting = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.schedule.is_some() {
            waiting.schedule = known.schedule;
        }
        waiting.bound_ns = waiting.bound_ns.max(known.bound_ns);
    }
}

enum Message {
    Update(Update),
    Done(Result<(), MilpError>, MilpStats),
}

/// The last update, and how the thread ended; without an error also if it was left behind.
pub(super) struct Watched {
    pub(super) schedule: Option<Schedule>,
    pub(super) bound: Option<i64>,
    pub(super) stats: MilpStats,
    pub(super) result: Result<(), MilpError>,
}

/// Runs an improvement of `best` until it is done, its time is up or it is cancelled.
pub(super) fn run(
    problem: &Problem,
    best: Schedule,
    bound_ns: i64,
    options: &MilpOptions,
    on_progress: &mut dyn FnMut(&MilpPoint, Option<&Schedule>),
    news: &mut dyn FnMut() -> Known,
    cancel: &AtomicBool,
) -> Watched {
    let begin = Instant::now();
    let inbox = Arc::new(Inbox::default());
    let (sender, receiver) = mpsc::channel();
    let thread = {
        let (problem, inbox, options) = (problem.clone(), Arc::clone(&inbox), *options);
        let work = move || work(&problem, best, bound_ns, begin, &options, &inbox, &sender);
        std::thread::Builder::new().name("milp".to_owned()).spawn(work)
    };
    let mut watched = Watched { schedule: None, bound: None, stats: MilpStats::default(), result: Ok(()) };
    let thread = match thread {
        Ok(thread) => thread,
        Err(error) => {
            watched.result = Err(MilpError::Solver(error.to_string()));
            return watched;
        }
    };
    let deadline = begin + options.time_limit;
    let grace = options.time_limit.mul_f64(GRACE_SHARE).clamp(GRACE[0], GRACE[1]);
    let mut told = None;
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(Message::Update(update)) => {
                watched.stats = update.stats;
                watched.bound = update.bound;
                if let Some(point) = update.point {
                    on_progress(&point, update.schedule.as_ref());
                }
                watched.schedule = update.schedule.or(watched.schedule);
            }
            Ok(Message::Done(result, stats)) => {
                watched.result = result;
                watched.stats = stats;
                // It has nothing left to do but to return.
                let _ = thread.join();
                return watched;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                watched.result = Err(MilpError::Solver("its thread panicked".to_owned()));
                return watched;
            }
        }
        let now = Instant::now();
        if told.is_none() && (cancel.load(Ordering::Relaxed) || now >= deadline) {
            inbox.stop.store(true, Ordering::Relaxed);
            told = Some(now);
        }
        if told.is_some_and(|told| now >= told + grace) {
            return watched;
        }
        if told.is_none() {
            inbox.put(news());
        }
    }
}

fn work(
    problem: &Problem,
    best: Schedule,
    bound_ns: i64,
    begin: Instant,
    options: &MilpOptions,
    inbox: &Inbox,
    sender: &Sender<Message>,
) {
    // Whoever has stopped listening needs no more news.
    let mut tell = |update: Update| drop(sender.send(Message::Update(update)));
    let mut work = Improvement {
        problem,
        begin,
        best,
        bound: bound_ns,
        bound_is_new: false,
        stats: MilpStats::default(),
        tell: &mut tell,
        inbox,
        threads: options.threads,
    };
    let result = work.run(options.time_limit);
    let stats = work.stats;
    drop(sender.send(Message::Done(result, stats)));
}
