//! See [`super::super`] for what each function gives.

use super::super::{Angles, Heads};
use super::{DType, Real, Result, Tensor, Values, bail, by_type, tensor, vectorized, zeros};

/// Which way between the two layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Way {
    /// From a projection's output to the layout of attention, rotating on.
    Split,
    /// Back, rotating back.
    Merge,
}

/// One head of one token, from one layout to the other.
#[inline(always)]
fn one<T: Real>(from: &[T], to: &mut [T], angles: Option<(&[T], &[T])>, way: Way, scale: T) {
    let Some((cos, sin)) = angles else {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = from * scale;
        }
        return;
    };
    let sign = if way == Way::Split { scale } else { -scale };
    let (low, high) = from.split_at(from.len() / 2);
    let (to_low, to_high) = to.split_at_mut(low.len());
    let read = low.iter().zip(high).zip(cos.iter().zip(sin));
    for (((&low, &high), (&cos, &sin)), (to_low, to_high)) in read.zip(to_low.iter_mut().zip(to_high)) {
        *to_low = low * cos * scale - high * sin * sign;
        *to_high = high * cos * scale + low * sin * sign;
    }
}

pub(in super::super) fn rearrange(
    x: &Tensor,
    heads: Heads,
    angles: Option<&Angles>,
    way: Way,
    scale: f64,
) -> Result<Tensor> {
    fn of<T: Real>(x: &Tensor, heads: Heads, angles: Option<&Angles>, way: Way, scale: f64) -> Result<Tensor> {
        let Heads { microbatch, sequence, kv, group, width } = heads;
        let tables = match angles {
            Some((cos, sin)) => Some((Values::<T>::of(cos)?, Values::<T>::of(sin)?)),
            None => None,
        };
        let tables = match &tables {
            Some((cos, sin)) => Some((cos.slice()?, sin.slice()?)),
            None => None,
        };
        let (values, half, chunk, scale) = (Values::<T>::of(x)?, width / 2, group * width, T::from_f64(scale));
        let x = values.slice()?;
        let mut y = zeros::<T>(x.len());
        vectorized(|| {
            for (row, batch, token) in (0..microbatch)
                .flat_map(|batch| (0..sequence).map(move |token| (batch * sequence + token, batch, token)))
            {
                let angles = tables.map(|(cos, sin)| {
                    let at = token * half..(token + 1) * half;
                    (&cos[at.clone()], &sin[at])
                });
                for head in 0..kv {
                    let projected = (row * kv + head) * chunk;
                    let attended = ((batch * kv + head) * sequence + token) * chunk;
                    let (from, to) = match way {
                        Way::Split => (projected, attended),
                        Way::Merge => (attended, projected),
                    };
                    let pairs =
                        x[from..from + chunk].chunks_exact(width).zip(y[to..to + chunk].chunks_exact_mut(width));
                    for (from, to) in pairs {
                        one(from, to, angles, way, scale);
                    }
                }
            }
        });
        match way {
            Way::Split => tensor(y, (microbatch * kv, sequence * group, width)),
            Way::Merge => tensor(y, (microbatch * sequence, kv * chunk)),
        }
    }
    by_type!(x, of(x, heads, angles, way, scale))
}
