//! Causal attention and its gradients without a matrix of sequence by sequence (Dao et al., FlashAttention, 2022;
//! Dao, FlashAttention-2, 2023).
//!
//! Keys and values may be shared by groups of query heads (Ainslie et al., GQA, 2023), queries may see back through
//! a window only (Beltagy et al., Longformer, 2020). For the backward the log-sum-exp of each row of scores is kept;
//! [`Mean`], [`BackwardKeys`] and [`BackwardQueries`] make the gradients, with sums in the same order in each run.
//!
//! In bf16 products run on the tensor cores by `mma.sync` (sm_80 and later), with scores, probabilities and sums in
//! f32; probabilities and the gradients by scores are rounded to bf16 where they are multiplied again. What bounds
//! the speed, by count (heads of 128; no measurement):
//!
//! | kernel | products | reads of 512 bytes of shared memory a product (16 x 8 x 16) | bound |
//! | --- | --- | --- | --- |
//! | [`Forward`] | 2 | 0.31 | tensor cores, and exponentials where two blocks do not overlap them |
//! | [`BackwardKeys`] | 4 | 0.56 | shared memory, 4 cycles a read |
//! | [`BackwardQueries`] | 3 | 0.42 | both, on Hopper shared memory |
//!
//! On Ampere `mma.sync` reaches the chip's peak: 55 to 65 % of it are to be expected of the forward, 40 to 45 % of
//! the backward's own products, which are 7 where 5 are necessary. On Hopper and Blackwell only `wgmma` and `tcgen05`
//! reach the peak; `mma.sync` ends at about 60 % of it on Hopper, so that 35 to 40 % of the peak are to be expected
//! forward and 25 % backward, as of FlashAttention-2, which uses the same instruction. Registers (255 a thread, with
//! hardly a spill) leave 8 warps a multiprocessor to hide what each waits for. A block of the backward in bf16 with
//! heads of 128 takes 160 KiB of shared memory, which GeForce and other devices with less refuse.

use super::activation_format;
use crate::cuda::launch::{Builder, Format, Input, Launch, LaunchError, Output};

/// Of the operands of attention.
///
/// Queries, output and their gradients are `T` `[heads, sequence * group, head_dim]`, the row of a query head `g` of
/// the group at a position being `position * group + g`; keys, values and their gradients
/// `T` `[heads, sequence, head_dim]`; log-sum-exps and means f32 `[heads, sequence * group]`. Queries are scaled
/// already. All of `T` begin at multiples of 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Key heads, of all sequences of the microbatch.
    pub heads: usize,
    /// Positions.
    pub sequence: usize,
    /// Query heads that share a key head.
    pub group: usize,
    /// 64 or 128.
    pub head_dim: usize,
    /// How many positions a query sees back, its own included; all where there is none.
    pub window: Option<usize>,
}

/// Numbers of the operands.
#[derive(Debug, Clone, Copy)]
struct Lengths {
    queries: usize,
    keys: usize,
    statistics: usize,
}

impl Shape {
    /// The kernel's name for a width of head, its operands' numbers.
    fn builder<'a>(&self, names: [&'static str; 2]) -> Result<(Builder<'a>, Lengths), LaunchError> {
        let builder = Builder::new(names[usize::from(self.head_dim != 64)]);
        let &Self { heads, sequence, group, head_dim, window } = self;
        if head_dim != 64 && head_dim != 128 {
            return Err(builder.shape(format!("heads of {head_dim} numbers; it takes 64 or 128")));
        }
        if window == Some(0) {
            return Err(builder.shape("a window of no position".into()));
        }
        // The kernels count rows up to a tile past the end, and up to a window past the last of a tile of keys.
        let counted = sequence.checked_mul(2).and_then(|n| n.checked_add(512)).and_then(|n| n.checked_mul(group));
        let numbers = heads.checked_mul(sequence).and_then(|n| n.checked_mul(group)?.checked_mul(head_dim));
        match (counted, numbers) {
            (Some(counted), Some(numbers)) if numbers > 0 && i32::try_from(counted).is_ok() => {
                let lengths = Lengths { queries: numbers, keys: numbers / group, statistics: numbers / head_dim };
                Ok((builder, lengths))
            }
            _ => Err(builder.shape(format!("{heads} heads of {sequence} positions in groups of {group}"))),
        }
    }

    /// The last arguments, and the launch on tiles of so many of `rows` rows of each head.
    fn launch<'a>(
        &self,
        builder: Builder<'a>,
        format: Format,
        rows: usize,
        (tile, threads, shared): (usize, u32, usize),
    ) -> Result<Launch<'a>, LaunchError> {
        let window = self.window.map_or(self.sequence, |window| window.min(self.sequence));
        builder
            .size("positions", self.sequence)?
            .size("heads of a group", self.group)?
            .size("positions", window)?
            .on_grid(format, (self.heads, rows.div_ceil(tile)), threads, shared as u32)
    }

    /// Bytes of so many rows of bf16.
    fn narrow_rows(&self, rows: usize) -> usize {
        rows * self.head_dim * Format::Bf16.bytes()
    }

    /// Bytes of shared memory of the kernels in f32: padded rows of tiles, and scores.
    fn wide_tiles(&self, rows: usize, scores: usize) -> usize {
        (rows * (self.head_dim + 4) + scores * (WIDE_KEYS + 1)) * Format::F32.bytes()
    }
}

/// Rows of the queries in a tile of the kernels in f32.
const WIDE_ROWS: usize = 64;
/// Keys in a tile of the kernels in f32.
const WIDE_KEYS: usize = 32;
/// Threads of a block of the kernels in f32, of the backward and of [`Mean`].
const THREADS: u32 = 256;

/// The format of `T`, for operands that begin at multiples of 16 bytes.
fn format(builder: &Builder<'_>, format: Format, addresses: &[(&str, u64)]) -> Result<Format, LaunchError> {
    if let Some((operand, _)) = addresses.iter().find(|(_, address)| address % 16 != 0) {
        return Err(builder.shape(format!("`{operand}` does not begin at a multiple of 16 bytes")));
    }
    activation_format(builder.name(), "queries", format)
}

/// `output = softmax(queries keys^T) values` over the keys that each query sees.
#[derive(Debug)]
pub struct Forward<'a, 'b> {
    /// As in [`Shape`].
    pub queries: &'a Input<'a>,
    /// As in [`Shape`].
    pub keys: &'a Input<'a>,
    /// As in [`Shape`].
    pub values: &'a Input<'a>,
    /// As in [`Shape`].
    pub output: &'a mut Output<'b>,
    /// As in [`Shape`], natural logarithms.
    pub log_sums: &'a mut Output<'b>,
    /// Of the operands.
    pub shape: Shape,
}

impl<'a> Forward<'a, '_> {
    /// The launch.
    ///
    /// # Errors
    /// Formats, lengths or addresses other than in [`Shape`].
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let shape = self.shape;
        let (builder, lengths) = shape.builder(["attention_forward_64", "attention_forward_128"])?;
        let addresses = [
            ("queries", self.queries.address()),
            ("keys", self.keys.address()),
            ("values", self.values.address()),
            ("output", self.output.address()),
        ];
        let format = format(&builder, self.queries.format(), &addresses)?;
        let builder = builder
            .input("queries", self.queries, lengths.queries, format)?
            .input("keys", self.keys, lengths.keys, format)?
            .input("values", self.values, lengths.keys, format)?
            .output("output", self.output, lengths.queries, format)?
            .output("log_sums", self.log_sums, lengths.statistics, Format::F32)?;
        let tiles = match format {
            Format::Bf16 => (128, 128, shape.narrow_rows(128 + 2 * 64)),
            _ => (WIDE_ROWS, THREADS, shape.wide_tiles(WIDE_ROWS + 2 * WIDE_KEYS, WIDE_ROWS)),
        };
        shape.launch(builder, format, shape.sequence * shape.group, tiles)
    }
}

/// `means = sum(output * gradient)` by row: the gradient by the probabilities, averaged under them.
#[derive(Debug)]
pub struct Mean<'a, 'b> {
    /// As in [`Shape`].
    pub output: &'a Input<'a>,
    /// By the output, as in [`Shape`].
    pub gradient: &'a Input<'a>,
    /// As in [`Shape`].
    pub means: &'a mut Output<'b>,
    /// Of the operands.
    pub shape: Shape,
}

impl<'a> Mean<'a, '_> {
    /// The launch, in which each thread takes a vector.
    ///
    /// # Errors
    /// Formats, lengths or addresses other than in [`Shape`].
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let shape = self.shape;
        let (builder, lengths) = shape.builder(["attention_mean_64", "attention_mean_128"])?;
        let addresses = [("output", self.output.address()), ("gradient", self.gradient.address())];
        let format = format(&builder, self.output.format(), &addresses)?;
        builder
            .input("output", self.output, lengths.queries, format)?
            .input("gradient", self.gradient, lengths.queries, format)?
            .output("means", self.means, lengths.statistics, Format::F32)?
            .size("rows", lengths.statistics)?
            .on(format, (lengths.queries * format.bytes()).div_ceil(16 * THREADS as usize), THREADS, 0)
    }
}

/// What both kernels of the backward read.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    /// As in [`Shape`].
    pub queries: &'a Input<'a>,
    /// As in [`Shape`].
    pub keys: &'a Input<'a>,
    /// As in [`Shape`].
    pub values: &'a Input<'a>,
    /// By the output, as in [`Shape`].
    pub gradient: &'a Input<'a>,
    /// Of [`Forward`].
    pub log_sums: &'a Input<'a>,
    /// Of [`Mean`].
    pub means: &'a Input<'a>,
    /// Of the operands.
    pub shape: Shape,
}

impl<'a> Saved<'a> {
    /// The builder with these arguments, the format and the lengths.
    fn builder(
        self,
        names: [&'static str; 2],
        outputs: &[(&str, u64)],
    ) -> Result<(Builder<'a>, Format, Lengths), LaunchError> {
        let (builder, lengths) = self.shape.builder(names)?;
        let mut addresses = vec![
            ("queries", self.queries.address()),
            ("keys", self.keys.address()),
            ("values", self.values.address()),
            ("gradient", self.gradient.address()),
        ];
        addresses.extend(outputs);
        let format = format(&builder, self.queries.format(), &addresses)?;
        let builder = builder
            .input("queries", self.queries, lengths.queries, format)?
            .input("keys", self.keys, lengths.keys, format)?
            .input("values", self.values, lengths.keys, format)?
            .input("gradient", self.gradient, lengths.queries, format)?
            .input("log_sums", self.log_sums, lengths.statistics, Format::F32)?
            .input("means", self.means, lengths.statistics, Format::F32)?;
        Ok((builder, format, lengths))
    }
}

/// The gradients by keys and values.
#[derive(Debug)]
pub struct BackwardKeys<'a, 'b> {
    /// What is read.
    pub saved: Saved<'a>,
    /// As in [`Shape`].
    pub dkeys: &'a mut Output<'b>,
    /// As in [`Shape`].
    pub dvalues: &'a mut Output<'b>,
}

impl<'a> BackwardKeys<'a, '_> {
    /// The launch.
    ///
    /// # Errors
    /// Formats, lengths or addresses other than in [`Shape`].
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let shape = self.saved.shape;
        let outputs = [("dkeys", self.dkeys.address()), ("dvalues", self.dvalues.address())];
        let (builder, format, lengths) =
            self.saved.builder(["attention_backward_keys_64", "attention_backward_keys_128"], &outputs)?;
        let builder = builder.output("dkeys", self.dkeys, lengths.keys, format)?.output(
            "dvalues",
            self.dvalues,
            lengths.keys,
            format,
        )?;
        let tiles = match format {
            // Keys and values; two stages of queries and gradients, each with two statistics.
            Format::Bf16 => (128, THREADS, shape.narrow_rows(2 * 128 + 4 * 64) + 4 * 64 * Format::F32.bytes()),
            _ => (WIDE_KEYS, THREADS, shape.wide_tiles(2 * WIDE_ROWS + 2 * WIDE_KEYS, 2 * WIDE_ROWS)),
        };
        shape.launch(builder, format, shape.sequence, tiles)
    }
}

/// The gradient by the queries.
#[derive(Debug)]
pub struct BackwardQueries<'a, 'b> {
    /// What is read.
    pub saved: Saved<'a>,
    /// As in [`Shape`].
    pub dqueries: &'a mut Output<'b>,
}

impl<'a> BackwardQueries<'a, '_> {
    /// The launch.
    ///
    /// # Errors
    /// Formats, lengths or addresses other than in [`Shape`].
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let shape = self.saved.shape;
        let outputs = [("dqueries", self.dqueries.address())];
        let (builder, format, lengths) =
            self.saved.builder(["attention_backward_queries_64", "attention_backward_queries_128"], &outputs)?;
        let builder = builder.output("dqueries", self.dqueries, lengths.queries, format)?;
        let tiles = match format {
            // Queries and gradients; two stages of keys and values.
            Format::Bf16 => (256, THREADS, shape.narrow_rows(2 * 256 + 4 * 32)),
            _ => (WIDE_ROWS, THREADS, shape.wide_tiles(2 * WIDE_ROWS + 2 * WIDE_KEYS, WIDE_ROWS)),
        };
        shape.launch(builder, format, shape.sequence * shape.group, tiles)
    }
}
