//! See [`super::super`] for what each function gives.

use super::super::{GELU_CUBE, GELU_SCALE};
use super::{DType, Real, Result, Tensor, Values, bail, by_type, tensor, vectorized, zeros};

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    let one = T::from_f64(1.0);
    one / (one + (-x).exp())
}

#[inline(always)]
fn tanh<T: Real>(x: T) -> T {
    let two = T::from_f64(2.0);
    T::from_f64(1.0) - two / ((two * x).exp() + T::from_f64(1.0))
}

/// `f` of each pair of numbers of two tensors of one shape.
fn pairwise<T: Real>(a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> T) -> Result<Tensor> {
    let (first, second) = (Values::<T>::of(a)?, Values::<T>::of(b)?);
    let (first, second) = (first.slice()?, second.slice()?);
    let mut y = zeros::<T>(first.len());
    vectorized(
        #[inline(always)]
        || {
            for ((y, &a), &b) in y.iter_mut().zip(first).zip(second) {
                *y = f(a, b);
            }
        },
    );
    tensor(y, a.shape())
}

pub(in super::super) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    fn of<T: Real>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        pairwise::<T>(
            gate,
            up,
            #[inline(always)]
            |gate, up| gate * sigmoid(gate) * up,
        )
    }
    by_type!(gate, of(gate, up))
}

pub(in super::super) fn silu_mul_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    fn of<T: Real>(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let shape = gate.shape();
        let (gate, up, dy) = (Values::<T>::of(gate)?, Values::<T>::of(up)?, Values::<T>::of(dy)?);
        let (gate, up, dy) = (gate.slice()?, up.slice()?, dy.slice()?);
        let (mut dgate, mut dup) = (zeros::<T>(gate.len()), zeros::<T>(gate.len()));
        vectorized(|| {
            let read = gate.iter().zip(up).zip(dy);
            for (((&gate, &up), &dy), (dgate, dup)) in read.zip(dgate.iter_mut().zip(&mut dup)) {
                let sigmoid = sigmoid(gate);
                let silu = gate * sigmoid;
                *dup = dy * silu;
                *dgate = dy * up * (sigmoid + silu * (T::from_f64(1.0) - sigmoid));
            }
        });
        Ok((tensor(dgate, shape)?, tensor(dup, shape)?))
    }
    by_type!(gate, of(gate, up, dy))
}

pub(in super::super) fn gelu(x: &Tensor) -> Result<Tensor> {
    fn of<T: Real>(x: &Tensor) -> Result<Tensor> {
        let (scale, cube, half) = (T::from_f64(GELU_SCALE), T::from_f64(GELU_CUBE), T::from_f64(0.5));
        pairwise::<T>(
            x,
            x,
            #[inline(always)]
            |x, _| half * x * (T::from_f64(1.0) + tanh(scale * x * (T::from_f64(1.0) + cube * x * x))),
        )
    }
    by_type!(x, of(x))
}

pub(in super::super) fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    fn of<T: Real>(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (scale, cube, half) = (T::from_f64(GELU_SCALE), T::from_f64(GELU_CUBE), T::from_f64(0.5));
        let (one, three) = (T::from_f64(1.0), T::from_f64(3.0));
        pairwise::<T>(
            x,
            dy,
            #[inline(always)]
            |x, dy| {
                let tanh = tanh(scale * x * (one + cube * x * x));
                let slope = half * x * (one - tanh * tanh) * scale * (one + three * cube * x * x);
                dy * (half * (one + tanh) + slope)
            },
        )
    }
    by_type!(x, of(x, dy))
}
