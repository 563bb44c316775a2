//! Sums of rows by index.

use super::wide;
use candle_core::{Result, Tensor};

/// `[count, width]` with each of `rows` `[n, width]` added at its index (`[n]`, u32), in the rows' type.
pub(crate) fn add_rows(count: usize, indices: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let wide = wide(rows)?;
    let zeros = Tensor::zeros((count, wide.dim(1)?), wide.dtype(), wide.device())?;
    zeros.index_add(indices, &wide, 0)?.to_dtype(rows.dtype())
}
