//! AdamW, SGD, and sums of gradients.

use crate::executor::run;
use crate::numbers::{FORMATS, Operand, Random};
use half::bf16;
use optpipe_kernels::cuda::launch::Format;
use optpipe_kernels::cuda::ops::optimizer::{Accumulate, AdamW, AdamWStep, Sgd};
use optpipe_kernels::reference::optimizer as reference;

const COUNTS: [usize; 4] = [1, 6, 1024, 2051];

fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|&value| bf16::from_f64(value).to_f64()).collect()
}

#[test]
fn adamw() {
    let mut random = Random(7);
    for format in FORMATS {
        for count in COUNTS {
            for shifted in [false, true] {
                let place = |operand: Operand| if shifted { operand.shifted() } else { operand };
                let start = random.normal(count, 0.0, 1.0, Format::F32);
                let mut weights = Operand::of(&start, format);
                let mut master = place(Operand::of(&start, Format::F32));
                let mut first = place(Operand::of(&vec![0.0; count], Format::F32));
                let mut second = Operand::of(&vec![0.0; count], Format::F32);
                let mut states: Vec<_> = start.iter().map(|&w| (w, 0.0, 0.0)).collect();
                for step in 1..4 {
                    // The factors in f32, as the kernel takes them.
                    let step = AdamWStep {
                        learning_rate: 1e-2,
                        beta1: f64::from(0.9f32),
                        beta2: f64::from(0.95f32),
                        epsilon: f64::from(1e-8f32),
                        weight_decay: 0.1,
                        step,
                    };
                    let values = random.normal(count, 0.0, 0.1, Format::F32);
                    let gradient = Operand::of(&values, Format::F32);
                    let mut master = (format == Format::Bf16).then(|| master.output());
                    run(AdamW {
                        weights: &mut weights.output(),
                        master: master.as_mut(),
                        first: &mut first.output(),
                        second: &mut second.output(),
                        gradient: &gradient.input(),
                        count,
                        step,
                    }
                    .launch());
                    states.iter_mut().zip(&values).for_each(|(s, &g)| *s = reference::adamw(*s, g, step));
                }
                let expected: Vec<f64> = states.iter().map(|s| s.0).collect();
                if format == Format::Bf16 {
                    master.check("master", &expected, 1e-6, 0.1);
                    assert_eq!(weights.values(), rounded(&master.values()));
                }
                weights.check("weights", &expected, 1e-6, 0.1);
                first.check("first", &states.iter().map(|s| s.1).collect::<Vec<_>>(), 1e-6, 0.1);
                second.check("second", &states.iter().map(|s| s.2).collect::<Vec<_>>(), 1e-6, 0.0);
            }
        }
    }
}

#[test]
fn sgd() {
    let mut random = Random(8);
    for format in FORMATS {
        for count in COUNTS {
            let start = random.normal(count, 0.0, 1.0, Format::F32);
            let values = random.normal(count, 0.0, 1.0, Format::F32);
            let gradient = Operand::of(&values, Format::F32);
            let (mut weights, mut master) = (Operand::of(&start, format), Operand::of(&start, Format::F32));
            let mut beside = (format == Format::Bf16).then(|| master.output());
            run(Sgd {
                weights: &mut weights.output(),
                master: beside.as_mut(),
                gradient: &gradient.input(),
                count,
                learning_rate: 0.1,
            }
            .launch());
            drop(beside);
            let expected: Vec<f64> = start.iter().zip(&values).map(|(w, g)| w - f64::from(0.1f32) * g).collect();
            weights.check("weights", &expected, 1e-6, 0.1);
            if format == Format::Bf16 {
                master.check("master", &expected, 1e-6, 0.1);
            }
        }
    }
}

#[test]
fn accumulate() {
    let mut random = Random(9);
    for format in FORMATS {
        for count in COUNTS {
            let values = random.normal(count, 0.0, 1.0, format);
            let gradient = Operand::of(&values, format);
            let gradient = if count == 6 { gradient.shifted() } else { gradient };
            let mut sum = Operand::unwritten(count, Format::F32);
            for replace in [true, false] {
                run(Accumulate { sum: &mut sum.output(), gradient: &gradient.input(), count, replace }.launch());
            }
            sum.check("sum", &values.iter().map(|x| 2.0 * x).collect::<Vec<_>>(), 0.0, 0.0);
        }
    }
}

#[test]
fn master_weights_go_with_bf16_alone() {
    let mut weights = Operand::of(&[1.0], Format::Bf16);
    let gradient = Operand::of(&[1.0], Format::F32);
    let launch =
        Sgd { weights: &mut weights.output(), master: None, gradient: &gradient.input(), count: 1, learning_rate: 0.1 }
            .launch()
            .map(|_| ());
    assert_eq!(launch.unwrap_err().to_string(), "sgd: weights in bf16 need master weights");
}

/// Master weights are rounded to nearest, ties to even, as the host rounds.
#[test]
fn bf16_is_rounded_to_nearest() {
    let mut random = Random(10);
    let ties =
        [0x3f80_8000u32, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000];
    let bits = ties.into_iter().chain((0..1000).map(|_| random.bits() as u32));
    // Numbers below the least normal one may be flushed by the update's arithmetic.
    let numbers = bits.map(f32::from_bits).filter(|x| !x.is_subnormal());
    let values: Vec<f64> = numbers.map(f64::from).collect();
    let count = values.len();
    let mut master = Operand::of(&values, Format::F32);
    let mut weights = Operand::unwritten(count, Format::Bf16);
    let gradient = Operand::of(&vec![0.0; count], Format::F32);
    run(Sgd {
        weights: &mut weights.output(),
        master: Some(&mut master.output()),
        gradient: &gradient.input(),
        count,
        learning_rate: 0.1,
    }
    .launch());
    for (value, weight) in values.iter().zip(weights.values()) {
        let expected = bf16::from_f32(*value as f32).to_f64();
        assert!(
            weight == expected || (weight.is_nan() && expected.is_nan()),
            "{value:e}: {weight:e}, not {expected:e}"
        );
    }
}
