//! The operations between the matrix products, as launches of own kernels.
//!
//! Every function checks formats and lengths of its operands and says how the kernel is launched. Numbers are
//! stored in f32 or bf16 and computed in f32. Operands are contiguous unless a stride is asked for.

pub mod norm;

use super::launch::{Builder, Format, LaunchError};

/// Threads of a warp.
const WARP: usize = 32;

/// The format of activations, which must be f32 or bf16.
fn activation_format(kernel: &'static str, operand: &'static str, found: Format) -> Result<Format, LaunchError> {
    match found {
        Format::F32 | Format::Bf16 => Ok(found),
        Format::U32 => Err(LaunchError::Format { kernel, operand, expected: "f32 or bf16", found }),
    }
}

/// Threads for a row of so many numbers, if each takes about `vectors` vectors of 16 bytes: whole warps.
fn row_threads(width: usize, format: Format, vectors: usize) -> u32 {
    let numbers = vectors * 16 / format.bytes();
    (width.div_ceil(numbers).div_ceil(WARP) * WARP).clamp(WARP, 1024) as u32
}

/// A matrix of activations.
fn elements(builder: &Builder<'_>, rows: usize, width: usize) -> Result<usize, LaunchError> {
    match rows.checked_mul(width) {
        Some(elements) if elements > 0 => Ok(elements),
        _ => Err(builder.shape(format!("{rows} rows of {width} numbers"))),
    }
}
