//! The second half of a block: `x + mlp(norm(x))`.

use super::linear::Linear;
use super::norm::Norm;
use super::ops::{gelu, gelu_backward, silu_mul, silu_mul_backward};
use super::{TensorList, flatten};
use crate::layer::{Layer, Microbatch, Saved, SavedTensor, WeightContext};
use candle_core::{Result, Tensor};

/// The projections into the MLP, with the activation between them and the projection back.
#[derive(Debug)]
pub(crate) enum Into {
    /// `silu(gate(x)) * up(x)` (Shazeer, GLU variants, 2020).
    Gated {
        /// To the gate.
        gate: Linear,
        /// To what it gates.
        up: Linear,
    },
    /// `gelu(up(x))`
    Dense {
        /// To the activation.
        up: Linear,
    },
}

/// An MLP with its norm and its residual connection.
///
/// | kept for | tensors, by token |
/// | --- | --- |
/// | backward_input | input `hidden`, gate and up (dense: up) `intermediate` each, statistics of the norm |
/// | backward_weight | the same and the gradient by the output, `hidden` |
///
/// What the projections' gradients need besides (the activation and the gradients by gate and up,
/// `3 * intermediate` by token) is made again in backward_weight from gate, up and the gradient by the
/// output, for one product more than the three of the gradients. Keeping it would make a block's
/// weight context half as large again as its activation, and a schedule has to reserve that.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) names: Vec<&'static str>,
    pub(crate) norm: Norm,
    pub(crate) into: Into,
    pub(crate) down: Linear,
}

impl Mlp {
    /// The projections into the MLP.
    fn projections(&self) -> Vec<&Linear> {
        match &self.into {
            Into::Gated { gate, up } => vec![gate, up],
            Into::Dense { up } => vec![up],
        }
    }

    /// From what the projections gave to what goes down.
    fn activate(&self, projected: &[Tensor]) -> Result<Tensor> {
        match projected {
            [gate, up] => silu_mul(gate, up),
            [up] => gelu(up),
            _ => candle_core::bail!("an MLP has 1 or 2 projections, got {}", projected.len()),
        }
    }

    /// The gradients by what the projections gave.
    fn activate_backward(&self, projected: &[Tensor], gradient: &Tensor) -> Result<Vec<Tensor>> {
        match projected {
            [gate, up] => {
                let (dgate, dup) = silu_mul_backward(gate, up, gradient)?;
                Ok(vec![dgate, dup])
            }
            [up] => Ok(vec![gelu_backward(up, gradient)?]),
            _ => candle_core::bail!("an MLP has 1 or 2 projections, got {}", projected.len()),
        }
    }
}

impl Layer for Mlp {
    fn parameter_names(&self) -> Vec<&'static str> {
        self.names.clone()
    }

    fn parameters(&self) -> Vec<&Tensor> {
        let projections = self.projections().into_iter().flat_map(Linear::parameters);
        self.norm.parameters().chain(projections).chain(self.down.parameters()).collect()
    }

    fn parameter_slots(&mut self) -> Vec<&mut Tensor> {
        let mut slots: Vec<_> = self.norm.slots().collect();
        match &mut self.into {
            Into::Gated { gate, up } => slots.extend(gate.slots().chain(up.slots())),
            Into::Dense { up } => slots.extend(up.slots()),
        }
        slots.extend(self.down.slots());
        slots
    }

    fn forward(&self, input: &Tensor, _: &Microbatch) -> Result<(Tensor, Saved)> {
        let x = flatten(input)?;
        let (normed, statistics) = self.norm.forward(&x)?;
        let projected = self.projections().iter().map(|linear| linear.forward(&normed)).collect::<Result<Vec<_>>>()?;
        let output = (self.down.forward(&self.activate(&projected)?)? + &x)?.reshape(input.dims())?;
        let large = std::iter::once(x).chain(projected).map(SavedTensor::offloadable);
        Ok((output, Saved(large.chain([SavedTensor::resident(statistics)]).collect())))
    }

    fn backward_input(
        &self,
        saved: Saved,
        gradient: &Tensor,
        _: &Microbatch,
    ) -> Result<(Option<Tensor>, WeightContext)> {
        let projections = self.projections();
        let mut saved = TensorList::of_saved(saved);
        let [x] = saved.take()?;
        let projected = saved.take_some(projections.len())?;
        let [statistics] = saved.take()?;
        saved.finish()?;
        let dy = flatten(gradient)?;
        let dprojected = self.activate_backward(&projected, &self.down.backward_input(&dy)?)?;
        let mut dnormed: Option<Tensor> = None;
        for (linear, gradient) in projections.iter().zip(dprojected) {
            let part = linear.backward_input(&gradient)?;
            dnormed = Some(match dnormed {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        let Some(dnormed) = dnormed else { candle_core::bail!("an MLP has 1 or 2 projections") };
        let (dx, parameters) = self.norm.backward(&x, &statistics, &dnormed, Some(&dy))?;
        let context = [x, statistics, dy].into_iter().chain(projected).chain(parameters).collect();
        Ok((Some(dx.reshape(gradient.dims())?), WeightContext(context)))
    }

    fn backward_weight(&self, context: WeightContext, _: &Microbatch) -> Result<Vec<Tensor>> {
        let projections = self.projections();
        let mut context = TensorList::of_context(context);
        let [x, statistics, dy] = context.take()?;
        let projected = context.take_some(projections.len())?;
        let mut gradients = context.take_some(self.norm.parameters().count())?;
        context.finish()?;
        let normed = self.norm.apply(&x, &statistics)?;
        let dprojected = self.activate_backward(&projected, &self.down.backward_input(&dy)?)?;
        for (linear, gradient) in projections.iter().zip(&dprojected) {
            linear.backward_weight(&normed, gradient, &mut gradients)?;
        }
        drop(dprojected);
        self.down.backward_weight(&self.activate(&projected)?, &dy, &mut gradients)?;
        Ok(gradients)
    }
}
