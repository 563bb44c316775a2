//! The operations between the matrix products, as launches of own kernels.
//!
//! An operation is a struct with its operands and sizes; its `launch` checks formats and lengths and says how the
//! kernel is launched. Numbers are stored in f32 or bf16 (`T` below) and computed in f32. Operands are contiguous
//! unless a stride is asked for. Vectors of 16 bytes are loaded where rows and addresses allow it.

pub mod activation;
pub mod attention;
pub mod cross_entropy;
pub mod norm;
pub mod optimizer;
pub mod rotary;
pub mod wait;

use super::launch::{Argument, Builder, Format, Launch, LaunchError};

/// Threads of a warp.
const WARP: usize = 32;
/// Threads of a block where each takes a vector, and no more.
const THREADS: u32 = 256;

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

/// The numbers of a matrix; none are an error.
fn elements(builder: &Builder<'_>, rows: usize, width: usize) -> Result<usize, LaunchError> {
    match rows.checked_mul(width) {
        Some(elements) if elements > 0 => Ok(elements),
        _ => Err(builder.shape(format!("{rows} rows of {width} numbers"))),
    }
}

/// The last argument of a kernel in which each thread takes `each` of `count` numbers, and its blocks.
fn by_element<'a>(
    builder: Builder<'a>,
    format: Format,
    count: usize,
    each: usize,
    rest: &[Argument],
) -> Result<Launch<'a>, LaunchError> {
    let builder = builder.argument(Argument::U64(count as u64));
    let builder = rest.iter().fold(builder, |builder, &argument| builder.argument(argument));
    builder.on(format, count.div_ceil(each * THREADS as usize), THREADS, 0)
}
