//! Softmax cross-entropy of tensors, over blocks of the vocabulary.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, Layout, Result, Tensor, bail};
use cudarc::driver::CudaViewMut;

use super::{Place, held, window};
use crate::cuda::launch::Output;
use crate::cuda::ops::cross_entropy::{Backward, Forward};

/// The log of the sum of the exponentials of each row of a block's logits, `[rows, columns]` in f32.
///
/// # Errors
/// Other formats or shapes; what the driver reports.
pub fn log_sum_exp(logits: &Tensor) -> Result<Tensor> {
    let place = Place::of(logits.device().as_cuda_device()?)?;
    let (rows, columns) = logits.dims2()?;
    // Of the block alone: it is the first there is, and what its targets' logits are does not matter.
    let targets = Tensor::zeros(rows, DType::U32, logits.device())?;
    let (logits_held, targets_held) = (held(logits)?, held(&targets)?);
    let (logits_view, targets_view) = (logits_held.view()?, targets_held.view()?);
    let (mut log_sums, mut hits) = (place.fresh(DType::F32, rows)?, place.fresh(DType::F32, rows)?);
    place.run(
        Forward {
            logits: &logits_view.input(&place),
            targets: &targets_view.input(&place),
            log_sums: &mut log_sums.output(&place),
            hits: &mut hits.output(&place),
            rows,
            columns,
            first: 0,
        }
        .launch(),
    )?;
    Ok(place.tensor(log_sums, rows))
}

/// Turns a block's logits, `[rows, columns]` in f32, whose first column is token `first`, into their gradient in
/// place: `(softmax - one_hot(target)) * scale`, `scale` being a number in f32.
///
/// # Errors
/// Other formats or shapes; what the driver reports.
pub fn cross_entropy_backward(
    logits: &Tensor,
    log_sum: &Tensor,
    targets: &Tensor,
    first: usize,
    scale: &Tensor,
) -> Result<()> {
    let scale = scale.reshape(1)?;
    logits.inplace_op1(&InPlace { log_sum, targets, first, scale: &scale, shape: logits.dims2()? })
}

struct InPlace<'a> {
    log_sum: &'a Tensor,
    targets: &'a Tensor,
    first: usize,
    scale: &'a Tensor,
    shape: (usize, usize),
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "cross-entropy backward"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("this is the kernel of CUDA devices")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let place = Place::of(&storage.device)?;
        let (start, end) = window(layout)?;
        let (log_sum, targets, scale) = (held(self.log_sum)?, held(self.targets)?, held(self.scale)?);
        let (log_sum, targets, scale) = (log_sum.view()?, targets.view()?, scale.view()?);
        let mut view: CudaViewMut<'_, f32> = storage.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
        place.run(
            Backward {
                logits: &mut Output::new(&mut view, &place.stream),
                targets: &targets.input(&place),
                log_sums: &log_sum.input(&place),
                gradient: &scale.input(&place),
                factor: 1.0,
                rows: self.shape.0,
                columns: self.shape.1,
                first: self.first,
            }
            .launch(),
        )
    }
}
