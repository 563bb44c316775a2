//! Between a projection's output and the layout that attention works in, with the rotary embedding on
//! the way.

use super::wide;
use candle_core::{D, Result, Tensor};

/// Heads of a query, key or value projection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) microbatch: usize,
    pub(crate) sequence: usize,
    /// Key and value heads.
    pub(crate) kv: usize,
    /// Query heads that share one of them; 1 for keys and values.
    pub(crate) group: usize,
    /// Width of a head.
    pub(crate) width: usize,
}

/// Cosines and sines of the angles by position: two of `[sequence, width / 2]`, in f32, f64 for f64.
pub(crate) type Angles = (Tensor, Tensor);

/// Turns each pair `(x[i], x[i + width / 2])` of `x` `[.., sequence, heads, width]` by its angle, back
/// where `back` says so.
fn rotate(x: &Tensor, (cos, sin): &Angles, back: bool) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let cos = cos.unsqueeze(1)?;
    let sin = if back { sin.neg()? } else { sin.clone() }.unsqueeze(1)?;
    let turned_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let turned_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    Tensor::cat(&[turned_low, turned_high], D::Minus1)
}

/// A projection's output `[microbatch * sequence, kv * group * width]`, rotated if there are angles and
/// scaled, as `[microbatch * kv, sequence * group, width]`: the rows of the queries that share a key head
/// follow one another, so that one matrix product serves the group.
pub(crate) fn split(x: &Tensor, heads: Heads, angles: Option<&Angles>, scale: f64) -> Result<Tensor> {
    let Heads { microbatch, sequence, kv, group, width } = heads;
    let mut y = wide(x)?.reshape((microbatch, sequence, kv * group, width))?;
    if let Some(angles) = angles {
        y = rotate(&y, angles, false)?;
    }
    if scale != 1.0 {
        y = (y * scale)?;
    }
    y.reshape((microbatch, sequence, kv, group * width))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((microbatch * kv, sequence * group, width))?
        .to_dtype(x.dtype())
}

/// The transpose of [`split`] as a linear map: what takes the gradient by its output to the gradient by
/// its input.
pub(crate) fn merge(x: &Tensor, heads: Heads, angles: Option<&Angles>, scale: f64) -> Result<Tensor> {
    let Heads { microbatch, sequence, kv, group, width } = heads;
    let mut y = wide(x)?
        .reshape((microbatch, kv, sequence, group * width))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((microbatch, sequence, kv * group, width))?;
    if let Some(angles) = angles {
        y = rotate(&y, angles, true)?;
    }
    if scale != 1.0 {
        y = (y * scale)?;
    }
    y.reshape((microbatch * sequence, kv * group * width))?.to_dtype(x.dtype())
}
