//! What stages send to each other, recorded from one microbatch that passes through the model without a
//! pipeline.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use optpipe_configs::job::Optimizer;
use optpipe_kernels::arena::HostTensors;
use optpipe_kernels::copy::CopyError;
use optpipe_profiler::model::BuildOptions;

use super::super::error::{RunError, Worker};
use super::super::pipeline::Supply;
use super::super::stage::{Stage, scalar};
use super::super::{RunPlan, data, share};

/// The tensors of one microbatch between the stages, on the host.
pub(super) struct Boundary {
    /// By stage: its input; none for the first.
    inputs: Vec<Option<HostTensors>>,
    /// By stage: the gradient by its output; none for the last.
    gradients: Vec<Option<HostTensors>>,
}

impl Boundary {
    /// Runs forward and backward of the first microbatch, one stage at a time on the backend's first device:
    /// stages go forward with the input that the stage before left, and backward with the gradient that the
    /// stage behind left.
    ///
    /// # Errors
    /// [`RunError::Plan`], [`RunError::Cancelled`], and what building, computing and copying reports.
    pub(super) fn record(plan: &RunPlan, cancel: &AtomicBool) -> Result<Boundary, RunError> {
        let layers = share::layers(plan)?;
        let options = share::build_options(plan, 0)?;
        let stages = layers.len();
        let mut boundary =
            Boundary { inputs: (0..stages).map(|_| None).collect(), gradients: (0..stages).map(|_| None).collect() };
        let shape = (plan.microbatch_size, plan.sequence_length);
        let device: &Device = &options.device;
        let failed = |stage: usize| {
            let worker = Worker::Device(plan.problem.placement[stage]);
            move |e: CopyError| RunError::Op { worker, op: None, message: e.to_string() }
        };
        let tokens =
            data::microbatch(plan.seed, 0, 0, shape, plan.model.vocabulary, device).map_err(|e| failed(0)(e.into()))?;
        // Neither gradients of weights nor states of an optimizer are needed; the latter are large.
        let build = |stage: usize| Stage::build(plan.model, layers[stage].clone(), &options, Optimizer::Sgd);
        let backend = &*plan.backend;
        let go_on = || if cancel.load(Ordering::Relaxed) { Err(RunError::Cancelled) } else { Ok(()) };
        for stage in 0..stages.saturating_sub(1) {
            go_on()?;
            let output = boundary.input(plan, stage, &options).and_then(|input| {
                let (output, _) = build(stage)?.forward(input, &tokens)?;
                backend.offload(&[output])
            });
            boundary.inputs[stage + 1] = Some(output.map_err(failed(stage))?);
        }
        for stage in (1..stages).rev() {
            go_on()?;
            let by_input = boundary.input(plan, stage, &options).and_then(|input| {
                let gradient = match &boundary.gradients[stage] {
                    Some(gradient) => reload(plan, gradient)?,
                    None => scalar(1.0 / plan.problem.microbatches as f64, &options)?,
                };
                let built = build(stage)?;
                let (_, saved) = built.forward(input, &tokens)?;
                let (by_input, _) = built.backward_input(saved, gradient, &tokens)?;
                by_input.map(|by_input| backend.offload(&[by_input])).transpose()
            });
            boundary.gradients[stage - 1] = by_input.map_err(failed(stage))?;
        }
        Ok(boundary)
    }

    fn input(&self, plan: &RunPlan, stage: usize, options: &BuildOptions) -> Result<candle_core::Tensor, CopyError> {
        match &self.inputs[stage] {
            Some(input) => reload(plan, input),
            None => Ok(scalar(0.0, options)?),
        }
    }

    /// What other devices send to this one, on the backend's first device.
    pub(super) fn supplies(&self, plan: &RunPlan, device: usize) -> Result<Vec<Supply>, RunError> {
        let failed = |e: CopyError| RunError::Op { worker: Worker::Device(device), op: None, message: e.to_string() };
        let placement = &plan.problem.placement;
        let mut list = Vec::new();
        for stage in plan.problem.stages_of(device) {
            if let (Some(input), true) = (&self.inputs[stage], stage > 0 && placement[stage - 1] != device) {
                list.push(Supply::Input(stage, reload(plan, input).map_err(failed)?));
            }
            let from_behind = placement.get(stage + 1).is_some_and(|&behind| behind != device);
            if let (Some(gradient), true) = (&self.gradients[stage], from_behind) {
                list.push(Supply::Gradient(stage, reload(plan, gradient).map_err(failed)?));
            }
        }
        Ok(list)
    }
}

/// The one tensor of a copy, on the backend's first device.
fn reload(plan: &RunPlan, host: &HostTensors) -> Result<candle_core::Tensor, CopyError> {
    let missing = || candle_core::Error::msg("a copy without its tensor").into();
    plan.backend.reload(host, 0)?.pop().ok_or_else(missing)
}
