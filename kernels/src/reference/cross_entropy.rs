//! Softmax cross-entropy.

/// The log-sum-exp of each row of `columns` logits.
pub fn log_sums(logits: &[f64], columns: usize) -> Vec<f64> {
    let of = |row: &[f64]| {
        let greatest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        greatest + row.iter().map(|x| (x - greatest).exp()).sum::<f64>().ln()
    };
    logits.chunks_exact(columns).map(of).collect()
}

/// Each row's loss.
pub fn losses(logits: &[f64], targets: &[usize]) -> Vec<f64> {
    let columns = logits.len() / targets.len();
    let sums = log_sums(logits, columns);
    logits.chunks_exact(columns).zip(targets).zip(sums).map(|((row, &target), sum)| sum - row[target]).collect()
}

/// The gradient by the logits of the sum of the rows' losses times `scale`.
pub fn backward(logits: &[f64], targets: &[usize], scale: f64) -> Vec<f64> {
    let columns = logits.len() / targets.len();
    let sums = log_sums(logits, columns);
    let rows = logits.chunks_exact(columns).zip(targets).zip(sums);
    rows.flat_map(|((row, &target), sum)| {
        row.iter().enumerate().map(move |(i, x)| ((x - sum).exp() - f64::from(u8::from(i == target))) * scale)
    })
    .collect()
}
