//! SwiGLU and GELU of tensors.

use candle_core::{Result, Tensor};

use super::{Place, held};
use crate::cuda::ops::activation::{GeluBackward, GeluForward, SwiGluBackward, SwiGluForward};

/// `silu(gate) * up`
///
/// # Errors
/// Formats other than f32 and bf16, other lengths; what the driver reports.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let place = Place::of(gate.device().as_cuda_device()?)?;
    let count = gate.elem_count();
    let (gate_held, up_held) = (held(gate)?, held(up)?);
    let (gate_view, up_view) = (gate_held.view()?, up_held.view()?);
    let mut y = place.fresh(gate.dtype(), count)?;
    let (gate_input, up_input) = (gate_view.input(&place), up_view.input(&place));
    place.run(SwiGluForward { gate: &gate_input, up: &up_input, y: &mut y.output(&place), count }.launch())?;
    Ok(place.tensor(y, gate.shape()))
}

/// The gradients by gate and up.
///
/// # Errors
/// As [`swiglu`].
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let place = Place::of(gate.device().as_cuda_device()?)?;
    let count = gate.elem_count();
    let (gate_held, up_held, dy_held) = (held(gate)?, held(up)?, held(dy)?);
    let (gate_view, up_view, dy_view) = (gate_held.view()?, up_held.view()?, dy_held.view()?);
    let (mut dgate, mut dup) = (place.fresh(gate.dtype(), count)?, place.fresh(gate.dtype(), count)?);
    place.run(
        SwiGluBackward {
            gate: &gate_view.input(&place),
            up: &up_view.input(&place),
            dy: &dy_view.input(&place),
            dgate: &mut dgate.output(&place),
            dup: &mut dup.output(&place),
            y: None,
            count,
        }
        .launch(),
    )?;
    Ok((place.tensor(dgate, gate.shape()), place.tensor(dup, gate.shape())))
}

/// GELU in its tanh form.
///
/// # Errors
/// As [`swiglu`].
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let place = Place::of(x.device().as_cuda_device()?)?;
    let count = x.elem_count();
    let storage = held(x)?;
    let view = storage.view()?;
    let mut y = place.fresh(x.dtype(), count)?;
    place.run(GeluForward { x: &view.input(&place), y: &mut y.output(&place), count }.launch())?;
    Ok(place.tensor(y, x.shape()))
}

/// The gradient of [`gelu`] by `x`.
///
/// # Errors
/// As [`swiglu`].
pub fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let place = Place::of(x.device().as_cuda_device()?)?;
    let count = x.elem_count();
    let (x_held, dy_held) = (held(x)?, held(dy)?);
    let (x_view, dy_view) = (x_held.view()?, dy_held.view()?);
    let mut dx = place.fresh(x.dtype(), count)?;
    place.run(
        GeluBackward {
            x: &x_view.input(&place),
            dy: &dy_view.input(&place),
            dx: &mut dx.output(&place),
            y: None,
            count,
        }
        .launch(),
    )?;
    Ok(place.tensor(dx, x.shape()))
}
