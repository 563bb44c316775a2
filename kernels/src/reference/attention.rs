//! Causal attention, with layouts and window as in [`Shape`].

use crate::cuda::ops::attention::Shape;

/// The output, and the log-sum-exp of each row of scores.
pub fn forward(queries: &[f64], keys: &[f64], values: &[f64], shape: Shape) -> (Vec<f64>, Vec<f64>) {
    let width = shape.head_dim;
    let mut output = vec![0.0; queries.len()];
    let mut log_sums = Vec::with_capacity(queries.len() / width);
    for (row, (query, output)) in queries.chunks_exact(width).zip(output.chunks_exact_mut(width)).enumerate() {
        let seen: Vec<usize> = seen(row, shape).collect();
        let scores: Vec<f64> = seen.iter().map(|&key| dot(query, of(keys, key, width))).collect();
        let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = greatest + scores.iter().map(|score| (score - greatest).exp()).sum::<f64>().ln();
        for (&key, score) in seen.iter().zip(&scores) {
            add(output, of(values, key, width), (score - log_sum).exp());
        }
        log_sums.push(log_sum);
    }
    (output, log_sums)
}

/// The gradients by queries, keys and values from the gradient by the output.
pub fn backward(
    queries: &[f64],
    keys: &[f64],
    values: &[f64],
    gradient: &[f64],
    shape: Shape,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let width = shape.head_dim;
    let (output, log_sums) = forward(queries, keys, values, shape);
    let (mut dqueries, mut dkeys, mut dvalues) =
        (vec![0.0; queries.len()], vec![0.0; keys.len()], vec![0.0; values.len()]);
    for (row, log_sum) in log_sums.iter().enumerate() {
        let (query, gradient) = (of(queries, row, width), of(gradient, row, width));
        let mean = dot(of(&output, row, width), gradient);
        for key in seen(row, shape) {
            let probability = (dot(query, of(keys, key, width)) - log_sum).exp();
            let dscore = probability * (dot(gradient, of(values, key, width)) - mean);
            let at = key * width..(key + 1) * width;
            add(&mut dvalues[at.clone()], gradient, probability);
            add(&mut dkeys[at], query, dscore);
            add(&mut dqueries[row * width..(row + 1) * width], of(keys, key, width), dscore);
        }
    }
    (dqueries, dkeys, dvalues)
}

/// The keys, counted through all heads, that a row of the queries sees.
fn seen(row: usize, shape: Shape) -> impl Iterator<Item = usize> {
    let rows = shape.sequence * shape.group;
    let (head, position) = (row / rows, row % rows / shape.group);
    let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
    (first..=position).map(move |key| head * shape.sequence + key)
}

fn of(matrix: &[f64], row: usize, width: usize) -> &[f64] {
    &matrix[row * width..(row + 1) * width]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], x: &[f64], factor: f64) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += x * factor;
    }
}
