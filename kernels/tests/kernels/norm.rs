//! RMSNorm and LayerNorm.

use crate::executor::run;
use crate::numbers::{FORMATS, Operand, Random};
use optpipe_kernels::cuda::launch::Format;
use optpipe_kernels::cuda::ops::norm::{Apply, BackwardInput, BackwardWeight, Forward, Norm, SumShares, shares};
use optpipe_kernels::reference::norm as reference;

const EPSILON: f64 = 1e-5;

/// Rows and width: one number, less than a warp, no whole vectors, several vectors a thread, several tiles of
/// columns and shares of rows, more vectors than threads keep.
const SHAPES: [(usize, usize); 8] = [(1, 1), (3, 24), (5, 37), (2, 264), (4, 1031), (3, 4096), (75, 300), (2, 20_480)];

/// A case's numbers, rounded as the operands are.
struct Case {
    norm: Norm,
    format: Format,
    rows: usize,
    width: usize,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    dy: Vec<f64>,
    statistics: Vec<(f64, f64)>,
    /// Whether operands begin at addresses that vectors cannot be loaded from.
    shifted: bool,
}

impl Case {
    fn operand(&self, values: &[f64]) -> Operand {
        let operand = Operand::of(values, self.format);
        if self.shifted { operand.shifted() } else { operand }
    }

    fn bias(&self) -> Option<Operand> {
        (self.norm == Norm::Layer).then(|| self.operand(&self.bias))
    }

    fn saved(&self) -> Vec<f64> {
        let of = |&(mean, scale): &(f64, f64)| if self.norm == Norm::Layer { vec![mean, scale] } else { vec![scale] };
        self.statistics.iter().flat_map(of).collect()
    }
}

/// Every norm, format, shape and alignment, and some random shapes.
fn cases(seed: u64) -> impl Iterator<Item = Case> {
    let mut random = Random(seed);
    let mut shapes = SHAPES.to_vec();
    shapes.extend((0..4).map(|_| (1 + random.bits() as usize % 50, 1 + random.bits() as usize % 600)));
    let mut cases = Vec::new();
    for (rows, width) in shapes {
        for (norm, format, shifted) in [Norm::Rms, Norm::Layer]
            .into_iter()
            .flat_map(|norm| FORMATS.map(|format| (norm, format)))
            .flat_map(|(norm, format)| [false, true].map(|shifted| (norm, format, shifted)))
        {
            // A mean well off zero, which a variance by the sum of squares would not survive.
            let mean = if norm == Norm::Layer { 20.0 } else { 0.5 };
            let x = random.normal(rows * width, mean, 2.0, format);
            let statistics = reference::statistics(norm, &x, width, EPSILON);
            let weight = random.normal(width, 1.0, 0.3, format);
            let bias = random.normal(width, 0.0, 1.0, format);
            let dy = random.normal(rows * width, 0.0, 1.0, format);
            cases.push(Case { norm, format, rows, width, x, weight, bias, dy, statistics, shifted });
        }
    }
    cases.into_iter()
}

#[test]
fn forward_and_apply() {
    for case in cases(1) {
        let (rows, width, norm) = (case.rows, case.width, case.norm);
        let (x, weight, bias) = (case.operand(&case.x), case.operand(&case.weight), case.bias());
        let (x, weight, bias) = (x.input(), weight.input(), bias.as_ref().map(Operand::input));
        let mut y = case.operand(&vec![f64::NAN; rows * width]);
        let mut statistics = Operand::unwritten(rows * norm.statistics(), Format::F32);
        run(Forward {
            norm,
            x: &x,
            weight: &weight,
            bias: bias.as_ref(),
            y: &mut y.output(),
            statistics: &mut statistics.output(),
            rows,
            width,
            epsilon: EPSILON as f32,
        }
        .launch());
        let shift = (norm == Norm::Layer).then_some(&case.bias[..]);
        let expected = reference::apply(&case.x, &case.statistics, &case.weight, shift);
        // A row of one number has the variance 0, whose root of epsilon multiplies the error of the mean.
        let tolerance = if width == 1 { 2e-3 } else { 4e-6 };
        y.check("y", &expected, tolerance, 1.0);
        statistics.check("statistics", &case.saved(), 2e-6, 0.0);

        let mut again = case.operand(&vec![f64::NAN; rows * width]);
        run(Apply {
            norm,
            x: &x,
            weight: &weight,
            bias: bias.as_ref(),
            statistics: &statistics.input(),
            y: &mut again.output(),
            rows,
            width,
        }
        .launch());
        assert_eq!(again.values(), y.values());
    }
}

#[test]
fn backward_input() {
    for (i, case) in cases(2).enumerate() {
        let (rows, width, norm) = (case.rows, case.width, case.norm);
        let residual = (i % 3 != 0).then_some(&case.x[..]);
        let statistics = Operand::of(&case.saved(), Format::F32);
        let operands = [&case.x, &case.weight, &case.dy].map(|values| case.operand(values));
        let [x, weight, dy] = [0, 1, 2].map(|i| operands[i].input());
        let added = residual.map(|values| case.operand(values));
        let added = added.as_ref().map(Operand::input);
        let mut dx = case.operand(&vec![f64::NAN; rows * width]);
        run(BackwardInput {
            norm,
            x: &x,
            weight: &weight,
            statistics: &statistics.input(),
            dy: &dy,
            residual: added.as_ref(),
            dx: &mut dx.output(),
            rows,
            width,
        }
        .launch());
        let expected = reference::backward_input(norm, &case.x, &case.statistics, &case.weight, &case.dy, residual);
        // The terms that cancel have the size of the statistic that multiplies them.
        let size = case.statistics.iter().map(|(_, scale)| *scale).fold(0.5, f64::max);
        dx.check("dx", &expected, 1e-5, 5.0 * size);
    }
}

#[test]
fn backward_weight() {
    for case in cases(3) {
        let (rows, width, norm) = (case.rows, case.width, case.norm);
        let statistics = Operand::of(&case.saved(), Format::F32);
        let (x, dy) = (case.operand(&case.x), case.operand(&case.dy));
        // As many as on a device, and more than there are rows.
        let more = (rows * width < 5000).then_some(rows + 1);
        for shares in std::iter::once(shares(rows, width, case.format)).chain(more) {
            let mut weight_shares = Operand::unwritten(shares * width, Format::F32);
            let mut bias_shares = Operand::unwritten(shares * width, Format::F32);
            let mut bias = (norm == Norm::Layer).then(|| bias_shares.output());
            run(BackwardWeight {
                norm,
                x: &x.input(),
                statistics: &statistics.input(),
                dy: &dy.input(),
                weight_shares: &mut weight_shares.output(),
                bias_shares: bias.as_mut(),
                shares,
                rows,
                width,
            }
            .launch());
            drop(bias);
            let (dweight, dbias) = reference::backward_weight(&case.x, &case.statistics, &case.dy, width);
            let size = (rows as f64).sqrt() * if width == 1 { 600.0 } else { 5.0 };
            let mut checked = vec![("dweight", &weight_shares, &dweight)];
            if norm == Norm::Layer {
                checked.push(("dbias", &bias_shares, &dbias));
            }
            for (what, partial, expected) in checked {
                let mut sum = Operand::unwritten(width, case.format);
                run(SumShares { shares_of: &partial.input(), sum: &mut sum.output(), shares, width }.launch());
                sum.check(what, expected, 2e-6, size);
            }
        }
    }
}

#[test]
fn wrong_operands_are_refused() {
    let (x, narrow, mut y) =
        (Operand::of(&[1.0; 6], Format::F32), Operand::of(&[1.0; 3], Format::Bf16), Operand::unwritten(6, Format::F32));
    let (weight, short) = (Operand::of(&[1.0; 3], Format::F32), Operand::of(&[1.0; 2], Format::F32));
    let statistics = Operand::of(&[1.0; 2], Format::F32);
    let mut error = |weight: &Operand, bias: Option<&Operand>, rows: usize| {
        let bias = bias.map(Operand::input);
        Apply {
            norm: Norm::Rms,
            x: &x.input(),
            weight: &weight.input(),
            bias: bias.as_ref(),
            statistics: &statistics.input(),
            y: &mut y.output(),
            rows,
            width: 3,
        }
        .launch()
        .map(|_| ())
        .map_err(|error| error.to_string())
    };
    assert_eq!(error(&weight, None, 2), Ok(()));
    assert_eq!(error(&short, None, 2).unwrap_err(), "rms_norm_apply: `weight` has 2 elements, expected 3");
    assert_eq!(error(&narrow, None, 2).unwrap_err(), "rms_norm_apply: `weight` is in bf16, expected f32");
    assert_eq!(error(&weight, None, 3).unwrap_err(), "rms_norm_apply: `x` has 6 elements, expected 9");
    assert_eq!(error(&weight, Some(&weight), 2).unwrap_err(), "rms_norm_apply: RMSNorm has no bias");
    assert_eq!(error(&weight, None, 0).unwrap_err(), "rms_norm_apply: 0 rows of 3 numbers");
}
