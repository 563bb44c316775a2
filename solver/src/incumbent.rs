//! The best plan and the best bound, shared by the threads of a solve.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::plan::Plan;

/// The best plan that any thread has found, the best bound, and whether all should stop.
#[derive(Debug)]
pub(crate) struct Incumbent {
    makespan_ns: AtomicI64,
    bound_ns: AtomicI64,
    plan: Mutex<Option<(i64, Arc<Plan>)>>,
    stop: AtomicBool,
}

impl Incumbent {
    /// No plan yet, and a bound.
    pub(crate) fn new(bound_ns: i64) -> Self {
        Incumbent {
            makespan_ns: AtomicI64::new(i64::MAX),
            bound_ns: AtomicI64::new(bound_ns),
            plan: Mutex::new(None),
            stop: AtomicBool::new(false),
        }
    }

    /// Makespan of the best plan, ns; `i64::MAX` where there is none.
    pub(crate) fn makespan_ns(&self) -> i64 {
        self.makespan_ns.load(Ordering::Relaxed)
    }

    /// The best plan and its makespan, ns.
    pub(crate) fn plan(&self) -> Option<(i64, Arc<Plan>)> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a plan that can run and has this makespan. Returns whether it is the best now.
    pub(crate) fn offer(&self, plan: &Plan, makespan_ns: i64) -> bool {
        if makespan_ns >= self.makespan_ns() {
            return false;
        }
        let mut best = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        if best.as_ref().is_some_and(|x| x.0 <= makespan_ns) {
            return false;
        }
        *best = Some((makespan_ns, Arc::new(plan.clone())));
        self.makespan_ns.store(makespan_ns, Ordering::Relaxed);
        true
    }

    /// The best bound, ns.
    pub(crate) fn bound_ns(&self) -> i64 {
        self.bound_ns.load(Ordering::Relaxed)
    }

    /// Takes a bound, ns.
    pub(crate) fn raise_bound(&self, bound_ns: i64) {
        self.bound_ns.fetch_max(bound_ns, Ordering::Relaxed);
    }

    /// Whether the best plan meets the bound.
    pub(crate) fn is_optimal(&self) -> bool {
        self.makespan_ns() <= self.bound_ns()
    }

    /// Set when all should stop.
    pub(crate) fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// Tells all to stop.
    pub(crate) fn stop_all(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether all should stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
