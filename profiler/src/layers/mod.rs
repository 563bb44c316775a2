//! The kinds of layers: what a model is built of, each as three explicit functions.
//!
//! Tensors between the layers are `[microbatch_size, sequence_length, hidden]`; inside they are matrices of
//! `microbatch_size * sequence_length` rows, so that a projection is one matrix product. What is saved lies in
//! tensors of their own, contiguous: copied elsewhere, dropped and put back, they serve the same.

mod attention;
mod block;
mod embedding;
mod head;
mod linear;
mod mlp;
mod norm;
mod ops;
mod rotary;

pub(crate) use attention::{Attention, HeadNorms, Projection, QUERY_BLOCK};
pub(crate) use block::Block;
pub(crate) use embedding::Embedding;
pub(crate) use head::{Head, block_logits};
pub(crate) use linear::{Linear, WeightLayout};
pub(crate) use mlp::{Into as MlpInto, Mlp};
pub(crate) use norm::Norm;
pub(crate) use rotary::Rotary;

use crate::layer::{Saved, WeightContext};
use candle_core::{Result, Tensor, bail};

/// `[microbatch_size, sequence_length, width]` as a contiguous matrix of rows.
fn flatten(x: &Tensor) -> Result<Tensor> {
    let (microbatch, sequence, width) = x.dims3()?;
    x.contiguous()?.reshape((microbatch * sequence, width))
}

/// Saved tensors or a context, taken apart in order. A list of another length is an error: it came from
/// another layer.
struct TensorList(std::vec::IntoIter<Tensor>);

impl TensorList {
    fn of_saved(saved: Saved) -> Self {
        Self(saved.0.into_iter().map(|saved| saved.tensor).collect::<Vec<_>>().into_iter())
    }

    fn of_context(context: WeightContext) -> Self {
        Self(context.0.into_iter())
    }

    fn take_some(&mut self, count: usize) -> Result<Vec<Tensor>> {
        if self.0.len() < count {
            bail!("tensors of another layer: expected {count} more, got {}", self.0.len());
        }
        Ok(self.0.by_ref().take(count).collect())
    }

    fn take<const N: usize>(&mut self) -> Result<[Tensor; N]> {
        match self.take_some(N)?.try_into() {
            Ok(tensors) => Ok(tensors),
            Err(tensors) => bail!("expected {N} tensors, got {}", tensors.len()),
        }
    }

    fn finish(self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            more => bail!("tensors of another layer: {more} more than expected"),
        }
    }
}
