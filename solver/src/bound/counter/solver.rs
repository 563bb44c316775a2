//! Multipliers from HiGHS.

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use highs::{HighsModelStatus, RowProblem, Sense};
use highs_sys::{HighsCallbackDataIn, HighsCallbackDataOut};

use super::model::Model;

/// When to stop.
pub(super) struct Limits<'a> {
    pub(super) deadline: Instant,
    pub(super) cancel: &'a AtomicBool,
}

impl Limits<'_> {
    pub(super) fn reached(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || Instant::now() >= self.deadline
    }
}

/// Multipliers for the rows, and by what share of its limit some resource must be exceeded; None if there
/// are none in time.
pub(super) fn multipliers(model: &Model, limits: &Limits<'_>) -> Option<(Vec<f64>, f64)> {
    let mut stated = RowProblem::new();
    let columns: Vec<_> = (model.columns.iter().zip(&model.units))
        .map(|(&(low, high), &unit)| stated.add_column(0.0, low as f64 / unit as f64..=high as f64 / unit as f64))
        .collect();
    let excess = stated.add_column(1.0, 0.0..);
    let mut terms = Vec::new();
    for row in &model.rows {
        let norm = row.norm as f64;
        terms.clear();
        let scaled = |&(column, x): &(usize, i64)| (columns[column], x as f64 * model.units[column] as f64 / norm);
        terms.extend(row.terms.iter().map(scaled));
        if row.limit > 0 {
            terms.push((excess, -row.limit as f64 / norm));
        }
        stated.add_row(..=row.most as f64 / norm, &terms);
    }
    let mut lp = stated.try_optimise(Sense::Minimise).ok()?;
    lp.make_quiet();
    // The task scheduler of HiGHS belongs to the calling thread, which is one of its own.
    lp.try_set_option("threads", 1).ok()?;
    lp.try_set_option("parallel", "off").ok()?;
    let left = limits.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    lp.try_set_option("time_limit", left.as_secs_f64()).ok()?;
    // Without crossover: any multipliers do, and a basis costs far more.
    lp.try_set_option("solver", "ipm").ok()?;
    lp.try_set_option("run_crossover", "off").ok()?;
    lp.try_set_option("ipm_optimality_tolerance", 1e-7).ok()?;
    // Errors count once for each column, times what it can reach.
    lp.try_set_option("primal_feasibility_tolerance", 1e-9).ok()?;
    lp.try_set_option("dual_feasibility_tolerance", 1e-9).ok()?;
    let data: *mut c_void = std::ptr::from_ref(limits).cast_mut().cast();
    // SAFETY: the model outlives the call, and `limits` the run below, after which the callback is taken
    // off again.
    unsafe {
        let highs = lp.as_mut_ptr();
        highs_sys::Highs_setCallback(highs, Some(interrupt), data);
        for kind in [highs_sys::kHighsCallbackSimplexInterrupt, highs_sys::kHighsCallbackIpmInterrupt] {
            highs_sys::Highs_startCallback(highs, kind);
        }
    }
    let mut solved = lp.try_solve().ok()?;
    // SAFETY: the model is alive; without a callback HiGHS does not touch `limits` again.
    unsafe {
        highs_sys::Highs_setCallback(solved.as_mut_ptr(), None, std::ptr::null_mut());
    }
    // Whatever the status: the multipliers are checked by whoever uses them.
    let bad = matches!(solved.status(), HighsModelStatus::ModelError | HighsModelStatus::LoadError);
    let solution = solved.get_solution();
    let duals = solution.dual_rows();
    if bad || duals.len() != model.rows.len() {
        return None;
    }
    let multipliers = duals.iter().zip(&model.rows).map(|(dual, row)| -dual / row.norm as f64).collect();
    Some((multipliers, solved.objective_value()))
}

/// Tells HiGHS to stop. `data` is the [`Limits`] of the running solve.
unsafe extern "C" fn interrupt(
    _kind: c_int,
    _message: *const c_char,
    _out: *const HighsCallbackDataOut,
    back: *mut HighsCallbackDataIn,
    data: *mut c_void,
) {
    // SAFETY: `data` points to the `Limits` that outlive the run and of which only shared parts are read.
    let Some(limits) = (unsafe { data.cast::<Limits<'_>>().as_ref() }) else { return };
    if limits.reached() {
        // SAFETY: valid during the call, or null.
        if let Some(back) = unsafe { back.as_mut() } {
            back.user_interrupt = 1;
        }
    }
}
