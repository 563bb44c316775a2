//! RMSNorm (Zhang and Sennrich, 2019) and LayerNorm (Ba, Kiros and Hinton, 2016).
//!
//! Gradients by input and by weight are separate launches. Of the latter there are two: shares of the rows are
//! summed by blocks in parallel, then the shares are added, always in the same order.

use super::{WARP, activation_format, elements, row_threads};
use crate::cuda::launch::{Argument, Builder, Format, Input, Launch, LaunchError, Output};

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// `x / rms(x) * weight`; a row's statistic is one over the root mean square.
    Rms,
    /// `(x - mean(x)) / deviation(x) * weight + bias`; a row's statistics are the mean and one over the standard
    /// deviation.
    Layer,
}

impl Norm {
    /// Numbers of statistics a row.
    pub const fn statistics(self) -> usize {
        match self {
            Norm::Rms => 1,
            Norm::Layer => 2,
        }
    }

    fn kernel(self, rms: &'static str, layer: &'static str) -> &'static str {
        match self {
            Norm::Rms => rms,
            Norm::Layer => layer,
        }
    }
}

/// Statistics and output.
#[derive(Debug)]
pub struct Forward<'a, 'b> {
    /// Which norm.
    pub norm: Norm,
    /// `T` `[rows, width]`
    pub x: &'a Input<'a>,
    /// `T` `[width]`
    pub weight: &'a Input<'a>,
    /// `T` `[width]`; of LayerNorm only, which must have it.
    pub bias: Option<&'a Input<'a>>,
    /// `T` `[rows, width]`, written.
    pub y: &'a mut Output<'b>,
    /// f32 `[rows, norm.statistics()]`, written.
    pub statistics: &'a mut Output<'b>,
    /// Rows.
    pub rows: usize,
    /// Numbers a row.
    pub width: usize,
    /// Added to the mean square or the variance.
    pub epsilon: f32,
}

impl<'a> Forward<'a, '_> {
    /// The launch, with a block a row, or a warp where that is enough.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let name = self.norm.kernel("rms_norm_forward", "layer_norm_forward");
        let format = activation_format(name, "x", self.x.format())?;
        let builder = Builder::new(name);
        let count = elements(&builder, self.rows, self.width)?;
        let builder = builder.input("x", self.x, count, format)?.input("weight", self.weight, self.width, format)?;
        with_bias(builder, self.norm, self.bias, self.width, format)?
            .output("y", self.y, count, format)?
            .output("statistics", self.statistics, self.rows * self.norm.statistics(), Format::F32)?
            .size("rows", self.rows)?
            .size("columns", self.width)?
            .argument(Argument::F32(self.epsilon))
            .on_rows(format, self.rows, threads(self.width, format))
    }
}

/// Threads of a row, of which each keeps up to 4 vectors; of rows of more than 2048 vectors each reads more.
fn threads(width: usize, format: Format) -> u32 {
    row_threads(width, format, 4).min(512)
}

/// The bias, which LayerNorm's kernels have as an argument.
fn with_bias<'a>(
    builder: Builder<'a>,
    norm: Norm,
    bias: Option<&'a Input<'_>>,
    width: usize,
    format: Format,
) -> Result<Builder<'a>, LaunchError> {
    match (norm, bias) {
        (Norm::Rms, None) => Ok(builder),
        (Norm::Layer, Some(bias)) => builder.input("bias", bias, width, format),
        (Norm::Rms, Some(_)) => Err(builder.shape("RMSNorm has no bias".into())),
        (Norm::Layer, None) => Err(builder.shape("LayerNorm has a bias".into())),
    }
}

/// The output again, from saved statistics.
#[derive(Debug)]
pub struct Apply<'a, 'b> {
    /// Which norm.
    pub norm: Norm,
    /// `T` `[rows, width]`
    pub x: &'a Input<'a>,
    /// `T` `[width]`
    pub weight: &'a Input<'a>,
    /// `T` `[width]`; of LayerNorm only, which must have it.
    pub bias: Option<&'a Input<'a>>,
    /// f32 `[rows, norm.statistics()]`
    pub statistics: &'a Input<'a>,
    /// `T` `[rows, width]`, written.
    pub y: &'a mut Output<'b>,
    /// Rows.
    pub rows: usize,
    /// Numbers a row.
    pub width: usize,
}

impl<'a> Apply<'a, '_> {
    /// The launch, with a block a row, or a warp where that is enough.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let name = self.norm.kernel("rms_norm_apply", "layer_norm_apply");
        let format = activation_format(name, "x", self.x.format())?;
        let builder = Builder::new(name);
        let count = elements(&builder, self.rows, self.width)?;
        let builder = builder.input("x", self.x, count, format)?.input("weight", self.weight, self.width, format)?;
        with_bias(builder, self.norm, self.bias, self.width, format)?
            .input("statistics", self.statistics, self.rows * self.norm.statistics(), Format::F32)?
            .output("y", self.y, count, format)?
            .size("rows", self.rows)?
            .size("columns", self.width)?
            .on_rows(format, self.rows, threads(self.width, format))
    }
}

/// The gradient by the input.
#[derive(Debug)]
pub struct BackwardInput<'a, 'b> {
    /// Which norm.
    pub norm: Norm,
    /// `T` `[rows, width]`
    pub x: &'a Input<'a>,
    /// `T` `[width]`
    pub weight: &'a Input<'a>,
    /// f32 `[rows, norm.statistics()]`
    pub statistics: &'a Input<'a>,
    /// `T` `[rows, width]`, the gradient by the output.
    pub dy: &'a Input<'a>,
    /// `T` `[rows, width]`, added to the gradient: what comes past the norm by the residual connection.
    pub residual: Option<&'a Input<'a>>,
    /// `T` `[rows, width]`, written.
    pub dx: &'a mut Output<'b>,
    /// Rows.
    pub rows: usize,
    /// Numbers a row.
    pub width: usize,
}

impl<'a> BackwardInput<'a, '_> {
    /// The launch, with a block a row, or a warp where that is enough.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let name = self.norm.kernel("rms_norm_backward_input", "layer_norm_backward_input");
        let format = activation_format(name, "x", self.x.format())?;
        let builder = Builder::new(name);
        let count = elements(&builder, self.rows, self.width)?;
        builder
            .input("x", self.x, count, format)?
            .input("weight", self.weight, self.width, format)?
            .input("statistics", self.statistics, self.rows * self.norm.statistics(), Format::F32)?
            .input("dy", self.dy, count, format)?
            .optional_input("residual", self.residual, count, format)?
            .output("dx", self.dx, count, format)?
            .size("rows", self.rows)?
            .size("columns", self.width)?
            .on_rows(format, self.rows, threads(self.width, format))
    }
}

/// Columns that a block of [`BackwardWeight`] takes: a warp of vectors.
fn tile(format: Format) -> usize {
    WARP * 16 / format.bytes()
}

/// Into how many shares [`BackwardWeight`] should divide the rows: enough blocks to fill a large GPU some times,
/// and at least 32 rows a share.
pub fn shares(rows: usize, width: usize, format: Format) -> usize {
    let tiles = width.div_ceil(tile(format)).max(1);
    (512 / tiles).clamp(1, rows.div_ceil(32).max(1))
}

/// Sums over shares of the rows, whose sum in turn ([`SumShares`]) are the gradients by weight and bias.
#[derive(Debug)]
pub struct BackwardWeight<'a, 'b> {
    /// Which norm.
    pub norm: Norm,
    /// `T` `[rows, width]`
    pub x: &'a Input<'a>,
    /// f32 `[rows, norm.statistics()]`
    pub statistics: &'a Input<'a>,
    /// `T` `[rows, width]`, the gradient by the output.
    pub dy: &'a Input<'a>,
    /// f32 `[shares, width]`, written.
    pub weight_shares: &'a mut Output<'b>,
    /// f32 `[shares, width]`, written; of LayerNorm only, which must have it.
    pub bias_shares: Option<&'a mut Output<'b>>,
    /// Into how many parts the rows are divided, see [`shares()`].
    pub shares: usize,
    /// Rows.
    pub rows: usize,
    /// Numbers a row.
    pub width: usize,
}

impl<'a> BackwardWeight<'a, '_> {
    /// The launch, with a block for each tile of columns and share of rows.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let name = self.norm.kernel("rms_norm_backward_weight", "layer_norm_backward_weight");
        let format = activation_format(name, "x", self.x.format())?;
        let builder = Builder::new(name);
        let count = elements(&builder, self.rows, self.width)?;
        let shared = elements(&builder, self.shares, self.width)?;
        let builder = builder
            .input("x", self.x, count, format)?
            .input("statistics", self.statistics, self.rows * self.norm.statistics(), Format::F32)?
            .input("dy", self.dy, count, format)?
            .output("weight_shares", self.weight_shares, shared, Format::F32)?;
        let builder = match (self.norm, self.bias_shares) {
            (Norm::Rms, None) => builder,
            (Norm::Layer, Some(bias)) => builder.output("bias_shares", bias, shared, Format::F32)?,
            (Norm::Rms, Some(_)) => return Err(builder.shape("RMSNorm has no bias".into())),
            (Norm::Layer, None) => return Err(builder.shape("LayerNorm has a bias".into())),
        };
        builder.size("rows", self.rows)?.size("columns", self.width)?.on_grid(
            format,
            (self.width.div_ceil(tile(format)), self.shares),
            256,
            0,
        )
    }
}

/// The sum of shares, rounded once.
#[derive(Debug)]
pub struct SumShares<'a, 'b> {
    /// f32 `[shares, width]`
    pub shares_of: &'a Input<'a>,
    /// `T` `[width]`, written.
    pub sum: &'a mut Output<'b>,
    /// Shares.
    pub shares: usize,
    /// Numbers a share.
    pub width: usize,
}

impl<'a> SumShares<'a, '_> {
    /// The launch, with a block for 32 columns.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let name = "sum_shares";
        let format = activation_format(name, "sum", self.sum.format())?;
        let builder = Builder::new(name);
        let count = elements(&builder, self.shares, self.width)?;
        builder
            .input("shares_of", self.shares_of, count, Format::F32)?
            .output("sum", self.sum, self.width, format)?
            .size("shares", self.shares)?
            .size("columns", self.width)?
            .on(format, self.width.div_ceil(WARP), 256, 0)
    }
}
