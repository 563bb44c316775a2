//! The rotary position embedding of tensors.

use candle_core::{Result, Tensor};

use super::{Place, held};
use crate::cuda::ops::rotary::{Direction, Rope};

/// Turns the pairs of each head of `x` `[tokens, heads * width]`, tokens of sequences one after another, by the
/// angles of their positions: `cosines` and `sines` are `[sequence, width / 2]` in f32.
///
/// # Errors
/// Other formats or shapes; what the driver reports.
pub fn rope(x: &Tensor, cosines: &Tensor, sines: &Tensor, direction: Direction) -> Result<Tensor> {
    let place = Place::of(x.device().as_cuda_device()?)?;
    let (tokens, row) = x.dims2()?;
    let (sequence, half) = cosines.dims2()?;
    let width = 2 * half;
    let (x_held, cosines_held, sines_held) = (held(x)?, held(cosines)?, held(sines)?);
    let (x_view, cosines_view, sines_view) = (x_held.view()?, cosines_held.view()?, sines_held.view()?);
    let input = x_view.input(&place);
    let mut y = place.fresh(x.dtype(), tokens * row)?;
    place.run(
        Rope {
            x: Some(&input),
            y: &mut y.output(&place),
            cosines: &cosines_view.input(&place),
            sines: &sines_view.input(&place),
            tokens,
            sequence,
            heads: row / width.max(1),
            width,
            strides: (row, row),
            direction,
        }
        .launch(),
    )?;
    Ok(place.tensor(y, (tokens, row)))
}
