//! The optimizers' updates, and the sum of gradients over microbatches.
//!
//! Weights in bf16 have f32 master weights, which are updated; the weights are those rounded.

use super::{activation_format, by_element, elements};
use crate::cuda::launch::{Argument, Builder, Format, Input, Launch, LaunchError, Output};

/// Numbers that a thread takes.
const EACH: usize = 4;

/// What one step of AdamW goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decay of the weights.
    pub weight_decay: f64,
    /// From 1.
    pub step: i32,
}

impl AdamWStep {
    /// What weights are multiplied by, and the bias corrections folded into the rate and into the root.
    fn arguments(&self) -> [Argument; 6] {
        let size = self.learning_rate / (1.0 - self.beta1.powi(self.step));
        let root = 1.0 / (1.0 - self.beta2.powi(self.step)).sqrt();
        let keep = 1.0 - self.learning_rate as f32 * self.weight_decay as f32;
        [keep, size as f32, root as f32, self.beta1 as f32, self.beta2 as f32, self.epsilon as f32].map(Argument::F32)
    }
}

/// AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019).
#[derive(Debug)]
pub struct AdamW<'a, 'b> {
    /// `T` `[count]`, updated.
    pub weights: &'a mut Output<'b>,
    /// f32 `[count]`, updated; beside weights in bf16, which must have it.
    pub master: Option<&'a mut Output<'b>>,
    /// f32 `[count]`, the first moment, updated.
    pub first: &'a mut Output<'b>,
    /// f32 `[count]`, the second moment, updated.
    pub second: &'a mut Output<'b>,
    /// f32 `[count]`
    pub gradient: &'a Input<'a>,
    /// Numbers.
    pub count: usize,
    /// What the step goes by.
    pub step: AdamWStep,
}

impl<'a> AdamW<'a, '_> {
    /// The launch.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let builder = Builder::new("adamw");
        if self.step.step < 1 {
            return Err(builder.shape(format!("step {}: steps are counted from 1", self.step.step)));
        }
        let (builder, format, count) = with_master(builder, self.weights, self.master, self.count)?;
        let builder = builder
            .output("first", self.first, count, Format::F32)?
            .output("second", self.second, count, Format::F32)?
            .input("gradient", self.gradient, count, Format::F32)?;
        by_element(builder, format, count, EACH, &self.step.arguments())
    }
}

/// The weights and, where they are in bf16, their master.
fn with_master<'a>(
    builder: Builder<'a>,
    weights: &'a mut Output<'_>,
    master: Option<&'a mut Output<'_>>,
    count: usize,
) -> Result<(Builder<'a>, Format, usize), LaunchError> {
    let format = activation_format(builder.name(), "weights", weights.format())?;
    let count = elements(&builder, 1, count)?;
    let builder = builder.output("weights", weights, count, format)?;
    match (format, master) {
        (Format::Bf16, Some(master)) => Ok((builder.output("master", master, count, Format::F32)?, format, count)),
        (Format::Bf16, None) => Err(builder.shape("weights in bf16 need master weights".into())),
        (_, None) => Ok((builder, format, count)),
        (_, Some(_)) => Err(builder.shape("master weights are for weights in bf16".into())),
    }
}

/// Stochastic gradient descent without momentum: `weights -= rate * gradient`.
#[derive(Debug)]
pub struct Sgd<'a, 'b> {
    /// `T` `[count]`, updated.
    pub weights: &'a mut Output<'b>,
    /// f32 `[count]`, updated; beside weights in bf16, which must have it.
    pub master: Option<&'a mut Output<'b>>,
    /// f32 `[count]`
    pub gradient: &'a Input<'a>,
    /// Numbers.
    pub count: usize,
    /// Learning rate.
    pub learning_rate: f32,
}

impl<'a> Sgd<'a, '_> {
    /// The launch.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let (builder, format, count) = with_master(Builder::new("sgd"), self.weights, self.master, self.count)?;
        let builder = builder.input("gradient", self.gradient, count, Format::F32)?;
        by_element(builder, format, count, EACH, &[Argument::F32(self.learning_rate)])
    }
}

/// `sum += gradient`, or `sum = gradient`.
#[derive(Debug)]
pub struct Accumulate<'a, 'b> {
    /// f32 `[count]`, updated.
    pub sum: &'a mut Output<'b>,
    /// `T` `[count]`
    pub gradient: &'a Input<'a>,
    /// Numbers.
    pub count: usize,
    /// Whether what was in the sum counts for nothing.
    pub replace: bool,
}

impl<'a> Accumulate<'a, '_> {
    /// The launch.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let name = "accumulate";
        let format = activation_format(name, "gradient", self.gradient.format())?;
        let builder = Builder::new(name);
        let count = elements(&builder, 1, self.count)?;
        let builder =
            builder.output("sum", self.sum, count, Format::F32)?.input("gradient", self.gradient, count, format)?;
        by_element(builder, format, count, EACH, &[Argument::I32(self.replace.into())])
    }
}
