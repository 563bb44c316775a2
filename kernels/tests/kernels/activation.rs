//! SwiGLU, GELU and the rotary embedding.

use crate::executor::run;
use crate::numbers::{FORMATS, Operand, Random};
use optpipe_kernels::cuda::launch::Format;
use optpipe_kernels::cuda::ops::activation::{GeluBackward, GeluForward, SwiGluBackward, SwiGluForward};
use optpipe_kernels::cuda::ops::rotary::{Direction, Rope};
use optpipe_kernels::reference::{activation as reference, rotary};

/// One number, no whole vector, whole blocks, some more.
const COUNTS: [usize; 6] = [1, 7, 64, 2048, 4097, 5003];

/// Numbers where activations bend, and some far out, which must neither overflow nor give NaN.
fn numbers(random: &mut Random, count: usize, format: Format) -> Vec<f64> {
    let mut values = random.normal(count, 0.0, 3.0, format);
    for (value, far) in values.iter_mut().zip([0.0, -200.0, 200.0, -88.0, 90.0, -12.0]) {
        *value = far;
    }
    values
}

/// Every format and count, aligned and not, with three operands.
fn cases(seed: u64) -> Vec<(Format, [Vec<f64>; 3], bool)> {
    let mut random = Random(seed);
    let mut cases = Vec::new();
    for format in FORMATS {
        for count in COUNTS {
            for shifted in [false, true] {
                let first = numbers(&mut random, count, format);
                let others = [0, 1].map(|_| random.normal(count, 0.0, 1.0, format));
                let [second, third] = others;
                cases.push((format, [first, second, third], shifted));
            }
        }
    }
    cases
}

fn operands(format: Format, values: &[Vec<f64>; 3], shifted: bool) -> [Operand; 3] {
    // The first alone is shifted: one address that is not aligned must be enough.
    let [first, second, third] = values.each_ref().map(|values| Operand::of(values, format));
    [if shifted { first.shifted() } else { first }, second, third]
}

#[test]
fn swiglu() {
    for (format, values, shifted) in cases(1) {
        let [gate, up, dy] = operands(format, &values, shifted);
        let (gate, up, dy) = (gate.input(), up.input(), dy.input());
        let [g, u, d] = &values;
        let count = g.len();
        let unwritten = || Operand::unwritten(count, format);
        let mut y = unwritten();
        run(SwiGluForward { gate: &gate, up: &up, y: &mut y.output(), count }.launch());
        let expected: Vec<f64> = g.iter().zip(u).map(|(&g, &u)| reference::swiglu(g, u)).collect();
        y.check("y", &expected, 1e-5, 1e-6);

        for with_y in [true, false] {
            let (mut dgate, mut dup, mut again) = (unwritten(), unwritten(), unwritten());
            let mut optional = with_y.then(|| again.output());
            run(SwiGluBackward {
                gate: &gate,
                up: &up,
                dy: &dy,
                dgate: &mut dgate.output(),
                dup: &mut dup.output(),
                y: optional.as_mut(),
                count,
            }
            .launch());
            drop(optional);
            let gradients = g.iter().zip(u).zip(d).map(|((&g, &u), &d)| reference::swiglu_backward(g, u, d));
            let (expected_dgate, expected_dup): (Vec<f64>, Vec<f64>) = gradients.unzip();
            dgate.check("dgate", &expected_dgate, 2e-6, 1.0);
            dup.check("dup", &expected_dup, 1e-5, 1e-6);
            if with_y {
                assert_eq!(again.values(), y.values());
            } else {
                assert!(again.values().iter().all(|value| value.is_nan()));
            }
        }
    }
}

#[test]
fn gelu() {
    for (format, values, shifted) in cases(2) {
        let [x, dy, _] = operands(format, &values, shifted);
        let (x, dy) = (x.input(), dy.input());
        let count = values[0].len();
        let mut y = Operand::unwritten(count, format);
        run(GeluForward { x: &x, y: &mut y.output(), count }.launch());
        let expected: Vec<f64> = values[0].iter().map(|&x| reference::gelu(x)).collect();
        y.check("y", &expected, 1e-6, 1.0);

        let (mut dx, mut again) = (Operand::unwritten(count, format), Operand::unwritten(count, format));
        run(GeluBackward { x: &x, dy: &dy, dx: &mut dx.output(), y: Some(&mut again.output()), count }.launch());
        let gradients = values[0].iter().zip(&values[1]).map(|(&x, &dy)| reference::gelu_backward(x, dy));
        dx.check("dx", &gradients.collect::<Vec<_>>(), 2e-6, 1.0);
        assert_eq!(again.values(), y.values());
    }
}

/// Each kind of difference between two numbers of the reference is small: the references are right, too.
#[test]
fn references_agree_with_differences() {
    let mut random = Random(3);
    let h = 1e-5;
    for _ in 0..200 {
        let [x, u, d] = [0; 3].map(|_| 8.0 * random.unit() - 4.0);
        let slope = |f: &dyn Fn(f64) -> f64, at: f64| d * (f(at + h) - f(at - h)) / (2.0 * h);
        let (dgate, dup) = reference::swiglu_backward(x, u, d);
        assert!((dgate - slope(&|x| reference::swiglu(x, u), x)).abs() < 1e-7);
        assert!((dup - slope(&|u| reference::swiglu(x, u), u)).abs() < 1e-7);
        assert!((reference::gelu_backward(x, d) - slope(&reference::gelu, x)).abs() < 1e-7);
    }
}

/// Sequences, tokens a sequence, heads, width.
const HEADS: [(usize, usize, usize, usize); 5] =
    [(1, 1, 1, 2), (2, 3, 3, 10), (2, 4, 2, 16), (1, 5, 32, 128), (3, 2, 5, 48)];

#[test]
fn rope() {
    let mut random = Random(4);
    for format in FORMATS {
        for (i, (sequences, sequence, heads, width)) in HEADS.into_iter().enumerate() {
            let (tokens, row) = (sequences * sequence, heads * width);
            let x = random.normal(tokens * row, 0.0, 1.0, format);
            let angles: Vec<f64> = (0..sequence * width / 2).map(|_| 100.0 * random.unit()).collect();
            let cosines = Operand::of(&angles.iter().map(|a| a.cos()).collect::<Vec<_>>(), Format::F32);
            let sines = Operand::of(&angles.iter().map(|a| a.sin()).collect::<Vec<_>>(), Format::F32);
            for (direction, backward) in [(Direction::Forward, false), (Direction::Backward, true)] {
                let expected = rotary::rope(&x, &cosines.values(), &sines.values(), heads, width, backward);
                // Read out of wider rows, as of a fused projection, with vectors and without.
                let stride = row + [0, 3, 16, 24, 8][i];
                let mut spread: Vec<f64> =
                    x.chunks_exact(row).flat_map(|token| [token, &vec![f64::NAN; stride - row]].concat()).collect();
                spread.truncate((tokens - 1) * stride + row);
                let mut source = Operand::of(&spread, format);
                if i % 2 == 1 {
                    source = source.shifted();
                }
                let mut y = Operand::unwritten(tokens * row, format);
                run(Rope {
                    x: Some(&source.input()),
                    y: &mut y.output(),
                    cosines: &cosines.input(),
                    sines: &sines.input(),
                    tokens,
                    sequence,
                    heads,
                    width,
                    strides: (stride, row),
                    direction,
                }
                .launch());
                y.check("y", &expected, 1e-6, 1.0);
                // In place, past what lies between the rows.
                run(Rope {
                    x: None,
                    y: &mut source.output(),
                    cosines: &cosines.input(),
                    sines: &sines.input(),
                    tokens,
                    sequence,
                    heads,
                    width,
                    strides: (stride, stride),
                    direction,
                }
                .launch());
                let turned = source.values();
                let rows = turned.chunks(stride);
                assert!(rows.clone().all(|row_and_gap| row_and_gap[row..].iter().all(|value| value.is_nan())));
                assert_eq!(rows.flat_map(|row_and_gap| row_and_gap[..row].to_vec()).collect::<Vec<_>>(), y.values());
            }
        }
    }
}

#[test]
fn rope_refuses_odd_heads_and_broken_sequences() {
    let (mut y, table) = (Operand::unwritten(12, Format::F32), Operand::unwritten(3, Format::F32));
    let mut error = |tokens, sequence, width, stride| {
        Rope {
            x: None,
            y: &mut y.output(),
            cosines: &table.input(),
            sines: &table.input(),
            tokens,
            sequence,
            heads: 1,
            width,
            strides: (stride, stride),
            direction: Direction::Forward,
        }
        .launch()
        .map(|_| ())
        .map_err(|error| error.to_string())
    };
    assert_eq!(error(6, 3, 2, 2), Ok(()));
    assert!(error(4, 2, 3, 3).unwrap_err().contains("1 heads of 3 numbers"));
    assert!(error(6, 4, 2, 2).unwrap_err().contains("6 tokens in sequences of 4"));
    assert!(error(6, 3, 2, 1).unwrap_err().contains("strides of (1, 1)"));
    assert!(error(5, 5, 2, 2).unwrap_err().contains("`y` has 12 elements, expected 10"));
}
