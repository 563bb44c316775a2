//! See [`super::super`] for what each function gives.

use super::{DType, Real, Result, Tensor, Values, bail, by_type, sum, sum_with, tensor, vectorized, zeros};
use optpipe_configs::model::Norm as Kind;

/// Numbers that [`statistics`] gives a row.
fn by_row(kind: Kind) -> usize {
    match kind {
        Kind::Rms => 1,
        Kind::Layer => 2,
    }
}

/// Mean and one over the deviation from a row's statistics.
#[inline(always)]
fn of_row<T: Real>(kind: Kind, statistics: &[T]) -> (T, T) {
    match kind {
        Kind::Rms => (T::from_f64(0.0), statistics[0]),
        Kind::Layer => (statistics[0], statistics[1]),
    }
}

pub(in super::super) fn statistics(kind: Kind, x: &Tensor, epsilon: f64) -> Result<Tensor> {
    fn of<T: Real>(kind: Kind, x: &Tensor, epsilon: f64) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let values = Values::<T>::of(x)?;
        let x = values.slice()?;
        let (epsilon, part) = (T::from_f64(epsilon), T::from_f64(1.0 / width as f64));
        let mut statistics = zeros::<T>(rows * by_row(kind));
        vectorized(|| {
            for (x, statistics) in x.chunks_exact(width).zip(statistics.chunks_exact_mut(by_row(kind))) {
                let mean = match kind {
                    Kind::Rms => T::from_f64(0.0),
                    Kind::Layer => sum(x) * part,
                };
                let variance = sum_with(x, x, |x, _| (x - mean) * (x - mean)) * part;
                let inverse = T::from_f64(1.0) / (variance + epsilon).sqrt();
                match kind {
                    Kind::Rms => statistics[0] = inverse,
                    Kind::Layer => statistics.copy_from_slice(&[mean, inverse]),
                }
            }
        });
        tensor(statistics, (rows, by_row(kind)))
    }
    by_type!(x, of(kind, x, epsilon))
}

pub(in super::super) fn apply(
    kind: Kind,
    x: &Tensor,
    statistics: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    fn of<T: Real>(
        kind: Kind,
        x: &Tensor,
        statistics: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let shape = x.dims2()?;
        let (values, statistics, weight) =
            (Values::<T>::of(x)?, Values::<T>::of(statistics)?, Values::<T>::of(weight)?);
        let bias = bias.map(Values::<T>::of).transpose()?;
        let (x, statistics, weight) = (values.slice()?, statistics.slice()?, weight.slice()?);
        let bias = bias.as_ref().map(Values::slice).transpose()?;
        let mut y = zeros::<T>(x.len());
        vectorized(|| {
            let row = x.chunks_exact(shape.1).zip(y.chunks_exact_mut(shape.1));
            for ((x, y), statistics) in row.zip(statistics.chunks_exact(by_row(kind))) {
                let (mean, inverse) = of_row(kind, statistics);
                for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
                    *y = (x - mean) * inverse * weight;
                }
                if let Some(bias) = bias {
                    for (y, &bias) in y.iter_mut().zip(bias) {
                        *y += bias;
                    }
                }
            }
        });
        tensor(y, shape)
    }
    by_type!(x, of(kind, x, statistics, weight, bias))
}

pub(in super::super) fn backward(
    kind: Kind,
    x: &Tensor,
    statistics: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    residual: Option<&Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    fn of<T: Real>(
        kind: Kind,
        x: &Tensor,
        statistics: &Tensor,
        weight: &Tensor,
        dy: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let shape = x.dims2()?;
        let width = shape.1;
        let (x, statistics) = (Values::<T>::of(x)?, Values::<T>::of(statistics)?);
        let (weight, dy) = (Values::<T>::of(weight)?, Values::<T>::of(dy)?);
        let residual = residual.map(Values::<T>::of).transpose()?;
        let (x, statistics, weight, dy) = (x.slice()?, statistics.slice()?, weight.slice()?, dy.slice()?);
        let residual = residual.as_ref().map(Values::slice).transpose()?;
        let mut dx = residual.map_or_else(|| zeros::<T>(x.len()), <[T]>::to_vec);
        let (mut dweight, mut dbias) = (zeros::<T>(width), zeros::<T>(width));
        let (mut normed, mut dnormed) = (zeros::<T>(width), zeros::<T>(width));
        let part = T::from_f64(1.0 / width as f64);
        vectorized(|| {
            let row = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
            for (((x, dy), dx), statistics) in row.zip(statistics.chunks_exact(by_row(kind))) {
                let (mean, inverse) = of_row(kind, statistics);
                let parameters = weight.iter().zip(&mut dweight);
                let made = normed.iter_mut().zip(&mut dnormed);
                for (((&x, &dy), (&weight, dweight)), (normed, dnormed)) in x.iter().zip(dy).zip(parameters).zip(made) {
                    *normed = (x - mean) * inverse;
                    *dnormed = dy * weight;
                    *dweight += dy * *normed;
                }
                let along = sum_with(&normed, &dnormed, |a, b| a * b) * part;
                let shift = match kind {
                    Kind::Rms => T::from_f64(0.0),
                    Kind::Layer => {
                        for (dbias, &dy) in dbias.iter_mut().zip(dy) {
                            *dbias += dy;
                        }
                        sum(&dnormed) * part
                    }
                };
                for ((dx, &normed), &dnormed) in dx.iter_mut().zip(&normed).zip(&dnormed) {
                    *dx += (dnormed - shift - normed * along) * inverse;
                }
            }
        });
        let mut parameters = vec![tensor(dweight, width)?];
        if kind == Kind::Layer {
            parameters.push(tensor(dbias, width)?);
        }
        Ok((tensor(dx, shape)?, parameters))
    }
    by_type!(x, of(kind, x, statistics, weight, dy, residual))
}
