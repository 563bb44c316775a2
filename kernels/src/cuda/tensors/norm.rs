//! RMSNorm and LayerNorm of tensors.

use candle_core::{DType, Result, Tensor};

use super::{Fresh, Place, held};
use crate::cuda::ops::norm::{self, Norm};

/// The normed rows of `x` `[rows, width]` and their statistics `[rows, norm.statistics()]` in f32.
///
/// # Errors
/// Other formats or shapes; what the driver reports.
pub fn norm_forward(
    norm: Norm,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f64,
) -> Result<(Tensor, Tensor)> {
    let place = Place::of(x.device().as_cuda_device()?)?;
    let (rows, width) = x.dims2()?;
    let (x_held, weight_held, bias_held) = (held(x)?, held(weight)?, bias.map(held).transpose()?);
    let (x_view, weight_view) = (x_held.view()?, weight_held.view()?);
    let bias_view = bias_held.as_ref().map(super::Held::view).transpose()?;
    let bias = bias_view.as_ref().map(|view| view.input(&place));
    let mut y = place.fresh(x.dtype(), rows * width)?;
    let mut statistics = place.fresh(DType::F32, rows * norm.statistics())?;
    place.run(
        norm::Forward {
            norm,
            x: &x_view.input(&place),
            weight: &weight_view.input(&place),
            bias: bias.as_ref(),
            y: &mut y.output(&place),
            statistics: &mut statistics.output(&place),
            rows,
            width,
            epsilon: epsilon as f32,
        }
        .launch(),
    )?;
    Ok((place.tensor(y, (rows, width)), place.tensor(statistics, (rows, norm.statistics()))))
}

/// The normed rows again, from their statistics.
///
/// # Errors
/// As [`norm_forward`].
pub fn norm_apply(
    norm: Norm,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    statistics: &Tensor,
) -> Result<Tensor> {
    let place = Place::of(x.device().as_cuda_device()?)?;
    let (rows, width) = x.dims2()?;
    let (x_held, weight_held, bias_held) = (held(x)?, held(weight)?, bias.map(held).transpose()?);
    let statistics_held = held(statistics)?;
    let (x_view, weight_view, statistics_view) = (x_held.view()?, weight_held.view()?, statistics_held.view()?);
    let bias_view = bias_held.as_ref().map(super::Held::view).transpose()?;
    let bias = bias_view.as_ref().map(|view| view.input(&place));
    let mut y = place.fresh(x.dtype(), rows * width)?;
    place.run(
        norm::Apply {
            norm,
            x: &x_view.input(&place),
            weight: &weight_view.input(&place),
            bias: bias.as_ref(),
            statistics: &statistics_view.input(&place),
            y: &mut y.output(&place),
            rows,
            width,
        }
        .launch(),
    )?;
    Ok(place.tensor(y, (rows, width)))
}

/// The gradient by `x` from that by the output, `residual` (the gradient past the norm) added.
///
/// # Errors
/// As [`norm_forward`].
pub fn norm_backward_input(
    norm: Norm,
    x: &Tensor,
    weight: &Tensor,
    statistics: &Tensor,
    dy: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let place = Place::of(x.device().as_cuda_device()?)?;
    let (rows, width) = x.dims2()?;
    let (x_held, weight_held, dy_held) = (held(x)?, held(weight)?, held(dy)?);
    let (statistics_held, residual_held) = (held(statistics)?, residual.map(held).transpose()?);
    let (x_view, weight_view, dy_view) = (x_held.view()?, weight_held.view()?, dy_held.view()?);
    let statistics_view = statistics_held.view()?;
    let residual_view = residual_held.as_ref().map(super::Held::view).transpose()?;
    let residual = residual_view.as_ref().map(|view| view.input(&place));
    let mut dx = place.fresh(x.dtype(), rows * width)?;
    place.run(
        norm::BackwardInput {
            norm,
            x: &x_view.input(&place),
            weight: &weight_view.input(&place),
            statistics: &statistics_view.input(&place),
            dy: &dy_view.input(&place),
            residual: residual.as_ref(),
            dx: &mut dx.output(&place),
            rows,
            width,
        }
        .launch(),
    )?;
    Ok(place.tensor(dx, (rows, width)))
}

/// The gradients by weight and, for LayerNorm, bias, in the format of `x`.
///
/// # Errors
/// As [`norm_forward`].
pub fn norm_backward_weight(norm: Norm, x: &Tensor, statistics: &Tensor, dy: &Tensor) -> Result<Vec<Tensor>> {
    let place = Place::of(x.device().as_cuda_device()?)?;
    let (rows, width) = x.dims2()?;
    let (x_held, statistics_held, dy_held) = (held(x)?, held(statistics)?, held(dy)?);
    let (x_view, statistics_view, dy_view) = (x_held.view()?, statistics_held.view()?, dy_held.view()?);
    let x_input = x_view.input(&place);
    let shares = norm::shares(rows, width, x_input.format());
    let mut weight_shares = place.fresh(DType::F32, shares * width)?;
    let mut bias_shares = match norm {
        Norm::Rms => None,
        Norm::Layer => Some(place.fresh(DType::F32, shares * width)?),
    };
    {
        let mut bias = bias_shares.as_mut().map(|shares| shares.output(&place));
        place.run(
            norm::BackwardWeight {
                norm,
                x: &x_input,
                statistics: &statistics_view.input(&place),
                dy: &dy_view.input(&place),
                weight_shares: &mut weight_shares.output(&place),
                bias_shares: bias.as_mut(),
                shares,
                rows,
                width,
            }
            .launch(),
        )?;
    }
    let sum = |parts: Fresh| {
        let mut sum = place.fresh(x.dtype(), width)?;
        let parts = parts.view();
        place.run(
            norm::SumShares { shares_of: &parts.input(&place), sum: &mut sum.output(&place), shares, width }.launch(),
        )?;
        Ok(place.tensor(sum, width))
    };
    std::iter::once(weight_shares).chain(bias_shares).map(sum).collect()
}
