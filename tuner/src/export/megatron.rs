//! What Megatron-Core can be told of a schedule, and how far from it that is.
//!
//! Megatron-Core takes no schedule from its user: it runs 1F1B, or interleaved 1F1B with several chunks a
//! device, with whole backwards. The layer split it takes exactly (`--pipeline-model-parallel-layout`), of
//! the offloads only which modules of every layer leave (`--offload-modules`).

use std::fmt::Write as _;

use optpipe_solver::check::check;
use optpipe_solver::method::Method;
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{OpKind, ScheduleFile};
use optpipe_solver::simulate::simulate_unlimited;
use optpipe_solver::textbook;

use super::units;

/// Why Megatron-Core cannot run anything near a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MegatronError {
    /// Stages lie where Megatron-Core cannot put them.
    #[error("Megatron-Core places stage s on device s mod P; this schedule's placement is {0:?}")]
    Placement(
        /// The device of each stage.
        Vec<usize>,
    ),
    /// Without a layer split there is no layout.
    #[error("the schedule has no layer_split, which the layout is made of")]
    NoLayerSplit,
    /// The textbook schedule does not apply.
    #[error("{method} cannot run here: {reason}")]
    Schedule {
        /// What Megatron-Core would run.
        method: &'static str,
        /// Why not.
        reason: String,
    },
}

/// What may leave of a dense transformer layer, in bytes per token and width (16 bit numbers): the inputs
/// of both norms and of the attention's projection, and queries, keys and values. Of a layer's 34 (the
/// count of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", 2022,
/// without the attention's scores, which fused attention does not keep).
const MODULES: [(&str, f64); 4] = [("attn_norm", 2.0), ("core_attn", 6.0), ("attn_proj", 2.0), ("mlp_norm", 2.0)];
const LAYER: f64 = 34.0;

/// A shell script with the arguments, and in its comments the distance from the schedule.
///
/// # Errors
/// [`MegatronError`], where nothing that Megatron-Core runs has these stages.
pub fn megatron(problem: &Problem, file: &ScheduleFile) -> Result<String, MegatronError> {
    let devices = problem.devices;
    if !problem.stages().is_multiple_of(devices) || problem.placement.iter().enumerate().any(|(s, &d)| d != s % devices)
    {
        return Err(MegatronError::Placement(problem.placement.clone()));
    }
    let split = file.layer_split.as_ref().ok_or(MegatronError::NoLayerSplit)?;
    let chunks = problem.stages() / devices;
    let method = if chunks == 1 { Method::OneFOneB } else { Method::Interleaved };
    let failed = |reason: String| MegatronError::Schedule { method: method.name(), reason };
    let whole = Problem { split_backward: false, ..problem.clone() };
    let order: Order = textbook::order(&whole, method).map_err(|e| failed(e.to_string()))?;
    let simulated = simulate_unlimited(&whole, &order).map_err(|e| failed(e.to_string()))?;

    let wanted = check(problem, &file.schedule);
    let activations: i64 = problem.bytes.activation.iter().sum::<i64>() * problem.microbatches as i64;
    let share = wanted.offloaded_bytes as f64 / (activations.max(1)) as f64;
    let modules = if wanted.offloaded > 0 { nearest(share) } else { Vec::new() };
    let reached: f64 = MODULES.iter().filter(|(name, _)| modules.contains(name)).map(|(_, bytes)| bytes / LAYER).sum();
    // What Megatron-Core offloads is gone from a layer's end to its backward: the rest is what it holds.
    let mut lighter = whole.clone();
    for bytes in [&mut lighter.bytes.activation, &mut lighter.bytes.weight_context, &mut lighter.bytes.offloadable] {
        bytes.iter_mut().for_each(|bytes| *bytes = (*bytes as f64 * (1.0 - reached)).ceil() as i64);
    }
    let offloaded = simulate_unlimited(&lighter, &order).map_err(|e| failed(e.to_string()))?;
    let apart = file.schedule.ops.iter().flatten().filter(|x| x.op == OpKind::W).count();

    let mut text = String::new();
    let _ = writeln!(text, "# Arguments for Megatron-Core (written for 0.16): source this file, then");
    let _ = writeln!(text, "#   torchrun ... pretrain_gpt.py \"${{OPTPIPE_ARGS[@]}}\" ...");
    let _ = writeln!(text, "# Megatron-Core takes no schedule: this is the nearest that it runs, {}.", method.name());
    let _ = writeln!(text, "#");
    let ratio = simulated.schedule.makespan_ns as f64 / wanted.makespan_ns.max(1) as f64;
    let _ = writeln!(
        text,
        "# step, simulated: {} (the schedule: {}, a factor of {ratio:.3})",
        units::time(simulated.schedule.makespan_ns),
        units::time(wanted.makespan_ns)
    );
    let verdict = |peak: i64, device: usize| {
        if peak > problem.bytes.capacity[device] { "EXCEEDS" } else { "within" }
    };
    for (device, &own) in wanted.peak_bytes.iter().enumerate() {
        let (all, less) = (simulated.peak_bytes[device], offloaded.peak_bytes[device]);
        let _ = write!(
            text,
            "# peak of device {device}, simulated without offloading: {}, {} the limit of {}",
            units::bytes(all),
            verdict(all, device),
            units::bytes(problem.bytes.capacity[device])
        );
        if !modules.is_empty() {
            let _ = write!(text, "; with these modules away: {}, {} it", units::bytes(less), verdict(less, device));
        }
        let _ = writeln!(text, " (the schedule: {})", units::bytes(own));
    }
    let _ = writeln!(text, "# not carried over: the order of ops, {apart} weight gradients of their own,");
    let _ = writeln!(
        text,
        "#   {} offloads and reloads at their times ({} of all activations leave)",
        wanted.offloaded,
        units::percent(share)
    );
    if wanted.offloaded > 0 {
        let _ = writeln!(
            text,
            "# the modules offloaded below are about {} of a dense layer's activations, of every microbatch",
            units::percent(reached)
        );
    }
    let _ = writeln!(text, "# Chunks a device, which the layout implies: Megatron-Core takes one of the two only.");
    let _ = writeln!(text, "OPTPIPE_CHUNKS={chunks}");
    let _ = writeln!(text, "# Microbatches that go through a chunk before the next one's turn.");
    let _ = writeln!(text, "OPTPIPE_GROUP_SIZE={devices}");
    let _ = writeln!(text, "OPTPIPE_MICROBATCHES={}", problem.microbatches);
    let _ = writeln!(text, "OPTPIPE_ARGS=(");
    let _ = writeln!(text, "  --pipeline-model-parallel-size {devices}");
    let _ = writeln!(text, "  --pipeline-model-parallel-layout '{}'", layout(split));
    if chunks > 1 {
        let _ = writeln!(text, "  --microbatch-group-size-per-virtual-pipeline-stage \"$OPTPIPE_GROUP_SIZE\"");
    }
    if !modules.is_empty() {
        let _ = writeln!(text, "  --fine-grained-activation-offloading --offload-modules {}", modules.join(" "));
    }
    let _ = writeln!(text, ")");
    let _ = writeln!(text, "# Give --global-batch-size as OPTPIPE_MICROBATCHES times --micro-batch-size times the");
    let _ = writeln!(text, "# data-parallel size.");
    Ok(text)
}

/// `Ett|ttt|tL`: embedding, transformer layers, loss, a bar between stages.
pub fn layout(split: &[usize]) -> String {
    let last = split.len().saturating_sub(1);
    let stage = |(i, &blocks): (usize, &usize)| {
        let (first, end) = (if i == 0 { "E" } else { "" }, if i == last { "L" } else { "" });
        format!("{first}{}{end}", "t".repeat(blocks))
    };
    split.iter().enumerate().map(stage).collect::<Vec<_>>().join("|")
}

/// The modules whose share of a layer is nearest to what is wanted.
fn nearest(share: f64) -> Vec<&'static str> {
    let subsets = (0_usize..1 << MODULES.len()).map(|bits| {
        let chosen = MODULES.iter().enumerate().filter(move |(i, _)| (bits >> i) & 1 == 1).map(|(_, module)| *module);
        let reached: f64 = chosen.clone().map(|(_, bytes)| bytes / LAYER).sum();
        ((reached - share).abs(), chosen.map(|(name, _)| name).collect::<Vec<_>>())
    });
    subsets.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, names)| names).unwrap_or_default()
}
