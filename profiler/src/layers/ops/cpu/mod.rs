//! The operations as loops over slices, for tensors in f32 or f64 on the CPU.
//!
//! Composed of tensor operations each would go over its rows five to ten times, with candle's exponential
//! one scalar call a number. These go once or twice, and the compiler makes them vectors of the
//! instruction set that the processor has (through `pulp`).

pub(super) mod activation;
pub(super) mod heads;
pub(super) mod norm;
pub(super) mod scatter;
pub(super) mod softmax;

use candle_core::{DType, Device, Result, Shape, Storage, StorageRef, Tensor, WithDType, bail};
use std::marker::PhantomData;
use std::ops::Neg;

/// f32 and f64.
pub(super) trait Real: WithDType + Neg<Output = Self> {
    /// Without infinities, so that loops over it are free of branches: what is below or above the range
    /// of the type gives its smallest or largest normal powers.
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
}

impl Real for f32 {
    /// The polynomial of Cephes' `expf` (Moshier) over half a power of two to either side; relative error
    /// below 2e-7.
    #[inline(always)]
    fn exp(self) -> Self {
        // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let x = if self > 88.0 { 88.0 } else { self };
        let x = if x < -87.0 { -87.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let power = shifted - ROUND;
        let r = x - power * 0.693_359_4 + power * 2.121_944_4e-4;
        let y = 1.987_569_1e-4;
        let y = y * r + 1.398_199_9e-3;
        let y = y * r + 8.333_452e-3;
        let y = y * r + 4.166_579_6e-2;
        let y = y * r + 1.666_666_5e-1;
        let y = y * r + 0.5;
        let y = y * r * r + r + 1.0;
        let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
        y * f32::from_bits(exponent << 23)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        self.ln()
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

impl Real for f64 {
    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        self.ln()
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

/// Numbers that a loop sums side by side, so that the compiler may use vectors without changing the order
/// of the sums.
const LANES: usize = 32;

/// The sum of `f` over two slices of equal length.
#[inline(always)]
fn sum_with<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::from_f64(0.0); LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut sum = T::from_f64(0.0);
    for (&a, &b) in a_chunks.remainder().iter().zip(b_chunks.remainder()) {
        sum += f(a, b);
    }
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += f(a[lane], b[lane]);
        }
    }
    lanes.into_iter().fold(sum, |sum, lane| sum + lane)
}

/// The sum of a slice.
#[inline(always)]
fn sum<T: Real>(x: &[T]) -> T {
    sum_with(x, x, |x, _| x)
}

#[inline(always)]
fn larger<T: Real>(a: T, b: T) -> T {
    if a > b { a } else { b }
}

/// The largest of a slice that is not empty.
#[inline(always)]
fn largest<T: Real>(x: &[T]) -> T {
    let mut lanes = [x[0]; LANES];
    let chunks = x.chunks_exact(LANES);
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = larger(*lane, x);
    }
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    lanes.into_iter().fold(x[0], larger)
}

/// The numbers of a contiguous tensor.
struct Values<'a, T> {
    storage: StorageRef<'a>,
    start: usize,
    count: usize,
    of: PhantomData<T>,
}

impl<'a, T: Real> Values<'a, T> {
    fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, got the strides {:?}", layout.stride())
        };
        Ok(Self { storage, start, count: end - start, of: PhantomData })
    }

    fn slice(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(&storage.as_slice::<T>()?[self.start..self.start + self.count]),
            _ => bail!("expected a tensor on the CPU"),
        }
    }
}

/// The u32 of a tensor.
fn indices(tensor: &Tensor) -> Result<Vec<usize>> {
    Ok(tensor.flatten_all()?.to_vec1::<u32>()?.into_iter().map(|index| index as usize).collect())
}

/// A tensor of what a loop wrote.
fn tensor<T: Real, S: Into<Shape>>(values: Vec<T>, shape: S) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn zeros<T: Real>(count: usize) -> Vec<T> {
    vec![T::from_f64(0.0); count]
}

/// Runs a loop compiled for the vectors that the processor has. What it calls must be inlined to be so too.
#[inline(always)]
fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return simd.vectorize(work);
    }
    pulp::Arch::new().dispatch(work)
}

/// Calls a function of this folder with the type of a tensor.
macro_rules! by_type {
    ($tensor:expr, $function:ident ( $($argument:expr),* )) => {
        match $tensor.dtype() {
            DType::F32 => $function::<f32>($($argument),*),
            DType::F64 => $function::<f64>($($argument),*),
            other => bail!("expected f32 or f64, got {other:?}"),
        }
    };
}
use by_type;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_exact_to_the_last_bits() {
        for step in -870_000..880_000 {
            let x = step as f32 * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(Real::exp(x)) - expected).abs() / expected;
            assert!(error < 2e-7, "{x}: {error}");
        }
        assert!(Real::exp(-1e30f32) < 1e-37 && Real::exp(f32::NAN).is_nan());
    }
}
