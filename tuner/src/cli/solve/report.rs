//! What `optpipe solve` prints.

use std::path::Path;

use optpipe_solver::milp::MilpStats;
use optpipe_solver::objective::Objective;
use optpipe_solver::solve::Solution;
use schemars::JsonSchema;
use serde::Serialize;

use super::robust::Robust;
use super::{Args, Input};
use crate::cache::Hit;
use crate::cli;
use crate::error::Result;
use crate::sensitivity::Sensitivity;
use crate::summary::Predicted;
use crate::text;

/// A solution with all that is told about it.
pub(super) struct Found<'a> {
    pub(super) input: &'a Input,
    pub(super) solution: &'a Solution,
    pub(super) predicted: Predicted,
    pub(super) hit: Option<Hit>,
    pub(super) robust: Option<&'a Robust>,
    pub(super) sensitivity: Option<&'a Sensitivity>,
    pub(super) written: Option<&'a Path>,
}

/// What `--json` prints.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in crate::cli) struct Solved<'a> {
    /// What the schedule was judged by.
    objective: Objective,
    /// Its makespan, ns.
    makespan_ns: i64,
    /// Its period, ns: the longest span of a device.
    period_ns: i64,
    /// The objective of no schedule is less, ns.
    bound_ns: i64,
    /// The objective over the bound, less 1.
    gap: f64,
    /// Whether the schedule is proven optimal.
    proven: bool,
    /// What found it.
    method: &'a str,
    /// Why the solve ended.
    stop: &'a optpipe_solver::solve::StopReason,
    /// Share of the devices' time in which they do not compute.
    bubble: f64,
    /// Peak of each device, `static` included.
    peak_bytes: &'a [u64],
    /// What each device may hold.
    capacity_bytes: &'a [i64],
    /// Stage-microbatch pairs whose activations go to the host.
    offloaded: usize,
    /// Their bytes.
    offloaded_bytes: u64,
    /// Transformer blocks of each stage, where a job or a profile was solved.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer_split: Option<&'a [usize]>,
    /// What each part of the solver did.
    parts: &'a [optpipe_solver::solve::PartRecord],
    /// Makespan and bound over time.
    trace: &'a [optpipe_solver::solve::TracePoint],
    /// What the MILP did, where it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    milp: Option<&'a MilpStats>,
    /// What the cache of solved problems had.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<Hit>,
    /// With `--noise`: how the candidates did.
    #[serde(skip_serializing_if = "Option::is_none")]
    noise: Option<&'a Robust>,
    /// With `--sensitivity`: what more memory and bandwidth would be worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    sensitivity: Option<&'a Sensitivity>,
    /// Where the schedule was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<&'a Path>,
}

impl Found<'_> {
    /// Prints it.
    pub(super) fn emit(&self, args: &Args) -> Result<()> {
        if args.json {
            cli::emit_json(&self.json())?
        } else {
            cli::emit_words(&self.text())?
        }
        if let Some(path) = self.written {
            cli::wrote(args.quiet, path.display());
        }
        Ok(())
    }

    /// For `--json`.
    fn json(&self) -> Solved<'_> {
        let Found { input, solution, predicted, .. } = self;
        Solved {
            objective: solution.objective,
            makespan_ns: solution.makespan_ns,
            period_ns: solution.period_ns,
            bound_ns: solution.bound_ns,
            gap: solution.gap(),
            proven: solution.proven,
            method: &solution.method,
            stop: &solution.stop,
            bubble: predicted.bubble,
            peak_bytes: &predicted.peak_bytes,
            capacity_bytes: &input.problem.bytes.capacity,
            offloaded: predicted.offloaded,
            offloaded_bytes: predicted.offloaded_bytes,
            layer_split: input.plan.as_ref().map(|plan| plan.layer_split.as_slice()),
            parts: &solution.parts,
            trace: &solution.trace,
            milp: solution.milp.as_ref(),
            cache: self.hit,
            noise: self.robust,
            sensitivity: self.sensitivity,
            schedule: self.written,
        }
    }

    /// For people.
    fn text(&self) -> String {
        let Found { input, solution, predicted, .. } = self;
        let problem = &input.problem;
        let mut lines = vec![
            format!(
                "makespan   {} ({} ns), found by {}",
                text::duration(solution.makespan_ns),
                solution.makespan_ns,
                solution.method
            ),
            format!("period     {} ({} ns)", text::duration(solution.period_ns), solution.period_ns),
            format!(
                "bound      {} ({} ns) on the {}, gap {}",
                text::duration(solution.bound_ns),
                solution.bound_ns,
                solution.objective,
                text::gap(solution.gap())
            ),
            format!("bubble     {}", text::percent(predicted.bubble)),
            format!(
                "offloaded  {} of {} stage-microbatch pairs, {}",
                predicted.offloaded,
                problem.stages() * problem.microbatches,
                text::bytes(predicted.offloaded_bytes)
            ),
        ];
        for (device, (&peak, capacity)) in predicted.peak_bytes.iter().zip(&problem.bytes.capacity).enumerate() {
            let label = if device == 0 { "peak" } else { "" };
            lines.push(format!(
                "{label:<10} device {device}: {} of {}",
                text::bytes(peak),
                text::bytes(capacity.unsigned_abs())
            ));
        }
        lines.extend(solution.milp.as_ref().filter(|milp| milp.variables > 0).map(milp));
        if let Some(plan) = &input.plan {
            for (s, stage) in plan.stages.iter().enumerate() {
                let label = if s == 0 { "split" } else { "" };
                lines.push(format!("{label:<10} stage {s} on device {}: {}", stage.device, stage.layers));
            }
        }
        lines.extend(self.hit.map(|hit| format!("cache      {hit}")));
        lines.extend(self.robust.map(Robust::text));
        if let Some(sensitivity) = self.sensitivity {
            let label = |i: usize| if i == 0 { "worth" } else { "" };
            lines.extend(sensitivity.changes.iter().enumerate().map(|(i, worth)| format!("{:<10} {worth}", label(i))));
        }
        lines.join("\n")
    }
}

/// Size of the largest MILP, and what came of it.
fn milp(stats: &MilpStats) -> String {
    let MilpStats { variables, binaries, rows, nodes, models, .. } = stats;
    let root = stats.root_bound_ns.map_or_else(|| "none".to_owned(), text::duration);
    format!(
        "MILP       {variables} variables, {binaries} of them binary, {rows} rows; root bound {root}; \
         {nodes} nodes in {models} models, {}",
        text::duration((stats.time_s * 1e9) as i64)
    )
}
