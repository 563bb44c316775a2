//! RMSNorm (Zhang and Sennrich, 2019) and LayerNorm (Ba, Kiros and Hinton, 2016).

use super::{activation_format, elements, row_threads};
use crate::cuda::launch::{Argument, Builder, Format, Input, Launch, LaunchError, Output};

/// `y = x / rms(x) * weight` for rows of `x` `[rows, width]`.
///
/// `y` `[rows, width]` and `weight` `[width]` in the format of `x`; `statistics` `[rows]`, f32: one over the
/// root of the mean square plus `epsilon`.
///
/// # Errors
/// Other formats or lengths.
pub fn rms_norm_forward<'a>(
    x: &'a Input<'_>,
    weight: &'a Input<'_>,
    y: &'a mut Output<'_>,
    statistics: &'a mut Output<'_>,
    (rows, width): (usize, usize),
    epsilon: f32,
) -> Result<Launch<'a>, LaunchError> {
    let name = "rms_norm_forward";
    let format = activation_format(name, "x", x.format())?;
    let builder = Builder::new(name);
    let count = elements(&builder, rows, width)?;
    builder
        .input("x", x, count, format)?
        .input("weight", weight, width, format)?
        .output("y", y, count, format)?
        .output("statistics", statistics, rows, Format::F32)?
        .size("columns", width)?
        .argument(Argument::F32(epsilon))
        .on(format, rows, row_threads(width, format, 2), 0)
}
