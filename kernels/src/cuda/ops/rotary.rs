//! The rotary position embedding (Su et al., RoFormer, 2021), on the two halves of a head as Llama has it.

use super::{WARP, activation_format};
use crate::cuda::launch::{Argument, Builder, Format, Input, Launch, LaunchError, Output};

/// Which way pairs are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// By the angles.
    Forward,
    /// By the angles' negatives: the gradient by the input from that by the output.
    Backward,
}

/// Turns each pair `(x[i], x[i + width / 2])` of each head by the angle of its token's position, which is the
/// token's number modulo the sequence length.
#[derive(Debug)]
pub struct Rope<'a, 'b> {
    /// `T`, as `y`; none to turn `y` in place.
    pub x: Option<&'a Input<'a>>,
    /// `T`, `tokens` rows of `heads * width` numbers that begin `stride` numbers apart: `(tokens - 1) * stride +
    /// heads * width` numbers, written.
    pub y: &'a mut Output<'b>,
    /// f32 `[sequence, width / 2]`, of the angles.
    pub cosines: &'a Input<'a>,
    /// f32 `[sequence, width / 2]`, of the angles.
    pub sines: &'a Input<'a>,
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Tokens a sequence.
    pub sequence: usize,
    /// Heads.
    pub heads: usize,
    /// Numbers a head, even.
    pub width: usize,
    /// From one token to the next, in `x` and in `y`.
    pub strides: (usize, usize),
    /// Forward or backward.
    pub direction: Direction,
}

impl<'a> Rope<'a, '_> {
    /// The launch, with a block a token.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let name = "rope";
        let format = activation_format(name, "y", self.y.format())?;
        let builder = Builder::new(name);
        let row = self.heads.checked_mul(self.width).filter(|&row| row > 0 && self.width.is_multiple_of(2));
        let Some(row) = row else {
            return Err(builder.shape(format!("{} heads of {} numbers", self.heads, self.width)));
        };
        if self.sequence == 0 || self.tokens == 0 || !self.tokens.is_multiple_of(self.sequence) {
            return Err(builder.shape(format!("{} tokens in sequences of {}", self.tokens, self.sequence)));
        }
        if self.strides.0 < row || self.strides.1 < row || (self.x.is_none() && self.strides.0 != self.strides.1) {
            return Err(builder.shape(format!("strides of {:?} for {row} numbers a token", self.strides)));
        }
        let span = |stride: usize| (self.tokens - 1) * stride + row;
        let half = self.width / 2;
        let builder = match self.x {
            Some(x) => builder.input("x", x, span(self.strides.0), format)?,
            None => builder.argument(Argument::Pointer(self.y.address())),
        };
        let vectors = (self.heads * half).div_ceil(16 / format.bytes());
        builder
            .output("y", self.y, span(self.strides.1), format)?
            .input("cosines", self.cosines, self.sequence * half, Format::F32)?
            .input("sines", self.sines, self.sequence * half, Format::F32)?
            .size("positions", self.sequence)?
            .size("heads", self.heads)?
            .size("pairs", half)?
            .argument(Argument::U64(self.strides.0 as u64))
            .argument(Argument::U64(self.strides.1 as u64))
            .argument(Argument::F32(if self.direction == Direction::Forward { 1.0 } else { -1.0 }))
            .on(format, self.tokens, (vectors.div_ceil(WARP) * WARP).min(1024) as u32, 0)
    }
}
