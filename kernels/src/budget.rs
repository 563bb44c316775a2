//! The tracked memory of one device.
//!
//! A schedule fixes the order in which a device's operations allocate: each start of a forward and of
//! a reload. Those run on different threads (compute and copies), so an allocation carries a ticket,
//! its position in that order, and waits for its turn as well as for its bytes. Two threads can then
//! never take each other's memory in an order that the schedule did not prove to fit.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Why bytes were not handed out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// The bytes cannot fit, whatever is released.
    #[error(
        "device {device}: {asked} bytes cannot fit: {fixed} of {capacity} bytes are taken for good ({held} held in all)"
    )]
    Exceeded {
        /// The device.
        device: usize,
        /// Bytes asked for.
        asked: u64,
        /// Bytes held at that moment.
        held: u64,
        /// Bytes of it that are never released.
        fixed: u64,
        /// The device's limit.
        capacity: u64,
    },
    /// Nothing was released, nor did an earlier allocation happen, for as long as one waits.
    #[error(
        "device {device}: allocation {ticket} waited {waited:?} without any release for {asked} bytes: {held} of {capacity} bytes held, next in turn is allocation {next}"
    )]
    Stalled {
        /// The device.
        device: usize,
        /// The allocation's position in the device's order.
        ticket: u64,
        /// The position whose turn it was.
        next: u64,
        /// Bytes asked for.
        asked: u64,
        /// Bytes held at that moment.
        held: u64,
        /// The device's limit.
        capacity: u64,
        /// How long nothing happened.
        waited: Duration,
    },
    /// A ticket that had its turn already.
    #[error("device {device}: allocation {ticket} comes a second time, next in turn is {next}")]
    TicketPassed {
        /// The device.
        device: usize,
        /// The allocation's position in the device's order.
        ticket: u64,
        /// The position whose turn it was.
        next: u64,
    },
    /// Another thread gave up.
    #[error("device {device}: given up: {reason}")]
    Aborted {
        /// The device.
        device: usize,
        /// What [`Budget::abort`] was told.
        reason: String,
    },
}

#[derive(Debug)]
struct State {
    held: u64,
    fixed: u64,
    peak: u64,
    next: u64,
    /// Counts every change that could let a waiting allocation proceed.
    changes: u64,
    aborted: Option<String>,
}

#[derive(Debug)]
struct Shared {
    device: usize,
    capacity: u64,
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is a complete one: a panic elsewhere leaves consistent numbers.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, bytes: u64, fixed: bool) {
        let mut state = self.lock();
        state.held -= bytes;
        if fixed {
            state.fixed -= bytes;
        }
        state.changes += 1;
        drop(state);
        self.changed.notify_all();
    }

    fn aborted(&self, state: &State) -> Result<(), BudgetError> {
        match &state.aborted {
            Some(reason) => Err(BudgetError::Aborted { device: self.device, reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn must_wait(&self, state: &State, ticket: u64, bytes: u64) -> bool {
        state.next < ticket || state.next == ticket && bytes > self.capacity - state.held
    }

    fn never_fits(&self, state: &State, asked: u64) -> Result<(), BudgetError> {
        if state.fixed.checked_add(asked).is_none_or(|needed| needed > self.capacity) {
            return Err(BudgetError::Exceeded {
                device: self.device,
                asked,
                held: state.held,
                fixed: state.fixed,
                capacity: self.capacity,
            });
        }
        Ok(())
    }
}

/// The memory of one device, counted in bytes; clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

impl Budget {
    /// How long an allocation waits while nothing changes on its device, unless told otherwise.
    pub const PATIENCE: Duration = Duration::from_secs(60);

    /// The memory of `device`: `capacity` bytes, or as much as one likes (still counted).
    pub fn new(device: usize, capacity: Option<u64>) -> Self {
        Budget::with_patience(device, capacity, Budget::PATIENCE)
    }

    /// As [`Budget::new`]; an allocation fails once nothing was released and nothing allocated on
    /// this device for `patience`.
    pub fn with_patience(device: usize, capacity: Option<u64>, patience: Duration) -> Self {
        let state = State { held: 0, fixed: 0, peak: 0, next: 0, changes: 0, aborted: None };
        Budget {
            shared: Arc::new(Shared {
                device,
                capacity: capacity.unwrap_or(u64::MAX),
                patience,
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        }
    }

    /// The device.
    pub fn device(&self) -> usize {
        self.shared.device
    }

    /// The limit, bytes; `None` without one.
    pub fn capacity(&self) -> Option<u64> {
        (self.shared.capacity != u64::MAX).then_some(self.shared.capacity)
    }

    /// Takes bytes for good, at once: weights, gradients, optimizer states, workspace. What is fixed
    /// counts in telling whether a later reservation could ever fit.
    ///
    /// # Errors
    /// [`BudgetError::Exceeded`] if they do not fit beside what is held now, [`BudgetError::Aborted`].
    pub fn reserve_fixed(&self, bytes: u64) -> Result<Reservation, BudgetError> {
        let shared = &self.shared;
        let mut state = shared.lock();
        shared.aborted(&state)?;
        if state.held.checked_add(bytes).is_none_or(|needed| needed > shared.capacity) {
            return Err(BudgetError::Exceeded {
                device: shared.device,
                asked: bytes,
                held: state.held,
                fixed: state.fixed,
                capacity: shared.capacity,
            });
        }
        state.held += bytes;
        state.fixed += bytes;
        state.peak = state.peak.max(state.held);
        Ok(Reservation { shared: Arc::clone(shared), bytes, fixed: true })
    }

    /// Takes bytes when it is this ticket's turn (tickets count 0, 1, 2, ... on each device, on and on
    /// over the steps) and they fit; blocks until then. Zero bytes still take their turn.
    ///
    /// # Errors
    /// [`BudgetError::Exceeded`] at once if the bytes exceed what is not fixed,
    /// [`BudgetError::TicketPassed`], [`BudgetError::Stalled`] after the patience without any change,
    /// [`BudgetError::Aborted`].
    pub fn reserve(&self, ticket: u64, bytes: u64) -> Result<Reservation, BudgetError> {
        let shared = &self.shared;
        let mut state = shared.lock();
        let mut seen = state.changes;
        let mut since = Instant::now();
        loop {
            shared.aborted(&state)?;
            if ticket < state.next {
                return Err(BudgetError::TicketPassed { device: shared.device, ticket, next: state.next });
            }
            shared.never_fits(&state, bytes)?;
            if !shared.must_wait(&state, ticket, bytes) {
                state.held += bytes;
                state.peak = state.peak.max(state.held);
                state.next += 1;
                state.changes += 1;
                drop(state);
                shared.changed.notify_all();
                return Ok(Reservation { shared: Arc::clone(shared), bytes, fixed: false });
            }
            if state.changes != seen {
                seen = state.changes;
                since = Instant::now();
            }
            let waited = since.elapsed();
            if waited >= shared.patience {
                return Err(BudgetError::Stalled {
                    device: shared.device,
                    ticket,
                    next: state.next,
                    asked: bytes,
                    held: state.held,
                    capacity: shared.capacity,
                    waited,
                });
            }
            state =
                shared.changed.wait_timeout(state, shared.patience - waited).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether [`Budget::reserve`] with this ticket, if nobody else does anything, waits at this instant;
    /// not if it has had its turn already. One look tells it: two, at ticket and bytes, would take a
    /// reservation made between them for one that lacks its own bytes.
    pub fn must_wait(&self, ticket: u64, bytes: u64) -> bool {
        self.shared.must_wait(&self.shared.lock(), ticket, bytes)
    }

    /// The ticket whose turn it is.
    pub fn next_ticket(&self) -> u64 {
        self.shared.lock().next
    }

    /// Bytes held now, fixed ones included.
    pub fn held(&self) -> u64 {
        self.shared.lock().held
    }

    /// Most bytes held at once, since the start or [`Budget::reset_peak`].
    pub fn peak(&self) -> u64 {
        self.shared.lock().peak
    }

    /// Counts the peak anew from what is held now.
    pub fn reset_peak(&self) {
        let mut state = self.shared.lock();
        state.peak = state.held;
    }

    /// Makes every waiting and every later reservation fail with this reason. The first reason stays.
    pub fn abort(&self, reason: &str) {
        let mut state = self.shared.lock();
        state.aborted.get_or_insert_with(|| reason.to_owned());
        drop(state);
        self.shared.changed.notify_all();
    }
}

/// Bytes of a device's memory; dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
    fixed: bool,
}

impl Reservation {
    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back all but `bytes`: what an operation keeps. Asking for more than there is changes
    /// nothing; more memory comes from [`Budget::reserve`] alone.
    pub fn shrink_to(&mut self, bytes: u64) {
        drop(self.split(self.bytes.saturating_sub(bytes)));
    }

    /// Takes `bytes` of it (all of it, if it is less) into a reservation of its own.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Reservation {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Reservation { shared: Arc::clone(&self.shared), bytes, fixed: self.fixed }
    }

    /// Joins another reservation of the same device.
    ///
    /// # Errors
    /// Hands `other` back if it belongs to another device's budget, or one of the two is fixed and
    /// the other is not.
    pub fn merge(&mut self, mut other: Reservation) -> Result<(), Reservation> {
        if !Arc::ptr_eq(&self.shared, &other.shared) || self.fixed != other.fixed {
            return Err(other);
        }
        self.bytes += std::mem::take(&mut other.bytes);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.shared.release(self.bytes, self.fixed);
        }
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
