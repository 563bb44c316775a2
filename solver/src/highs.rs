//! HiGHS under watch: it can be asked to stop, and tells of its tree on the way.
//!
//! The crate `highs` has no safe way to do either: both take a callback from C++. This is the one module of the
//! solver with `unsafe` code; what it offers to the others is safe.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, ThreadId};

use highs::{HighsStatus, Model, SolvedModel};
use highs_sys::{HighsCallbackDataIn, HighsCallbackDataOut};

/// The state of a tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tree<'a> {
    /// Proven bound, in units of the objective.
    pub(crate) bound: Option<f64>,
    pub(crate) nodes: i64,
    /// A new best solution: one value a column.
    pub(crate) columns: Option<&'a [f64]>,
}

/// Asked wherever HiGHS allows for it, with the tree where it is in one: whether to go on.
pub(crate) type Look<'a> = dyn FnMut(Option<Tree<'_>>) -> bool + 'a;

/// Why there is no solved model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// HiGHS failed.
    #[error("HiGHS ended with {0:?}")]
    Status(HighsStatus),
    /// What was asked whether to go on panicked; a panic must not cross C++.
    #[error("a progress report panicked")]
    Panicked,
}

/// What the callback sees. It lives on the stack of [`solve`] while HiGHS runs.
struct Watch<'a> {
    look: &'a mut Look<'a>,
    columns: usize,
    thread: ThreadId,
    panicked: bool,
}

/// Solves a model, asking `look` on the way.
pub(crate) fn solve<'a>(mut model: Model, look: &'a mut Look<'a>) -> Result<SolvedModel, Failure> {
    let mut watch = Watch { look, columns: model.num_cols(), thread: thread::current().id(), panicked: false };
    let data: *mut c_void = (&raw mut watch).cast();
    // SAFETY: the model outlives the call, and `watch` outlives the run below, after which the callback
    // is taken off again.
    unsafe {
        let highs = model.as_mut_ptr();
        highs_sys::Highs_setCallback(highs, Some(callback), data);
        for kind in [
            highs_sys::kHighsCallbackMipImprovingSolution,
            highs_sys::kHighsCallbackMipInterrupt,
            highs_sys::kHighsCallbackSimplexInterrupt,
            highs_sys::kHighsCallbackIpmInterrupt,
        ] {
            highs_sys::Highs_startCallback(highs, kind);
        }
    }
    // One that fails is gone, and its callback with it.
    let mut solved = model.try_solve().map_err(Failure::Status)?;
    // SAFETY: the model is alive; without a callback HiGHS does not touch `watch` again.
    unsafe {
        highs_sys::Highs_setCallback(solved.as_mut_ptr(), None, std::ptr::null_mut());
    }
    if watch.panicked { Err(Failure::Panicked) } else { Ok(solved) }
}

/// Number of nodes of the tree, which HiGHS keeps as a 64-bit information value.
pub(crate) fn nodes(solved: &SolvedModel) -> Option<i64> {
    let mut value = 0_i64;
    // SAFETY: the model is alive, the name ends with NUL and names a 64-bit value.
    let status = unsafe { highs_sys::Highs_getInt64InfoValue(solved.as_ptr(), c"mip_node_count".as_ptr(), &mut value) };
    (status == highs_sys::STATUS_OK).then_some(value)
}

/// Asks whether to go on and tells HiGHS. `data` is the [`Watch`] of the running [`solve`].
unsafe extern "C" fn callback(
    kind: c_int,
    _message: *const c_char,
    out: *const HighsCallbackDataOut,
    back: *mut HighsCallbackDataIn,
    data: *mut c_void,
) {
    let watch = data.cast::<Watch<'_>>();
    // SAFETY: `data` was made from the `Watch` that `solve` keeps alive while HiGHS runs. HiGHS calls back from the
    // thread that runs the MIP; another one is turned away before it touches more than this field, which never
    // changes.
    if watch.is_null() || unsafe { (*watch).thread } != thread::current().id() {
        return;
    }
    // SAFETY: as above, and on this thread nobody else uses the `Watch` during the call.
    let Some(watch) = (unsafe { watch.as_mut() }) else { return };
    let in_tree =
        kind == highs_sys::kHighsCallbackMipImprovingSolution || kind == highs_sys::kHighsCallbackMipInterrupt;
    // SAFETY: HiGHS passes pointers that are valid during the call, or null.
    let tree = unsafe { out.as_ref() }.filter(|_| in_tree).map(|out| {
        let improved = kind == highs_sys::kHighsCallbackMipImprovingSolution
            && !out.mip_solution.is_null()
            && usize::try_from(out.mip_solution_size).is_ok_and(|n| n == watch.columns);
        Tree {
            bound: out.mip_dual_bound.is_finite().then_some(out.mip_dual_bound),
            nodes: out.mip_node_count,
            // SAFETY: an improving solution comes with one value a column.
            columns: improved.then(|| unsafe { std::slice::from_raw_parts(out.mip_solution, watch.columns) }),
        }
    });
    let go_on = !watch.panicked
        && catch_unwind(AssertUnwindSafe(|| (watch.look)(tree))).unwrap_or_else(|_| {
            watch.panicked = true;
            false
        });
    if !go_on {
        // SAFETY: valid during the call, or null.
        if let Some(back) = unsafe { back.as_mut() } {
            back.user_interrupt = 1;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use highs::{RowProblem, Sense};

    use super::*;

    /// A knapsack that takes a tree: the most value of items of these weights.
    fn knapsack() -> Model {
        let mut stated = RowProblem::new();
        let items: Vec<_> = (0..40)
            .map(|i| {
                let weight = f64::from(100 + i * 37 % 61);
                (stated.add_integer_column(weight + f64::from(i % 7), 0.0..=1.0), weight)
            })
            .collect();
        stated.add_row(..=1777.0, &items);
        let mut model = stated.try_optimise(Sense::Maximise).unwrap();
        model.make_quiet();
        model.try_set_option("threads", 1).unwrap();
        model
    }

    #[test]
    fn a_panic_does_not_cross_and_ends_the_solve() {
        let (mut looks, hook) = (0, std::panic::take_hook());
        std::panic::set_hook(Box::new(|_| {}));
        let solved = solve(knapsack(), &mut |_| {
            looks += 1;
            panic!("of the test")
        });
        std::panic::set_hook(hook);
        assert_eq!(solved.err(), Some(Failure::Panicked));
        assert_eq!(looks, 1, "nobody is asked again");
    }

    #[test]
    fn solutions_are_told_on_the_way_and_the_tree_can_be_left() {
        let mut best = Vec::new();
        let solved = solve(knapsack(), &mut |tree| {
            best.extend(tree.and_then(|tree| tree.columns).map(<[f64]>::to_vec));
            true
        })
        .unwrap();
        assert!(nodes(&solved).is_some());
        assert_eq!(best.last().map(Vec::len), Some(40));
        let value = |columns: &[f64]| -> f64 {
            let worth = |i: usize| 100.0 + ((i * 37 % 61) + i % 7) as f64;
            columns.iter().enumerate().map(|(i, x)| x * worth(i)).sum()
        };
        assert!((value(best.last().unwrap()) - solved.objective_value()).abs() < 1e-6);
        let stopped = solve(knapsack(), &mut |_| false).unwrap();
        assert_ne!(stopped.status(), highs::HighsModelStatus::Optimal);
    }
}
