//! See [`super::super`] for what each function gives.

use candle_core::{Result, Tensor};

pub(in super::super) fn add_rows(count: usize, indices: &Tensor, rows: &Tensor) -> Result<Tensor> {
    Tensor::zeros((count, rows.dim(1)?), rows.dtype(), rows.device())?.index_add(indices, rows, 0)
}
