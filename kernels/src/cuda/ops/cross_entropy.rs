//! Softmax cross-entropy over blocks of the vocabulary, without keeping probabilities (as Wijmans et al., Cut Your
//! Losses, 2024).
//!
//! The projection gives logits of a block of the vocabulary for some rows at a time. [`Forward`] of the blocks in
//! order leaves each row's log-sum-exp and its target's logit; [`Mean`] makes the loss of them. For the gradient
//! the logits are made again, and [`Backward`] turns them into their gradient in place.

use super::{activation_format, elements, row_threads};
use crate::cuda::launch::{Argument, Builder, Format, Input, Launch, LaunchError, Output};

/// Adds a block of the vocabulary to each row's log-sum-exp; in the block of its target takes the target's logit.
#[derive(Debug)]
pub struct Forward<'a, 'b> {
    /// `T` `[rows, columns]`
    pub logits: &'a Input<'a>,
    /// u32 `[rows]`, entries of the vocabulary.
    pub targets: &'a Input<'a>,
    /// f32 `[rows]`, set by the block from entry 0, and updated by the others.
    pub log_sums: &'a mut Output<'b>,
    /// f32 `[rows]`, the logits of the targets; as `log_sums`.
    pub hits: &'a mut Output<'b>,
    /// Rows.
    pub rows: usize,
    /// Entries of this block.
    pub columns: usize,
    /// The first of them.
    pub first: usize,
}

impl<'a> Forward<'a, '_> {
    /// The launch, with a block a row.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let name = "cross_entropy_forward";
        let format = activation_format(name, "logits", self.logits.format())?;
        let builder = Builder::new(name);
        let count = elements(&builder, self.rows, self.columns)?;
        builder
            .input("logits", self.logits, count, format)?
            .input("targets", self.targets, self.rows, Format::U32)?
            .output("log_sums", self.log_sums, self.rows, Format::F32)?
            .output("hits", self.hits, self.rows, Format::F32)?
            .size("columns", self.columns)?
            .size("entries before", self.first)?
            .on(format, self.rows, row_threads(self.columns, format, 4), 0)
    }
}

/// `loss = mean(log_sums - hits)`
#[derive(Debug)]
pub struct Mean<'a, 'b> {
    /// f32 `[rows]`
    pub log_sums: &'a Input<'a>,
    /// f32 `[rows]`
    pub hits: &'a Input<'a>,
    /// f32 `[1]`, written.
    pub loss: &'a mut Output<'b>,
    /// Rows.
    pub rows: usize,
}

impl<'a> Mean<'a, '_> {
    /// The launch, of one block.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let builder = Builder::new("cross_entropy_mean");
        let rows = elements(&builder, self.rows, 1)?;
        builder
            .input("log_sums", self.log_sums, rows, Format::F32)?
            .input("hits", self.hits, rows, Format::F32)?
            .output("loss", self.loss, 1, Format::F32)?
            .size("rows", rows)?
            .on(Format::F32, 1, row_threads(rows, Format::F32, 1), 0)
    }
}

/// `logits = (softmax - one at the target) * gradient * factor`, in place.
#[derive(Debug)]
pub struct Backward<'a, 'b> {
    /// `T` `[rows, columns]`, read and written.
    pub logits: &'a mut Output<'b>,
    /// u32 `[rows]`, entries of the vocabulary.
    pub targets: &'a Input<'a>,
    /// f32 `[rows]`, over the whole vocabulary.
    pub log_sums: &'a Input<'a>,
    /// f32 `[1]`, the gradient by the loss.
    pub gradient: &'a Input<'a>,
    /// One over the tokens that the loss is the mean of.
    pub factor: f32,
    /// Rows.
    pub rows: usize,
    /// Entries of this block.
    pub columns: usize,
    /// The first of them.
    pub first: usize,
}

impl<'a> Backward<'a, '_> {
    /// The launch, with a block a row.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let name = "cross_entropy_backward";
        let format = activation_format(name, "logits", self.logits.format())?;
        let builder = Builder::new(name);
        let count = elements(&builder, self.rows, self.columns)?;
        builder
            .output("logits", self.logits, count, format)?
            .input("targets", self.targets, self.rows, Format::U32)?
            .input("log_sums", self.log_sums, self.rows, Format::F32)?
            .input("gradient", self.gradient, 1, Format::F32)?
            .size("columns", self.columns)?
            .size("entries before", self.first)?
            .argument(Argument::F32(self.factor))
            .on(format, self.rows, row_threads(self.columns, format, 4), 0)
    }
}
