//! The operations between the matrix products.

pub(crate) mod activation;
pub(crate) mod heads;
pub(crate) mod norm;
pub(crate) mod scatter;
pub(crate) mod softmax;

use candle_core::{DType, Result, Tensor};

/// The type that statistics, exponentials and long sums are taken in: f32, f64 for f64.
pub(crate) fn wide_type(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The tensor in its [`wide_type`], contiguous; itself where it is so already.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(wide_type(x.dtype()))?.contiguous()
}
