//! The counter relaxation: how many ops of each kind have started at each stage by each time of a grid.
//!
//! # The relaxation
//! Suppose a legal schedule ends by the horizon T. Let N(t) count the ops of one kind at one stage that
//! have started by time t (that moment included), each op of length p; it has ended by t if it started by
//! t - p. N never falls, and a count at a time between two grid points lies between those at the two. So
//! every inequality below between counts holds with each count that should be large moved up to the next
//! grid point, and each that should be small moved down to the last one: a coarse grid weakens the bound
//! and never breaks it. (Each counter has a grid of its own, which begins at its earliest first start, so
//! that where lengths are multiples of the step little is lost.) Microbatches may overtake each other.
//!
//! - **Heads and tails.** The k-th op does not start before its head, and the k-th from the last not after
//!   T less its tail and its length: bounds on each count ([`heads`](super::heads)).
//! - **Order.** If every Y(j) starts no earlier than x after the end of X(j), `N_Y(t) <= N_X(t - p_X - x)`:
//!   each microbatch counted on the left counts on the right. This for F to F, F to B (along the whole way
//!   over the later stages, too), B to B, B to W, O to R. Stages of devices left out only add to x.
//! - **Offloading.** The microbatches of a stage are of two kinds, those kept and those that are offloaded
//!   some time; let X(t) count the F of kept ones. Then `N_O(t) <= (N_F - X)(t - p_F)`; X and N_F - X never
//!   fall; and each B started is of a kept microbatch or of one reloaded before:
//!   `N_B(t) <= N_R(t - p_R) + X(t - p_F - way)`, with the way from the end of F to B. At the end every O
//!   has its R, and O and X together are at most M.
//! - **Queues.** Of one queue's ops of positive length at most one has started by t and not ended by t:
//!   `Σ N(t) - N(t - p) <= 1`; a fused backward is one op.
//! - **Idle time.** Work done by t, the integral of N(u) - N(u - p) over u <= t of all ops of a queue, and
//!   the time that it has stood idle until then, make the time gone since its first possible start. The
//!   integral lies between those of the counts moved down and up to grid points; idle time is a column that
//!   never falls and in the end is at most what the certain work leaves. Where lengths are not multiples
//!   of the step, the rows above lose a part of each op; with these, such losses do not add up.
//! - **Memory.** What has been allocated by t less what has been freed by t fits in the room:
//!   `Σ activation N_F(t) - offloadable (N_O(t - p_O) - N_R(t)) - (activation - context) N_B(t - p_B) -
//!   context N_W(t - p_W)`. Each microbatch being in one of the states activation, rest, context, sizes may
//!   be counted in any unit, rounded down.
//!
//! # Proof
//! The rows are integers. HiGHS finds multipliers for them in floating point; rounded to integers, they
//! make one inequality, and if that fails for all values within the columns' bounds, in exact
//! arithmetic, no legal schedule ends by T ([`certificate`]). The bound is then the next time at which a
//! schedule can end: some optimal schedule starts every op at a multiple of the common divisor of all
//! times (round every start of a schedule down to one: orders, queues and memory stay legal).

mod certificate;
mod counts;
mod model;
mod search;
mod solver;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::lower_bound;
use crate::problem::Problem;
use search::Search;
use solver::Limits;

/// Raises a known bound by proofs that no legal schedule ends by some horizon, until the deadline, until
/// the bound meets the makespan known, or until the relaxation has no more to give. `on_bound` hears of each
/// better bound, ns. Uses one thread, and ends within moments of the deadline or of `cancel`.
///
/// `known_ns` is a valid bound or 0, `makespan_ns` tells the makespan of the best schedule by now: beyond,
/// there is nothing to prove. The problem must be feasible. Returns the best bound, at least that of [`lower_bound`].
pub fn counter_bound(
    problem: &Problem,
    known_ns: i64,
    makespan_ns: &dyn Fn() -> i64,
    deadline: Instant,
    cancel: &AtomicBool,
    on_bound: &mut dyn FnMut(i64),
) -> i64 {
    let combinatorial = lower_bound(problem);
    let mut bound = known_ns.max(combinatorial);
    if combinatorial > known_ns {
        on_bound(combinatorial);
    }
    // HiGHS looks at its limits between steps, some of which are long; and its task scheduler belongs to the
    // calling thread and keeps its first size. So it gets a thread of its own that owns all it works on, and
    // can be left behind when time is up: it then ends at the next point where HiGHS looks.
    let inbox = Arc::new(Inbox { stop: AtomicBool::new(false), makespan_ns: AtomicI64::new(makespan_ns()) });
    let (sender, receiver) = mpsc::channel();
    let work = {
        let (problem, inbox) = (problem.clone(), Arc::clone(&inbox));
        move || {
            let makespan_ns = || inbox.makespan_ns.load(Ordering::Relaxed);
            let limits = Limits { deadline, cancel: &inbox.stop };
            Search::new(&problem, bound, &makespan_ns, &limits).run(&mut |bound| sender.send(bound).is_ok());
        }
    };
    // Without a thread there is no better bound.
    if std::thread::Builder::new().name("counter-lp".to_owned()).spawn(work).is_err() {
        return bound;
    }
    let mut over = None;
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(better) => {
                bound = better;
                on_bound(better);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return bound,
        }
        inbox.makespan_ns.store(makespan_ns(), Ordering::Relaxed);
        if cancel.load(Ordering::Relaxed) || Instant::now() >= deadline {
            inbox.stop.store(true, Ordering::Relaxed);
            if over.get_or_insert_with(Instant::now).elapsed() >= GRACE {
                return bound;
            }
        }
    }
}

/// What the thread is told while it works.
struct Inbox {
    stop: AtomicBool,
    makespan_ns: AtomicI64,
}

/// How often it is looked whether time is up, and how long the thread may then take to end.
const POLL: Duration = Duration::from_millis(10);
const GRACE: Duration = Duration::from_millis(100);
