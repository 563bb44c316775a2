//! Causal attention of tensors, laid out as in [`Shape`].

use candle_core::{DType, Result, Tensor};

use super::{Place, held};
use crate::cuda::ops::attention::{BackwardKeys, BackwardQueries, Forward, Saved, Shape};

/// Whether there are kernels for heads of this width.
pub fn takes_heads(head_dim: usize) -> bool {
    matches!(head_dim, 64 | 128)
}

/// The attended values, laid out as the queries, and the log-sum-exp of each row's scores,
/// `[heads, sequence * group]` in f32.
///
/// # Errors
/// Other formats or shapes; what the driver reports.
pub fn attention(queries: &Tensor, keys: &Tensor, values: &Tensor, shape: Shape) -> Result<(Tensor, Tensor)> {
    let place = Place::of(queries.device().as_cuda_device()?)?;
    let (queries_held, keys_held, values_held) = (held(queries)?, held(keys)?, held(values)?);
    let (queries_view, keys_view, values_view) = (queries_held.view()?, keys_held.view()?, values_held.view()?);
    let rows = shape.sequence * shape.group;
    let mut output = place.fresh(queries.dtype(), queries.elem_count())?;
    let mut log_sums = place.fresh(DType::F32, shape.heads * rows)?;
    place.run(
        Forward {
            queries: &queries_view.input(&place),
            keys: &keys_view.input(&place),
            values: &values_view.input(&place),
            output: &mut output.output(&place),
            log_sums: &mut log_sums.output(&place),
            shape,
        }
        .launch(),
    )?;
    Ok((place.tensor(output, queries.shape()), place.tensor(log_sums, (shape.heads, rows))))
}

/// What the gradients of [`attention`] are made from: its operands and log-sum-exps, the gradient by its output,
/// and the row sums of the product of output and gradient, `[heads, sequence * group]` in f32.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// As in [`Shape`].
    pub queries: &'a Tensor,
    /// As in [`Shape`].
    pub keys: &'a Tensor,
    /// As in [`Shape`].
    pub values: &'a Tensor,
    /// By the output.
    pub gradient: &'a Tensor,
    /// Of [`attention`].
    pub log_sums: &'a Tensor,
    /// Row sums.
    pub means: &'a Tensor,
}

/// The gradients by queries, keys and values.
///
/// # Errors
/// As [`attention`].
pub fn attention_backward(of: Backward<'_>, shape: Shape) -> Result<[Tensor; 3]> {
    let Backward { queries, keys, values, gradient, log_sums, means } = of;
    let place = Place::of(queries.device().as_cuda_device()?)?;
    let (queries_held, keys_held, values_held) = (held(queries)?, held(keys)?, held(values)?);
    let (gradient_held, log_sums_held, means_held) = (held(gradient)?, held(log_sums)?, held(means)?);
    let (queries_view, keys_view, values_view) = (queries_held.view()?, keys_held.view()?, values_held.view()?);
    let (gradient_view, log_sums_view, means_view) = (gradient_held.view()?, log_sums_held.view()?, means_held.view()?);
    let mut dqueries = place.fresh(queries.dtype(), queries.elem_count())?;
    let mut dkeys = place.fresh(keys.dtype(), keys.elem_count())?;
    let mut dvalues = place.fresh(values.dtype(), values.elem_count())?;
    {
        let (queries, keys, values) = (queries_view.input(&place), keys_view.input(&place), values_view.input(&place));
        let gradient = gradient_view.input(&place);
        let (log_sums, means) = (log_sums_view.input(&place), means_view.input(&place));
        let saved = Saved {
            queries: &queries,
            keys: &keys,
            values: &values,
            gradient: &gradient,
            log_sums: &log_sums,
            means: &means,
            shape,
        };
        let (mut to_keys, mut to_values) = (dkeys.output(&place), dvalues.output(&place));
        place.run(BackwardKeys { saved, dkeys: &mut to_keys, dvalues: &mut to_values }.launch())?;
        place.run(BackwardQueries { saved, dqueries: &mut dqueries.output(&place) }.launch())?;
    }
    Ok([
        place.tensor(dqueries, queries.shape()),
        place.tensor(dkeys, keys.shape()),
        place.tensor(dvalues, values.shape()),
    ])
}
