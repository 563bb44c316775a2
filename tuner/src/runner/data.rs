//! Synthetic text: the same for the same seed, and regular enough to be learned.

use candle_core::{Device, Result, Tensor};
use optpipe_profiler::layer::Microbatch;
use rand::RngExt;
use rand_pcg::Pcg64;

/// Symbols of the text, at most: few, so that the loss falls within a few steps.
const ALPHABET: u32 = 64;
/// One token in so many is random, so that the text cannot be foreseen entirely.
const NOISE: u32 = 16;

/// One microbatch of one step. A token follows from the one before by a fixed rule (an affine map of a small
/// alphabet spread over the vocabulary), now and then by chance.
pub(super) fn microbatch(
    seed: u64,
    step: u64,
    index: usize,
    shape: (usize, usize),
    vocabulary: usize,
    device: &Device,
) -> Result<Microbatch> {
    let (count, length) = shape;
    let mut rng = Pcg64::new(u128::from(seed) << 64 | u128::from(step), index as u128);
    let vocabulary = u32::try_from(vocabulary).unwrap_or(u32::MAX).max(1);
    let symbols = ALPHABET.min(vocabulary);
    let spread = vocabulary / symbols;
    let mut tokens = Vec::with_capacity(count * length);
    let mut targets = Vec::with_capacity(count * length);
    for _ in 0..count {
        let mut symbol = rng.random_range(0..symbols);
        for _ in 0..length {
            tokens.push(symbol * spread);
            symbol =
                if rng.random_range(0..NOISE) == 0 { rng.random_range(0..symbols) } else { (symbol * 5 + 3) % symbols };
            targets.push(symbol * spread);
        }
    }
    let tensor = |values| Tensor::from_vec(values, shape, device);
    Ok(Microbatch { tokens: tensor(tokens)?, targets: tensor(targets)? })
}

/// All microbatches of a step.
pub(super) fn step(
    seed: u64,
    step: u64,
    microbatches: usize,
    shape: (usize, usize),
    vocabulary: usize,
    device: &Device,
) -> Result<Vec<Microbatch>> {
    (0..microbatches).map(|index| microbatch(seed, step, index, shape, vocabulary, device)).collect()
}
