//! Sums of gradients over microbatches, in place.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};

/// Adds `gradient` (f32 or bf16) to `sum` (f32, contiguous, of the same shape) in its own memory; with
/// `replace` the old contents count for nothing. Tensors that share the storage of `sum` see the change.
///
/// # Errors
/// Other number formats or shapes; what candle reports.
pub fn accumulate(sum: &Tensor, gradient: &Tensor, replace: bool) -> Result<()> {
    if gradient.shape() != sum.shape() {
        bail!("a gradient of shape {:?} for a sum of shape {:?}", gradient.shape(), sum.shape());
    }
    sum.inplace_op2(&gradient.contiguous()?, &Accumulate { replace })
}

/// `sum += gradient`, or `sum = gradient`.
struct Accumulate {
    replace: bool,
}

impl InplaceOp2 for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn cpu_fwd(&self, sum: &mut CpuStorage, sum_layout: &Layout, x: &CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(sum) = sum else { bail!("gradients are summed in f32") };
        let Some((start, end)) = sum_layout.contiguous_offsets() else {
            bail!("gradients are summed in whole tensors")
        };
        let Some((from, to)) = layout.contiguous_offsets() else { bail!("a contiguous gradient was expected") };
        let sum = &mut sum[start..end];
        match x {
            CpuStorage::F32(x) => add(sum, &x[from..to], self.replace, |x| x),
            CpuStorage::BF16(x) => add(sum, &x[from..to], self.replace, |x| x.to_f32()),
            _ => bail!("a gradient in f32 or bf16 was expected"),
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        sum: &mut candle_core::CudaStorage,
        sum_layout: &Layout,
        x: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<()> {
        crate::cuda::tensors::accumulate((sum, sum_layout), (x, layout), self.replace)
    }
}

fn add<T: Copy>(sum: &mut [f32], x: &[T], replace: bool, wide: impl Fn(T) -> f32) {
    if replace {
        sum.iter_mut().zip(x).for_each(|(sum, &x)| *sum = wide(x));
    } else {
        sum.iter_mut().zip(x).for_each(|(sum, &x)| *sum += wide(x));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn sums_are_taken_in_place() {
        let sum = Tensor::new(&[9f32, 9., 9., 9.], &Device::Cpu).unwrap();
        let shared = sum.clone();
        let whole = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap();
        accumulate(&sum, &whole.flatten_all().unwrap(), true).unwrap();
        let turned = whole.t().unwrap().to_dtype(DType::BF16).unwrap();
        let square = sum.reshape((2, 2)).unwrap();
        accumulate(&square, &turned, false).unwrap();
        assert_eq!(shared.to_vec1::<f32>().unwrap(), [2., 5., 5., 8.]);
        assert!(accumulate(&sum, &whole, false).is_err());
        assert!(accumulate(&turned, &square, false).is_err());
    }
}
