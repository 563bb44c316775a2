//! The bytes of the real tensors that a device holds.
//!
//! The budget hands out what the problem says an op takes; this counts what its tensors do take.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct State {
    held: u64,
    peak: u64,
}

/// One device's count.
#[derive(Debug)]
pub(super) struct Ledger {
    state: Mutex<State>,
}

impl Ledger {
    /// A device that holds `fixed` bytes all the time.
    pub(super) fn new(fixed: u64) -> Ledger {
        Ledger { state: Mutex::new(State { held: fixed, peak: fixed }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change below can panic halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces `old` bytes by `new` ones; returns what is held now.
    pub(super) fn replace(&self, old: u64, new: u64) -> u64 {
        let mut state = self.lock();
        state.held = (state.held + new).saturating_sub(old);
        state.peak = state.peak.max(state.held);
        state.held
    }

    /// Most bytes held at once since the last reset.
    pub(super) fn peak(&self) -> u64 {
        self.lock().peak
    }

    /// Counts the peak anew.
    pub(super) fn reset_peak(&self) {
        let mut state = self.lock();
        state.peak = state.held;
    }
}
