//! The loops against the composed operations.
#![allow(clippy::unwrap_used)]

use super::cpu::heads::Way;
use super::{Angles, Heads, Span, composed, cpu};
use candle_core::{DType, Device, Tensor};
use optpipe_configs::model::Norm;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

fn random(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    let mut rng = Pcg64::seed_from_u64(seed);
    let values = (0..shape.iter().product()).map(|_| 8.0 * rng.random::<f64>() - 4.0).collect();
    Tensor::from_vec::<_, f64>(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn same(got: &Tensor, expected: &Tensor) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.dims(), expected.dims());
    prop_assert_eq!(got.dtype(), expected.dtype());
    let tolerance = if got.dtype() == DType::F64 { 1e-12 } else { 2e-5 };
    let (got, expected) = (values(got), values(expected));
    let largest = expected.iter().fold(1e-3f64, |largest, x| largest.max(x.abs()));
    for (got, expected) in got.iter().zip(&expected) {
        prop_assert!((got - expected).abs() <= tolerance * largest, "{got} and {expected}, largest {largest}");
    }
    Ok(())
}

fn all_same(got: &[Tensor], expected: &[Tensor]) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).try_for_each(|(got, expected)| same(got, expected))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn norms(
        rows in 1usize..5,
        width in 1usize..100,
        kind in prop::sample::select(vec![Norm::Rms, Norm::Layer]),
        dtype in prop::sample::select(vec![DType::F32, DType::F64]),
    ) {
        let [x, dy, residual] = [1, 2, 3].map(|seed| random(seed, &[rows, width], dtype));
        let [weight, bias] = [4, 5].map(|seed| random(seed, &[width], dtype));
        // LayerNorm of one number is zero over zero but for epsilon: large enough to compare by.
        let statistics = cpu::norm::statistics(kind, &x, 0.1).unwrap();
        same(&statistics, &composed::norm::statistics(kind, &x, 0.1).unwrap())?;
        for bias in [None, Some(&bias)] {
            same(
                &cpu::norm::apply(kind, &x, &statistics, &weight, bias).unwrap(),
                &composed::norm::apply(kind, &x, &statistics, &weight, bias).unwrap(),
            )?;
        }
        for residual in [None, Some(&residual)] {
            let got = cpu::norm::backward(kind, &x, &statistics, &weight, &dy, residual).unwrap();
            let expected = composed::norm::backward(kind, &x, &statistics, &weight, &dy, residual).unwrap();
            same(&got.0, &expected.0)?;
            all_same(&got.1, &expected.1)?;
        }
    }

    #[test]
    fn activations(count in 1usize..200, dtype in prop::sample::select(vec![DType::F32, DType::F64])) {
        let [gate, up, dy] = [1, 2, 3].map(|seed| random(seed, &[count], dtype));
        same(&cpu::activation::silu_mul(&gate, &up).unwrap(), &composed::activation::silu_mul(&gate, &up).unwrap())?;
        let got = cpu::activation::silu_mul_backward(&gate, &up, &dy).unwrap();
        let expected = composed::activation::silu_mul_backward(&gate, &up, &dy).unwrap();
        same(&got.0, &expected.0)?;
        same(&got.1, &expected.1)?;
        same(&cpu::activation::gelu(&gate).unwrap(), &composed::activation::gelu(&gate).unwrap())?;
        same(
            &cpu::activation::gelu_backward(&gate, &dy).unwrap(),
            &composed::activation::gelu_backward(&gate, &dy).unwrap(),
        )?;
    }

    #[test]
    fn heads_there_and_back(
        (microbatch, sequence, kv) in (1usize..4, 1usize..6, 1usize..4),
        (group, half) in (1usize..4, 1usize..6),
        rotated in any::<bool>(),
        scale in prop::sample::select(vec![1.0, 0.3]),
        dtype in prop::sample::select(vec![DType::F32, DType::F64]),
    ) {
        let heads = Heads { microbatch, sequence, kv, group, width: 2 * half };
        let x = random(1, &[microbatch * sequence, kv * group * 2 * half], dtype);
        let turns = random(2, &[sequence, half], dtype);
        let angles: Option<Angles> = rotated.then(|| (turns.cos().unwrap(), turns.sin().unwrap()));
        let split = cpu::heads::rearrange(&x, heads, angles.as_ref(), Way::Split, scale).unwrap();
        same(&split, &composed::heads::split(&x, heads, angles.as_ref(), scale).unwrap())?;
        let merged = cpu::heads::rearrange(&split, heads, angles.as_ref(), Way::Merge, scale).unwrap();
        same(&merged, &composed::heads::merge(&split, heads, angles.as_ref(), scale).unwrap())?;
        // A rotation's transpose is its inverse.
        same(&merged, &(x * (scale * scale)).unwrap())?;
    }

    #[test]
    fn attention(
        (heads, queries, group) in (1usize..4, 1usize..6, 1usize..4),
        (first_query, window) in (0usize..50, prop::option::of(1usize..60)),
        dtype in prop::sample::select(vec![DType::F32, DType::F64]),
    ) {
        let first_key = window.map_or(0, |window: usize| (first_query + 1).saturating_sub(window));
        let span = Span { first_query, group, first_key, window };
        let (rows, keys) = (queries * group, first_query + queries - first_key);
        let [scores, dprobabilities] = [1, 2].map(|seed| random(seed, &[heads, rows, keys], dtype));
        let mean = random(3, &[heads, rows], dtype);
        let got = cpu::softmax::attend(&scores, span).unwrap();
        let expected = composed::softmax::attend(&scores, span).unwrap();
        same(&got.0, &expected.0)?;
        same(&got.1, &expected.1)?;
        let again = cpu::softmax::attend_backward(&scores, span, &got.1, &dprobabilities, &mean).unwrap();
        let expected = composed::softmax::attend_backward(&scores, span, &got.1, &dprobabilities, &mean).unwrap();
        same(&again.0, &expected.0)?;
        same(&again.1, &expected.1)?;
        same(&again.0, &got.0)?;
    }

    #[test]
    fn cross_entropy(
        rows in 1usize..5,
        columns in 1usize..90,
        first in 0usize..40,
        dtype in prop::sample::select(vec![DType::F32, DType::F64]),
    ) {
        let logits = random(1, &[rows, columns], dtype);
        let log_sum = cpu::softmax::log_sum_exp(&logits).unwrap();
        same(&log_sum, &composed::softmax::log_sum_exp(&logits).unwrap())?;
        let scale = random(2, &[], dtype);
        let targets = Tensor::from_vec((0..rows as u32).map(|row| row * 17).collect(), rows, &Device::Cpu).unwrap();
        same(
            &cpu::softmax::cross_entropy_backward(&logits, &log_sum, &targets, first, &scale).unwrap(),
            &composed::softmax::cross_entropy_backward(&logits, &log_sum, &targets, first, &scale).unwrap(),
        )?;
    }

    #[test]
    fn sums_of_rows(
        (count, width) in (1usize..8, 1usize..40),
        picks in prop::collection::vec(0usize..8, 1..20),
        dtype in prop::sample::select(vec![DType::F32, DType::F64]),
    ) {
        let picks: Vec<u32> = picks.into_iter().map(|pick| (pick % count) as u32).collect();
        let rows = random(1, &[picks.len(), width], dtype);
        let indices = Tensor::new(picks, &Device::Cpu).unwrap();
        same(
            &cpu::scatter::add_rows(count, &indices, &rows).unwrap(),
            &composed::scatter::add_rows(count, &indices, &rows).unwrap(),
        )?;
    }
}

#[test]
fn an_index_out_of_range_is_an_error() {
    let rows = random(1, &[1, 4], DType::F32);
    let indices = Tensor::new(&[3u32], &Device::Cpu).unwrap();
    assert!(cpu::scatter::add_rows(3, &indices, &rows).is_err());
}
