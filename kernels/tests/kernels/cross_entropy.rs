//! Softmax cross-entropy over blocks of the vocabulary.

use crate::executor::run;
use crate::numbers::{FORMATS, Operand, Random};
use optpipe_kernels::cuda::launch::Format;
use optpipe_kernels::cuda::ops::cross_entropy::{Backward, Forward, Mean};
use optpipe_kernels::reference::cross_entropy as reference;

/// Rows, vocabulary, entries of a block.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (3, 50, 50), (4, 100, 33), (2, 4096, 4096), (3, 5003, 2048), (1100, 9, 4), (2, 40_000, 40_000)];

/// Columns of a row-by-row matrix.
fn block(logits: &[f64], vocabulary: usize, first: usize, columns: usize) -> Vec<f64> {
    logits.chunks_exact(vocabulary).flat_map(|row| row[first..first + columns].to_vec()).collect()
}

#[test]
fn forward_and_backward() {
    let mut random = Random(5);
    for format in FORMATS {
        for (i, (rows, vocabulary, size)) in SHAPES.into_iter().enumerate() {
            // Peaked rows, far from zero.
            let logits = random.normal(rows * vocabulary, -30.0, 6.0, format);
            let targets: Vec<usize> = (0..rows).map(|_| random.bits() as usize % vocabulary).collect();
            let target_operand = Operand::of(&targets.iter().map(|&t| t as f64).collect::<Vec<_>>(), Format::U32);
            let (mut log_sums, mut hits) =
                (Operand::unwritten(rows, Format::F32), Operand::unwritten(rows, Format::F32));
            let blocks: Vec<(usize, usize)> =
                (0..vocabulary).step_by(size).map(|first| (first, size.min(vocabulary - first))).collect();
            let operand = |first, columns| {
                let operand = Operand::of(&block(&logits, vocabulary, first, columns), format);
                if i % 2 == 1 { operand.shifted() } else { operand }
            };
            for &(first, columns) in &blocks {
                run(Forward {
                    logits: &operand(first, columns).input(),
                    targets: &target_operand.input(),
                    log_sums: &mut log_sums.output(),
                    hits: &mut hits.output(),
                    rows,
                    columns,
                    first,
                }
                .launch());
            }
            log_sums.check("log_sums", &reference::log_sums(&logits, vocabulary), 1e-6, 0.0);
            let mut loss = Operand::unwritten(1, Format::F32);
            run(Mean { log_sums: &log_sums.input(), hits: &hits.input(), loss: &mut loss.output(), rows }.launch());
            let losses = reference::losses(&logits, &targets);
            loss.check("loss", &[losses.iter().sum::<f64>() / rows as f64], 1e-6, 30.0);

            let gradient = Operand::of(&[0.75], Format::F32);
            let expected = reference::backward(&logits, &targets, 0.75 / rows as f64);
            for &(first, columns) in &blocks {
                let mut dlogits = operand(first, columns);
                run(Backward {
                    logits: &mut dlogits.output(),
                    targets: &target_operand.input(),
                    log_sums: &log_sums.input(),
                    gradient: &gradient.input(),
                    factor: 1.0 / rows as f32,
                    rows,
                    columns,
                    first,
                }
                .launch());
                // The exponent is the difference of numbers around 30.
                let expected = block(&expected, vocabulary, first, columns);
                dlogits.check("dlogits", &expected, 5e-6, 0.75 / rows as f64);
            }
        }
    }
}

/// The gradient is that of the loss.
#[test]
fn reference_agrees_with_differences() {
    let mut random = Random(6);
    let logits = random.normal(21, 0.0, 2.0, Format::F32);
    let targets = [3, 0, 6];
    let gradient = reference::backward(&logits, &targets, 1.0);
    for i in 0..logits.len() {
        let shifted = |h: f64| {
            let mut logits = logits.clone();
            logits[i] += h;
            reference::losses(&logits, &targets).iter().sum::<f64>()
        };
        assert!((gradient[i] - (shifted(1e-5) - shifted(-1e-5)) / 2e-5).abs() < 1e-8);
    }
}
