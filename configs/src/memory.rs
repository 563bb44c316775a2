//! Static memory: what a stage holds all the time, by the counts that the field uses.
//!
//! Bytes a parameter:
//!
//! | precision | optimizer | weights | gradients | optimizer states | in all |
//! | --- | --- | --- | --- | --- | --- |
//! | f32 | AdamW | 4 | 4 | 8 (two moments) | 16 |
//! | bf16 | AdamW | 2 | 4 (summed in f32) | 12 (f32 master weights, two moments) | 18 |
//! | f32 | SGD | 4 | 4 | 0 | 8 |
//! | bf16 | SGD | 2 | 4 | 4 (f32 master weights) | 10 |
//!
//! These are the counts that Megatron-LM documents for its optimizer without sharding ("fp32 parameters
//! and gradients: 16", "bf16 parameters, fp32 gradients: 18").
//!
//! ```
//! use optpipe_configs::job::{Optimizer, Precision};
//! use optpipe_configs::{memory, model::Model};
//!
//! let model = Model::read("llama-3.1-8b", None)?;
//! let stages = memory::stages(&model, &[16, 16], Precision::Bf16, Optimizer::Adamw);
//! let total: u64 = stages.iter().map(|s| s.total()).sum();
//! assert_eq!(total, 18 * model.parameters());
//! # Ok::<(), optpipe_configs::file::FileError>(())
//! ```

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::{Optimizer, Precision};
use crate::model::Model;

/// Static bytes of a stage or a device, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticBytes {
    /// Parameters (numbers, not bytes) behind the bytes.
    pub parameters: u64,
    /// The weights that layers compute with.
    pub weights: u64,
    /// Their gradients.
    pub gradients: u64,
    /// Optimizer states, f32 master weights included.
    pub optimizer: u64,
}

impl StaticBytes {
    /// The bytes of so many parameters.
    pub fn of(parameters: u64, precision: Precision, optimizer: Optimizer) -> StaticBytes {
        let (weights, gradients, master) = match precision {
            Precision::F32 => (4, 4, 0),
            Precision::Bf16 => (2, 4, 4),
        };
        let moments = match optimizer {
            Optimizer::Adamw => 8,
            Optimizer::Sgd => 0,
        };
        StaticBytes {
            parameters,
            weights: weights * parameters,
            gradients: gradients * parameters,
            optimizer: (master + moments) * parameters,
        }
    }

    /// All bytes together.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer
    }
}

impl AddAssign for StaticBytes {
    fn add_assign(&mut self, other: StaticBytes) {
        self.parameters += other.parameters;
        self.weights += other.weights;
        self.gradients += other.gradients;
        self.optimizer += other.optimizer;
    }
}

/// Parameters that each stage holds under a split (blocks a stage, see [`crate::split`]).
///
/// Where the output projection is the embedding's matrix, it counts once if embedding and head are on
/// the same stage, else again on the head's stage, which keeps and updates a copy: the sum is then above
/// [`Model::parameters`] by that matrix.
pub fn stage_parameters(model: &Model, split: &[usize]) -> Vec<u64> {
    let mut parameters: Vec<u64> = split.iter().map(|&blocks| blocks as u64 * model.block_parameters()).collect();
    if let Some(first) = parameters.first_mut() {
        *first += model.embedding_parameters();
    }
    let apart = split.len() > 1;
    if let Some(last) = parameters.last_mut() {
        let copy = if model.tied_embeddings && apart { model.projection_parameters() } else { 0 };
        *last += model.head_parameters() + copy;
    }
    parameters
}

/// Static bytes of each stage under a split (blocks a stage, see [`crate::split`]).
pub fn stages(model: &Model, split: &[usize], precision: Precision, optimizer: Optimizer) -> Vec<StaticBytes> {
    stage_parameters(model, split).into_iter().map(|n| StaticBytes::of(n, precision, optimizer)).collect()
}

/// Static bytes of each device: the sums over its stages. A device without a stage holds nothing; a
/// stage on a device of `devices` or above is left out.
pub fn devices(stages: &[StaticBytes], placement: &[usize], devices: usize) -> Vec<StaticBytes> {
    let mut sums = vec![StaticBytes::default(); devices];
    for (stage, &device) in stages.iter().zip(placement) {
        if let Some(sum) = sums.get_mut(device) {
            *sum += *stage;
        }
    }
    sums
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bytes_a_parameter_are_the_documented_ones() {
        let total = |p, o| StaticBytes::of(1, p, o).total();
        assert_eq!(total(Precision::F32, Optimizer::Adamw), 16);
        assert_eq!(total(Precision::Bf16, Optimizer::Adamw), 18);
        assert_eq!(total(Precision::F32, Optimizer::Sgd), 8);
        assert_eq!(total(Precision::Bf16, Optimizer::Sgd), 10);
    }

    #[test]
    fn a_tied_matrix_counts_again_only_on_another_stage() {
        let tied = Model::read("llama-15m", None).unwrap();
        let matrix = (tied.vocabulary * tied.hidden) as u64;
        assert_eq!(stage_parameters(&tied, &[6]), [tied.parameters()]);
        let two = stage_parameters(&tied, &[6, 0]);
        assert_eq!(two, [tied.parameters() - tied.head_parameters(), tied.head_parameters() + matrix]);

        let untied = Model::read("llama-3.1-8b", None).unwrap();
        assert_eq!(stage_parameters(&untied, &[10, 12, 10]).iter().sum::<u64>(), untied.parameters());
    }

    #[test]
    fn devices_sum_their_stages() {
        let stage = |n| StaticBytes::of(n, Precision::F32, Optimizer::Adamw);
        let sums = devices(&[stage(1), stage(2), stage(4), stage(8)], &[0, 1, 1, 0], 3);
        assert_eq!(sums, [stage(9), stage(6), StaticBytes::default()]);
    }
}
