//! RMSNorm and LayerNorm.

/// RMSNorm of rows of `weight.len()` numbers: the output, and by row one over the root mean square.
pub fn rms_norm_forward(x: &[f64], weight: &[f64], epsilon: f64) -> (Vec<f64>, Vec<f64>) {
    let width = weight.len();
    let statistics: Vec<f64> = x
        .chunks_exact(width)
        .map(|row| (row.iter().map(|x| x * x).sum::<f64>() / width as f64 + epsilon).sqrt().recip())
        .collect();
    let y = x
        .chunks_exact(width)
        .zip(&statistics)
        .flat_map(|(row, scale)| row.iter().zip(weight).map(move |(x, w)| x * scale * w))
        .collect();
    (y, statistics)
}
