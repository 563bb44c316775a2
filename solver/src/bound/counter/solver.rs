//! Multipliers from HiGHS.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use highs::{HighsModelStatus, RowProblem, Sense};

use super::model::Model;
use crate::highs::solve;

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
    let solved = solve(lp, &mut |_| !limits.reached()).ok()?;
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
