//! RMSNorm (Zhang and Sennrich, 2019) and LayerNorm (Ba, Kiros and Hinton, 2016).

use crate::cuda::ops::norm::Norm;

/// Mean (0 for RMSNorm) and one over the root mean square (LayerNorm: standard deviation) of each row of `width`
/// numbers.
pub fn statistics(norm: Norm, x: &[f64], width: usize, epsilon: f64) -> Vec<(f64, f64)> {
    let of = |row: &[f64]| {
        let mean = match norm {
            Norm::Rms => 0.0,
            Norm::Layer => row.iter().sum::<f64>() / width as f64,
        };
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        (mean, (square + epsilon).sqrt().recip())
    };
    x.chunks_exact(width).map(of).collect()
}

/// The rows normed by their statistics, scaled by `weight` and shifted by `bias`.
pub fn apply(x: &[f64], statistics: &[(f64, f64)], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let width = weight.len();
    let shift = |i: usize| bias.map_or(0.0, |bias| bias[i]);
    let rows = x.chunks_exact(width).zip(statistics);
    rows.flat_map(|(row, (mean, scale))| {
        row.iter().enumerate().map(move |(i, x)| (x - mean) * scale * weight[i] + shift(i))
    })
    .collect()
}

/// The gradient by the input, `residual` added.
pub fn backward_input(
    norm: Norm,
    x: &[f64],
    statistics: &[(f64, f64)],
    weight: &[f64],
    dy: &[f64],
    residual: Option<&[f64]>,
) -> Vec<f64> {
    let width = weight.len();
    let mut dx = Vec::with_capacity(x.len());
    for ((row, dy), (mean, scale)) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(statistics) {
        let normed: Vec<f64> = row.iter().map(|x| (x - mean) * scale).collect();
        let scaled: Vec<f64> = dy.iter().zip(weight).map(|(dy, w)| dy * w).collect();
        let along = scaled.iter().zip(&normed).map(|(g, n)| g * n).sum::<f64>() / width as f64;
        let ones = match norm {
            Norm::Rms => 0.0,
            Norm::Layer => scaled.iter().sum::<f64>() / width as f64,
        };
        dx.extend(scaled.iter().zip(&normed).map(|(g, n)| scale * (g - ones - n * along)));
    }
    if let Some(residual) = residual {
        dx.iter_mut().zip(residual).for_each(|(dx, r)| *dx += r);
    }
    dx
}

/// The gradients by weight and bias.
pub fn backward_weight(x: &[f64], statistics: &[(f64, f64)], dy: &[f64], width: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut dweight, mut dbias) = (vec![0.0; width], vec![0.0; width]);
    for ((row, dy), (mean, scale)) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(statistics) {
        for i in 0..width {
            dweight[i] += dy[i] * (row[i] - mean) * scale;
            dbias[i] += dy[i];
        }
    }
    (dweight, dbias)
}
