//! HiGHS: options, warm start, progress, interruption.
//!
//! HiGHS checks its own time limit; the callbacks check the
//! deadline once more, and the flag that cancels, at every point where HiGHS asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use good_lp::solvers::highs::highs;
use good_lp::{Expression, SolverModel};
use highs::{HighsModelStatus, HighsSolutionStatus, Model};

use super::MilpError;
use super::model::Statement;
use crate::highs::{self as watched, Tree};

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

    let (mut root_bound, mut nodes, mut enough) = (None, 0, false);
    let mut look = |tree: Option<Tree<'_>>| {
        if let Some(Tree { bound, nodes: so_far, columns }) = tree {
            nodes = so_far;
            if so_far <= 1 && bound.is_some() {
                root_bound = bound;
            }
            enough |= !report(Report { bound, columns });
        }
        !(enough || limits.cancel.load(Ordering::Relaxed) || Instant::now() >= limits.deadline)
    };
    let solved = watched::solve(model, &mut look).map_err(|e| MilpError::Solver(e.to_string()))?;

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
    let count = watched::nodes(&solved).unwrap_or(nodes).max(0);
    Ok(Solved { ending, columns, bound, root_bound: root_bound.or(bound), nodes: count })
}
