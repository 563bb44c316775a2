//! HiGHS: options, warm start, progress, interruption.
//!
//! HiGHS checks its own time limit; the callbacks check the
//! deadline once more, and the flag that cancels, at every point where HiGHS asks.

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use good_lp::solvers::highs::highs;
use good_lp::{Expression, SolverModel};
use highs::{HighsModelStatus, HighsSolutionStatus, Model};
use highs_sys::{HighsCallbackDataIn, HighsCallbackDataOut};

use super::MilpError;
use super::model::Statement;

/// How a solve ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The best solution is optimal.
    Optimal,
    /// There is no solution.
    Infeasible,
    /// Time is up, or it was cancelled.
    Stopped,
}

/// What HiGHS tells on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report<'a> {
    /// Proven bound, in units.
    pub(crate) bound: Option<f64>,
    /// A new best solution.
    pub(crate) columns: Option<&'a [f64]>,
}

/// The result of a solve.
pub(crate) struct Solved {
    pub(crate) ending: Ending,
    /// Value of every column of the best solution.
    pub(crate) columns: Option<Vec<f64>>,
    /// Proven bound, in units.
    pub(crate) bound: Option<f64>,
    /// Bound after the root of the tree, in units.
    pub(crate) root_bound: Option<f64>,
    pub(crate) nodes: i64,
}

/// When to stop, and on how many threads to run.
pub(crate) struct Limits<'a> {
    pub(crate) deadline: Instant,
    /// The scheduler of HiGHS belongs to the calling thread: the first number that a thread gives holds.
    pub(crate) threads: usize,
    /// Nodes of the tree, at most.
    pub(crate) nodes: Option<i32>,
    /// The tree ends when bound and best solution are as close, in units of the objective.
    pub(crate) gap: f64,
    pub(crate) cancel: &'a AtomicBool,
}

/// What the callback sees. It lives on the stack of `solve` while HiGHS runs.
struct Watch<'a> {
    limits: &'a Limits<'a>,
    report: &'a mut dyn FnMut(Report<'_>) -> bool,
    columns: usize,
    thread: ThreadId,
    root_bound: Option<f64>,
    nodes: i64,
    failed: bool,
    /// The report asked to stop.
    enough: bool,
}

/// Solves a model stated with good_lp, from a full warm start if there is one. `report` hears of every bound
/// and solution and returns whether to go on.
pub(super) fn solve(
    statement: Statement,
    warm: Option<&[f64]>,
    limits: &Limits<'_>,
    report: &mut dyn FnMut(Report<'_>) -> bool,
) -> Result<Solved, MilpError> {
    let Statement { variables, rows, makespan } = statement;
    let mut stated = variables.minimise(Expression::from(makespan)).using(highs);
    for row in rows {
        stated.add_constraint(row);
    }
    let model = stated.try_into_inner().map_err(|e| MilpError::Solver(e.to_string()))?;
    run(model, warm, limits, report)
}

/// Solves a model of HiGHS; see [`solve`].
pub(crate) fn run(
    mut model: Model,
    warm: Option<&[f64]>,
    limits: &Limits<'_>,
    report: &mut dyn FnMut(Report<'_>) -> bool,
) -> Result<Solved, MilpError> {
    model.make_quiet();
    let left = limits.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let option = |_| MilpError::Solver("an option of HiGHS was refused".to_string());
    let threads = i32::try_from(limits.threads.clamp(1, 256)).unwrap_or(1);
    model.try_set_option("threads", threads).map_err(option)?;
    model.try_set_option("time_limit", left.as_secs_f64()).map_err(option)?;
    model.try_set_option("mip_rel_gap", 0.0).map_err(option)?;
    model.try_set_option("mip_abs_gap", limits.gap).map_err(option)?;
    if let Some(nodes) = limits.nodes {
        model.try_set_option("mip_max_nodes", nodes).map_err(option)?;
    }
    if let Some(values) = warm {
        let refused = |_| MilpError::Solver("the warm start was refused".to_string());
        model.try_set_solution(Some(values), None, None, None).map_err(refused)?;
    }

    let mut watch = Watch {
        limits,
        report,
        columns: model.num_cols(),
        thread: std::thread::current().id(),
        root_bound: None,
        nodes: 0,
        failed: false,
        enough: false,
    };
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
    let mut solved = model.try_solve().map_err(|status| MilpError::Solver(format!("HiGHS ended with {status:?}")))?;
    // SAFETY: the model is alive; without a callback HiGHS does not touch `watch` again.
    unsafe {
        highs_sys::Highs_setCallback(solved.as_mut_ptr(), None, std::ptr::null_mut());
    }
    let Watch { root_bound, nodes, failed, .. } = watch;
    if failed {
        return Err(MilpError::Solver("a progress report panicked".to_string()));
    }

    let ending = match solved.status() {
        HighsModelStatus::Optimal | HighsModelStatus::ModelEmpty => Ending::Optimal,
        HighsModelStatus::Infeasible | HighsModelStatus::UnboundedOrInfeasible => Ending::Infeasible,
        HighsModelStatus::ReachedTimeLimit
        | HighsModelStatus::ReachedInterrupt
        | HighsModelStatus::ReachedSolutionLimit
        | HighsModelStatus::ReachedMemoryLimit
        | HighsModelStatus::ReachedIterationLimit => Ending::Stopped,
        other => return Err(MilpError::Solver(format!("HiGHS ended with status {other:?}"))),
    };
    let has_solution = solved.primal_solution_status() == HighsSolutionStatus::Feasible;
    let columns = has_solution.then(|| solved.get_solution().columns().to_vec());
    let finite = |x: f64| x.is_finite().then_some(x);
    let bound = match ending {
        Ending::Infeasible => None,
        _ => solved.double_info_value(c"mip_dual_bound").ok().and_then(finite),
    };
    let count = solved.mip_nodes().unwrap_or(nodes).max(0);
    Ok(Solved { ending, columns, bound, root_bound: root_bound.or(bound), nodes: count })
}

/// Number of nodes, which HiGHS keeps as a 64-bit information value.
trait MipNodes {
    fn mip_nodes(&self) -> Option<i64>;
}

impl MipNodes for highs::SolvedModel {
    fn mip_nodes(&self) -> Option<i64> {
        let mut value = 0_i64;
        // SAFETY: the model is alive, the name ends with NUL and names a 64-bit value.
        let status =
            unsafe { highs_sys::Highs_getInt64InfoValue(self.as_ptr(), c"mip_node_count".as_ptr(), &mut value) };
        (status == highs_sys::STATUS_OK).then_some(value)
    }
}

/// Passes progress on and tells HiGHS to stop. `data` is the [`Watch`] of the running `solve`.
unsafe extern "C" fn callback(
    kind: c_int,
    _message: *const c_char,
    out: *const HighsCallbackDataOut,
    back: *mut HighsCallbackDataIn,
    data: *mut c_void,
) {
    // SAFETY: `data` was made from the `Watch` that `solve` keeps alive while HiGHS runs. HiGHS calls
    // back from the thread that runs the MIP; another one is turned away before the `Watch` is touched
    // other than by reading a field that never changes.
    let Some(thread) = (unsafe { data.cast::<Watch<'_>>().as_ref() }).map(|watch| watch.thread) else { return };
    if thread != std::thread::current().id() {
        return;
    }
    // SAFETY: as above, and on this thread nobody else uses the `Watch` during the call.
    let Some(watch) = (unsafe { data.cast::<Watch<'_>>().as_mut() }) else { return };
    // SAFETY: HiGHS passes pointers that are valid during the call, or null.
    if let Some(out) = unsafe { out.as_ref() } {
        let in_tree =
            kind == highs_sys::kHighsCallbackMipImprovingSolution || kind == highs_sys::kHighsCallbackMipInterrupt;
        if in_tree && !watch.failed {
            let bound = out.mip_dual_bound.is_finite().then_some(out.mip_dual_bound);
            watch.nodes = out.mip_node_count;
            if out.mip_node_count <= 1 && bound.is_some() {
                watch.root_bound = bound;
            }
            let improved = kind == highs_sys::kHighsCallbackMipImprovingSolution
                && !out.mip_solution.is_null()
                && usize::try_from(out.mip_solution_size).is_ok_and(|n| n == watch.columns);
            // SAFETY: an improving solution comes with one value a column.
            let columns = improved.then(|| unsafe { std::slice::from_raw_parts(out.mip_solution, watch.columns) });
            let report = Report { bound, columns };
            // A panic must not cross into C++.
            match catch_unwind(AssertUnwindSafe(|| (watch.report)(report))) {
                Ok(go_on) => watch.enough |= !go_on,
                Err(_) => watch.failed = true,
            }
        }
    }
    let limits = watch.limits;
    if watch.failed || watch.enough || limits.cancel.load(Ordering::Relaxed) || Instant::now() >= limits.deadline {
        // SAFETY: valid during the call, or null.
        if let Some(back) = unsafe { back.as_mut() } {
            back.user_interrupt = 1;
        }
    }
}
