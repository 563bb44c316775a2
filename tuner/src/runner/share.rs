//! What the threads of a run share, set up from its plan.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use candle_core::DType;
use optpipe_configs::job::Precision;
use optpipe_configs::split;
use optpipe_kernels::budget::Budget;
use optpipe_profiler::model::{BuildOptions, layer_count};

use super::RunPlan;
use super::board::Board;
use super::error::RunError;
use super::ledger::Ledger;
use super::pipeline::GRACE;
use super::program::Program;
use super::worker::Shared;

fn wrong<T>(field: &'static str, message: String) -> Result<T, RunError> {
    Err(RunError::Plan { field, message })
}

/// The layers of each stage.
///
/// # Errors
/// [`RunError::Plan`] where the layer split fits neither model nor problem, or the model not the batch.
pub(super) fn layers(plan: &RunPlan) -> Result<Vec<Range<usize>>, RunError> {
    let stages = plan.problem.stages();
    let blocks: usize = plan.layer_split.iter().sum();
    if plan.layer_split.len() != stages || blocks != plan.model.layers {
        return wrong(
            "layer_split",
            format!(
                "expected {stages} stages with the {} blocks of {} in all, found {:?}",
                plan.model.layers, plan.model.name, plan.layer_split
            ),
        );
    }
    let layers = split::layer_ranges(plan.layer_split);
    if layers.last().map(|range| range.end) != Some(layer_count(plan.model)) {
        return wrong("layer_split", format!("expected {} layers in all, found {layers:?}", layer_count(plan.model)));
    }
    if let Some(stage) = layers.iter().position(|range| range.is_empty()) {
        return wrong("layer_split", format!("stage {stage} holds no layer"));
    }
    if plan.microbatch_size == 0 || plan.sequence_length == 0 {
        return wrong("microbatch_size", "expected at least one sequence of at least one token".to_owned());
    }
    if plan.sequence_length > plan.model.max_positions {
        return wrong(
            "sequence_length",
            format!(
                "expected at most the model's {} positions, found {}",
                plan.model.max_positions, plan.sequence_length
            ),
        );
    }
    Ok(layers)
}

/// How the layers on one of the backend's devices are built.
///
/// # Errors
/// [`RunError::Plan`]: the backend has no such device.
pub(super) fn build_options(plan: &RunPlan, place: usize) -> Result<BuildOptions, RunError> {
    let dtype = match plan.precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    match plan.backend.device(place) {
        Ok(device) => Ok(BuildOptions { dtype, seed: plan.seed, device: device.clone() }),
        Err(e) => wrong("backend", e.to_string()),
    }
}

/// Checks that the parts of the plan belong together and sets up what the threads share. `place` is the
/// backend's device of each device of the problem.
pub(super) fn share(plan: &RunPlan, program: Program, place: Vec<usize>) -> Result<Shared, RunError> {
    let problem = plan.problem;
    let devices = problem.devices;
    let layers = layers(plan)?;
    let needed = place.iter().max().map_or(0, |last| last + 1);
    if plan.backend.devices().len() < needed {
        let found = plan.backend.devices().len();
        return wrong("backend", format!("expected {needed} devices, found {found}"));
    }
    let workspace = match plan.workspace {
        Some(list) if list.len() == devices => list.to_vec(),
        Some(list) => return wrong("workspace", format!("expected one entry a device, found {}", list.len())),
        None => vec![0; devices],
    };
    let build = place.iter().map(|&index| build_options(plan, index)).collect::<Result<_, _>>()?;
    let mut budgets = Vec::with_capacity(devices);
    let mut fixed = Vec::with_capacity(devices);
    for device in 0..devices {
        let bytes = |list: &[i64]| u64::try_from(list[device]).unwrap_or(0);
        let capacity = plan.enforce_capacity.then(|| bytes(&problem.bytes.capacity));
        // The board finds every deadlock of this run, also between a device and another's copies; the
        // budget's own patience is there for a defect of the board.
        let budget = Budget::with_patience(device, capacity, plan.stall_timeout.saturating_add(GRACE));
        match budget.reserve_fixed(bytes(&problem.bytes.r#static)) {
            Ok(reservation) => fixed.push(reservation),
            Err(e) => return wrong("problem.bytes.static", e.to_string()),
        }
        budgets.push(budget);
    }
    let pairs = program.pairs();
    Ok(Shared {
        problem: problem.clone(),
        model: plan.model.clone(),
        layers,
        build,
        optimizer: plan.optimizer,
        enforce_capacity: plan.enforce_capacity,
        workspace,
        backend: Arc::clone(&plan.backend),
        place,
        board: Board::new(program, budgets),
        fixed,
        ledgers: (0..devices).map(|_| Ledger::new(0)).collect(),
        clock: Instant::now(),
        outputs: (0..pairs).map(|_| Mutex::new(None)).collect(),
        gradients: (0..pairs).map(|_| Mutex::new(None)).collect(),
        parked: (0..pairs).map(|_| Mutex::default()).collect(),
        tied: [Mutex::new(None), Mutex::new(None)],
    })
}
