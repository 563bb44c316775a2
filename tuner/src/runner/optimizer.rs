//! Parameters with their gradients and optimizer states, updated in place.
//!
//! Everything lies in memory that is allocated once, as the static bytes of a plan say: weights in the
//! run's number format, gradients in f32, f32 master weights beside bf16 ones, two f32 moments for AdamW.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, WithDType, bail};
use optpipe_configs::job::Optimizer;
#[cfg(feature = "cuda")]
use optpipe_kernels::cuda::{
    ops::optimizer::AdamWStep,
    tensors::{OptimizerStates, Step},
};
use optpipe_kernels::gradient::accumulate;

/// AdamW's decay of the first moment.
const BETA1: f64 = 0.9;
/// AdamW's decay of the second moment, as in the training of most language models.
const BETA2: f64 = 0.95;
/// AdamW's epsilon.
const EPSILON: f64 = 1e-8;
/// AdamW's weight decay, of matrices only.
const WEIGHT_DECAY: f64 = 0.1;

/// One step of the optimizer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    pub(super) optimizer: Optimizer,
    pub(super) learning_rate: f64,
    /// From 1.
    pub(super) step: i32,
}

/// f32 numbers beside a parameter.
#[derive(Debug)]
enum States {
    Host(HostStates),
    #[cfg(feature = "cuda")]
    Cuda(OptimizerStates),
}

/// The same in host memory.
#[derive(Debug)]
struct HostStates {
    /// f32 copy of a narrower parameter; empty for f32.
    master: Vec<f32>,
    /// AdamW's moments; empty for SGD.
    first: Vec<f32>,
    second: Vec<f32>,
}

impl States {
    /// Where the parameter is: master weights if it is narrower than f32, moments of 0 if asked for.
    fn new(parameter: &Tensor, moments: bool) -> Result<States> {
        #[cfg(feature = "cuda")]
        if parameter.device().is_cuda() {
            return Ok(States::Cuda(OptimizerStates::new(parameter, moments)?));
        }
        let master = match parameter.dtype() {
            DType::F32 => Vec::new(),
            _ => parameter.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?,
        };
        let moments = if moments { parameter.elem_count() } else { 0 };
        Ok(States::Host(HostStates { master, first: vec![0.0; moments], second: vec![0.0; moments] }))
    }

    /// Those in host memory.
    fn host(&mut self) -> Result<&mut HostStates> {
        match self {
            States::Host(states) => Ok(states),
            #[cfg(feature = "cuda")]
            States::Cuda(_) => bail!("the optimizer's states are on another device than the weights"),
        }
    }

    /// How many numbers they are.
    fn numbers(&self) -> usize {
        match self {
            States::Host(states) => states.master.len() + states.first.len() + states.second.len(),
            #[cfg(feature = "cuda")]
            States::Cuda(states) => states.numbers(),
        }
    }
}

/// A parameter of a layer with what training keeps beside it.
#[derive(Debug)]
pub(super) struct Parameter {
    /// Shares its storage with the layer's: updates in place reach the layer.
    tensor: Tensor,
    gradient: Tensor,
    /// Whether nothing has been added to the gradient in this step.
    fresh: bool,
    states: Mutex<States>,
}

impl Parameter {
    /// A parameter, which fills its storage, with gradient 0 and the optimizer's initial states.
    pub(super) fn new(tensor: Tensor, optimizer: Optimizer) -> Result<Parameter> {
        let gradient = Tensor::zeros(tensor.shape(), DType::F32, tensor.device())?;
        let states = States::new(&tensor, optimizer == Optimizer::Adamw)?;
        Ok(Parameter { tensor, gradient, fresh: true, states: Mutex::new(states) })
    }

    /// Bytes of the weights, the gradient and the optimizer's states.
    pub(super) fn bytes(&self) -> u64 {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers = states.numbers() + self.gradient.elem_count();
        (self.tensor.elem_count() * self.tensor.dtype().size_in_bytes() + numbers * size_of::<f32>()) as u64
    }

    /// Adds a microbatch's gradient; the first of a step replaces the last step's sum.
    pub(super) fn accumulate(&mut self, gradient: &Tensor) -> Result<()> {
        accumulate(&self.gradient, gradient, self.fresh)?;
        self.fresh = false;
        Ok(())
    }

    /// The step's gradient so far, f32; the tensor changes with the next microbatch.
    pub(super) fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    /// Updates the weights by the step's gradient, or by `gradient` where that is another.
    pub(super) fn update(&mut self, update: Update, gradient: Option<&Tensor>) -> Result<()> {
        let decay = if self.tensor.rank() > 1 { WEIGHT_DECAY } else { 0.0 };
        let op = Apply { update, decay, states: &self.states };
        self.tensor.inplace_op2(gradient.unwrap_or(&self.gradient), &op)?;
        self.fresh = true;
        Ok(())
    }
}

/// The elements that a contiguous layout shows.
fn window<'a, T>(values: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("expected a contiguous tensor, found {layout:?}"),
    }
}

fn window_mut<'a, T>(values: &'a mut [T], layout: &Layout) -> Result<&'a mut [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut values[start..end]),
        None => bail!("expected a contiguous tensor, found {layout:?}"),
    }
}

/// The optimizer's update of one parameter.
struct Apply<'a> {
    update: Update,
    decay: f64,
    states: &'a Mutex<States>,
}

impl InplaceOp2 for Apply<'_> {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn cpu_fwd(&self, weights: &mut CpuStorage, layout: &Layout, gradient: &CpuStorage, by: &Layout) -> Result<()> {
        let CpuStorage::F32(gradient) = gradient else { bail!("gradients are summed in f32") };
        let gradient = window(gradient, by)?;
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let HostStates { master, first, second } = states.host()?;
        match weights {
            CpuStorage::F32(weights) => self.apply(window_mut(weights, layout)?, first, second, gradient),
            CpuStorage::BF16(weights) => {
                self.apply(master, first, second, gradient);
                for (narrow, &wide) in window_mut(weights, layout)?.iter_mut().zip(master.iter()) {
                    *narrow = WithDType::from_f64(f64::from(wide));
                }
            }
            _ => bail!("weights in f32 or bf16 were expected"),
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        weights: &mut candle_core::CudaStorage,
        layout: &Layout,
        gradient: &candle_core::CudaStorage,
        by: &Layout,
    ) -> Result<()> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let States::Cuda(states) = &mut *states else {
            bail!("the optimizer's states are on another device than the weights")
        };
        let Update { optimizer, learning_rate, step } = self.update;
        let step = match optimizer {
            Optimizer::Sgd => Step::Sgd(learning_rate as f32),
            Optimizer::Adamw => Step::AdamW(AdamWStep {
                learning_rate,
                beta1: BETA1,
                beta2: BETA2,
                epsilon: EPSILON,
                weight_decay: self.decay,
                step,
            }),
        };
        states.update((weights, layout), (gradient, by), step)
    }
}

impl Apply<'_> {
    /// SGD without momentum, or AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization,
    /// 2019) with the bias correction folded into the two factors.
    fn apply(&self, weights: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
        let rate = self.update.learning_rate as f32;
        match self.update.optimizer {
            Optimizer::Sgd => weights.iter_mut().zip(gradient).for_each(|(w, &g)| *w -= rate * g),
            Optimizer::Adamw => {
                let correct1 = 1.0 - BETA1.powi(self.update.step);
                let correct2 = 1.0 - BETA2.powi(self.update.step);
                let size = (self.update.learning_rate / correct1) as f32;
                let root = (1.0 / correct2.sqrt()) as f32;
                let keep = 1.0 - rate * self.decay as f32;
                let (beta1, beta2, epsilon) = (BETA1 as f32, BETA2 as f32, EPSILON as f32);
                for (((w, m), v), &g) in weights.iter_mut().zip(first).zip(second).zip(gradient) {
                    *m = beta1 * *m + (1.0 - beta1) * g;
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    *w = *w * keep - size * *m / (v.sqrt() * root + epsilon);
                }
            }
        }
    }
}
