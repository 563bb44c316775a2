//! See [`super::super`] for what each function gives.

use super::{DType, Real, Result, Tensor, Values, bail, by_type, indices, tensor, vectorized, zeros};

pub(in super::super) fn add_rows(count: usize, index: &Tensor, rows: &Tensor) -> Result<Tensor> {
    fn of<T: Real>(count: usize, index: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let width = rows.dim(1)?;
        let (index, values) = (indices(index)?, Values::<T>::of(rows)?);
        let rows = values.slice()?;
        if let Some(index) = index.iter().find(|&&index| index >= count) {
            bail!("index {index} into {count} rows");
        }
        let mut sums = zeros::<T>(count * width);
        vectorized(|| {
            for (&index, row) in index.iter().zip(rows.chunks_exact(width)) {
                for (sum, &x) in sums[index * width..(index + 1) * width].iter_mut().zip(row) {
                    *sum += x;
                }
            }
        });
        tensor(sums, (count, width))
    }
    by_type!(rows, of(count, index, rows))
}
