//! Causal attention and its gradients.

use crate::executor::run;
use crate::numbers::{FORMATS, Operand, Random};
use optpipe_kernels::cuda::launch::{Format, LaunchError};
use optpipe_kernels::cuda::ops::attention::{BackwardKeys, BackwardQueries, Forward, Mean, Saved, Shape};
use optpipe_kernels::reference::attention as reference;

/// Half the distance of numbers in bf16 around 1: what rounding changes a number by at most.
const ROUNDING: f64 = 1.0 / 256.0;

const fn shape(heads: usize, sequence: usize, group: usize, head_dim: usize, window: Option<usize>) -> Shape {
    Shape { heads, sequence, group, head_dim, window }
}

/// The operands of a shape, as f64 of the format.
struct Numbers {
    shape: Shape,
    format: Format,
    spread: f64,
    queries: Vec<f64>,
    keys: Vec<f64>,
    values: Vec<f64>,
    gradient: Vec<f64>,
}

impl Numbers {
    /// Scores have a deviation of `spread`; what sums in f32 are off by is in proportion to it.
    fn random(random: &mut Random, shape: Shape, format: Format, spread: f64) -> Self {
        let keys = shape.heads * shape.sequence * shape.head_dim;
        let mut of = |count, deviation| random.normal(count, 0.0, deviation, format);
        Self {
            shape,
            format,
            spread,
            queries: of(keys * shape.group, spread / (shape.head_dim as f64).sqrt()),
            keys: of(keys, 1.0),
            values: of(keys, 1.0),
            gradient: of(keys * shape.group, 1.0),
        }
    }

    /// Runs forward and backward: output, log-sum-exps, means, gradients by queries, keys and values.
    fn run(&self) -> [Operand; 6] {
        let &Self { shape, format, .. } = self;
        let [queries, keys, values, gradient] =
            [&self.queries, &self.keys, &self.values, &self.gradient].map(|x| Operand::of(x, format));
        let rows = shape.heads * shape.sequence * shape.group;
        let [mut output, mut dqueries] = [(); 2].map(|()| Operand::unwritten(rows * shape.head_dim, format));
        let [mut dkeys, mut dvalues] = [(); 2].map(|()| Operand::unwritten(self.keys.len(), format));
        let [mut log_sums, mut means] = [(); 2].map(|()| Operand::unwritten(rows, Format::F32));
        let (queries_in, keys_in, values_in, gradient_in) =
            (queries.input(), keys.input(), values.input(), gradient.input());
        run(Forward {
            queries: &queries_in,
            keys: &keys_in,
            values: &values_in,
            output: &mut output.output(),
            log_sums: &mut log_sums.output(),
            shape,
        }
        .launch());
        run(Mean { output: &output.input(), gradient: &gradient_in, means: &mut means.output(), shape }.launch());
        let (log_sums_in, means_in) = (log_sums.input(), means.input());
        let saved = Saved {
            queries: &queries_in,
            keys: &keys_in,
            values: &values_in,
            gradient: &gradient_in,
            log_sums: &log_sums_in,
            means: &means_in,
            shape,
        };
        run(BackwardKeys { saved, dkeys: &mut dkeys.output(), dvalues: &mut dvalues.output() }.launch());
        run(BackwardQueries { saved, dqueries: &mut dqueries.output() }.launch());
        drop((log_sums_in, means_in));
        [output, log_sums, means, dqueries, dkeys, dvalues]
    }

    /// Runs, and compares with the reference.
    fn check(&self) {
        let [output, log_sums, means, dqueries, dkeys, dvalues] = self.run();
        let (expected, expected_log_sums) = reference::forward(&self.queries, &self.keys, &self.values, self.shape);
        let expected_means: Vec<f64> = output
            .values()
            .chunks_exact(self.shape.head_dim)
            .zip(self.gradient.chunks_exact(self.shape.head_dim))
            .map(|(output, gradient)| output.iter().zip(gradient).map(|(x, y)| x * y).sum())
            .collect();
        let name = format!("{:?} {:?}", self.format, self.shape);
        log_sums.check(&format!("{name} log_sums"), &expected_log_sums, 2e-6, 1.0);
        means.check(&format!("{name} means"), &expected_means, 2e-6, largest(&expected_means));
        // Probabilities, which add up to 1, are rounded; the factor is for sums in f32.
        let narrow = self.format == Format::Bf16;
        let tolerance = if narrow { 1.01 * ROUNDING } else { 3e-6 * self.spread };
        output.check(&format!("{name} output"), &expected, tolerance, largest(&self.values));
        // At random the roundings, of probabilities and of the result, come to less than one at its worst.
        self.check_distance(&format!("{name} output"), &output, &expected);
        let (expected_dq, expected_dk, expected_dv) =
            reference::backward(&self.queries, &self.keys, &self.values, &self.gradient, self.shape);
        // Gradients by peaked scores are small differences of `gradient . values` and the means. These are off by the
        // rounding of the output, at random, and so is each gradient by that times queries or keys.
        let products: Vec<f64> = expected.iter().zip(&self.gradient).map(|(x, y)| x * y).collect();
        let size = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mean_size = largest(&products.chunks_exact(self.shape.head_dim).map(size).collect::<Vec<_>>());
        let alone = self.shape.sequence == 1 || self.shape.window == Some(1);
        let peaked = alone || self.spread > 1.0;
        let of_means = |factors: &[f64]| if peaked { mean_size * largest(factors) } else { 0.0 };
        for (what, operand, expected, cancelled) in [
            ("dqueries", dqueries, expected_dq, of_means(&self.keys)),
            ("dkeys", dkeys, expected_dk, of_means(&self.queries)),
            ("dvalues", dvalues, expected_dv, 0.0),
        ] {
            // What is summed is rounded at random, so that its sum is off by less than a rounding of the largest.
            let tolerance = if narrow { ROUNDING } else { 1e-5 * self.spread };
            operand.check(&format!("{name} {what}"), &expected, tolerance, largest(&expected).max(cancelled));
            if cancelled == 0.0 {
                // Roundings of what is summed, of the result, and of the output in the means.
                self.check_distance(&format!("{name} {what}"), &operand, &expected);
            }
        }
    }

    /// The root mean square of the errors, as a share of the numbers', is below the largest that rounding one number to
    /// bf16 makes; in f32 of the size of the sums' roundings.
    #[track_caller]
    fn check_distance(&self, what: &str, operand: &Operand, expected: &[f64]) {
        let squares: f64 = expected.iter().map(|x| x * x).sum();
        let errors: f64 = operand.values().iter().zip(expected).map(|(x, y)| (x - y).powi(2)).sum();
        let allowed = if self.format == Format::Bf16 { ROUNDING } else { 2e-6 * self.spread };
        let distance = (errors / squares).sqrt();
        assert!(distance <= allowed, "{what} is off by {distance:e} of its size");
    }
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |largest, x| largest.max(x.abs()))
}

/// One row, tails of every kind of tile, whole tiles, several tiles of queries a tile of keys and the reverse.
#[test]
fn forward_and_backward() {
    let mut random = Random(11);
    for format in FORMATS {
        for head_dim in [64, 128] {
            for (heads, sequence, group) in [(2, 1, 1), (1, 1, 4), (2, 17, 1), (1, 64, 4), (1, 130, 1), (1, 130, 4)] {
                Numbers::random(&mut random, shape(heads, sequence, group, head_dim, None), format, 1.0).check();
            }
        }
    }
}

#[test]
fn windows() {
    let mut random = Random(12);
    for format in FORMATS {
        for (sequence, group, head_dim, window) in [(70, 3, 64, 1), (150, 1, 128, 20), (90, 4, 64, 70), (33, 2, 64, 99)]
        {
            Numbers::random(&mut random, shape(1, sequence, group, head_dim, Some(window)), format, 1.0).check();
        }
    }
}

/// Scores of hundreds, whose exponentials alone f32 does not hold.
#[test]
fn large_scores() {
    let mut random = Random(13);
    for format in FORMATS {
        Numbers::random(&mut random, shape(1, 140, 2, 64, None), format, 60.0).check();
    }
}

#[test]
fn what_the_kernels_do_not_take() {
    let (queries, keys) = (Operand::unwritten(2 * 8 * 64, Format::Bf16), Operand::unwritten(8 * 64, Format::Bf16));
    let (mut output, mut log_sums) =
        (Operand::unwritten(2 * 8 * 64, Format::Bf16), Operand::unwritten(16, Format::F32));
    let mut refusal = |queries: &Operand, shape| {
        let refused = Forward {
            queries: &queries.input(),
            keys: &keys.input(),
            values: &keys.input(),
            output: &mut output.output(),
            log_sums: &mut log_sums.output(),
            shape,
        }
        .launch()
        .map(|_| ());
        refused.unwrap_err().to_string()
    };
    let takes = shape(1, 8, 2, 64, None);
    let other = Operand::unwritten(2 * 8 * 64, Format::F32);
    let shifted = Operand::unwritten(2 * 8 * 64, Format::Bf16).shifted();
    for (queries, shape, says) in [
        (&queries, Shape { head_dim: 80, ..takes }, "64 or 128"),
        (&queries, Shape { head_dim: 128, ..takes }, "`queries` has 1024 elements, expected 2048"),
        (&queries, Shape { window: Some(0), ..takes }, "a window of no position"),
        (&queries, Shape { sequence: 0, ..takes }, "0 positions"),
        (&queries, Shape { sequence: 1 << 30, ..takes }, "positions"),
        (&queries, Shape { group: 0, ..takes }, "groups of 0"),
        (&shifted, takes, "`queries` does not begin at a multiple of 16 bytes"),
        (&other, takes, "`keys` is in bf16, expected f32"),
    ] {
        let error = refusal(queries, shape);
        assert!(error.contains(says), "{error}, expected {says}");
    }
    let refused: Result<_, LaunchError> = Mean {
        output: &queries.input(),
        gradient: &queries.input(),
        means: &mut Operand::unwritten(15, Format::F32).output(),
        shape: takes,
    }
    .launch()
    .map(|_| ());
    assert!(refused.unwrap_err().to_string().contains("`means` has 15 elements, expected 16"));
}

/// The gradients are those of the output.
#[test]
fn reference_agrees_with_differences() {
    let mut random = Random(14);
    let numbers = Numbers::random(&mut random, shape(2, 5, 2, 3, Some(3)), Format::F32, 1.0);
    let inputs = [&numbers.queries, &numbers.keys, &numbers.values];
    let (dqueries, dkeys, dvalues) =
        reference::backward(inputs[0], inputs[1], inputs[2], &numbers.gradient, numbers.shape);
    for (which, gradient) in [dqueries, dkeys, dvalues].iter().enumerate() {
        for i in 0..gradient.len() {
            let shifted = |h: f64| {
                let mut inputs = inputs.map(Clone::clone);
                inputs[which][i] += h;
                let (output, _) = reference::forward(&inputs[0], &inputs[1], &inputs[2], numbers.shape);
                output.iter().zip(&numbers.gradient).map(|(x, y)| x * y).sum::<f64>()
            };
            let difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            assert!((gradient[i] - difference).abs() < 1e-8, "{} and {difference}", gradient[i]);
        }
    }
}
