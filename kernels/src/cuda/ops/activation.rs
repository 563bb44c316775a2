//! SwiGLU (Shazeer, GLU variants, 2020) and GELU in its tanh form (Hendrycks and Gimpel, 2016).
//!
//! The backward operations can write the forward's output beside the gradients, which the gradient by the next
//! projection's weight needs: the inputs are then read once.

use super::{activation_format, by_element, elements};
use crate::cuda::launch::{Builder, Format, Input, Launch, LaunchError, Output};

/// A thread takes a vector of 16 bytes.
fn each(format: Format) -> usize {
    16 / format.bytes()
}

/// A launch on `count` numbers of the format of its first operand, which is taken.
fn begun<'a>(
    kernel: &'static str,
    name: &'static str,
    first: &'a Input<'a>,
    count: usize,
) -> Result<(Builder<'a>, Format, usize), LaunchError> {
    let format = activation_format(kernel, name, first.format())?;
    let builder = Builder::new(kernel);
    let count = elements(&builder, 1, count)?;
    Ok((builder.input(name, first, count, format)?, format, count))
}

/// `y = silu(gate) * up`
#[derive(Debug)]
pub struct SwiGluForward<'a, 'b> {
    /// `T` `[count]`
    pub gate: &'a Input<'a>,
    /// `T` `[count]`
    pub up: &'a Input<'a>,
    /// `T` `[count]`, written.
    pub y: &'a mut Output<'b>,
    /// Numbers.
    pub count: usize,
}

impl<'a> SwiGluForward<'a, '_> {
    /// The launch.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let (builder, format, count) = begun("swiglu_forward", "gate", self.gate, self.count)?;
        let builder = builder.input("up", self.up, count, format)?.output("y", self.y, count, format)?;
        by_element(builder, format, count, each(format), &[])
    }
}

/// The gradients of [`SwiGluForward`].
#[derive(Debug)]
pub struct SwiGluBackward<'a, 'b> {
    /// `T` `[count]`
    pub gate: &'a Input<'a>,
    /// `T` `[count]`
    pub up: &'a Input<'a>,
    /// `T` `[count]`, the gradient by the output.
    pub dy: &'a Input<'a>,
    /// `T` `[count]`, written.
    pub dgate: &'a mut Output<'b>,
    /// `T` `[count]`, written.
    pub dup: &'a mut Output<'b>,
    /// `T` `[count]`, written where there is one: the forward's output.
    pub y: Option<&'a mut Output<'b>>,
    /// Numbers.
    pub count: usize,
}

impl<'a> SwiGluBackward<'a, '_> {
    /// The launch.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let (builder, format, count) = begun("swiglu_backward", "gate", self.gate, self.count)?;
        let builder = builder
            .input("up", self.up, count, format)?
            .input("dy", self.dy, count, format)?
            .output("dgate", self.dgate, count, format)?
            .output("dup", self.dup, count, format)?
            .optional_output("y", self.y, count, format)?;
        by_element(builder, format, count, each(format), &[])
    }
}

/// `y = gelu(x)`
#[derive(Debug)]
pub struct GeluForward<'a, 'b> {
    /// `T` `[count]`
    pub x: &'a Input<'a>,
    /// `T` `[count]`, written.
    pub y: &'a mut Output<'b>,
    /// Numbers.
    pub count: usize,
}

impl<'a> GeluForward<'a, '_> {
    /// The launch.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let (builder, format, count) = begun("gelu_forward", "x", self.x, self.count)?;
        let builder = builder.output("y", self.y, count, format)?;
        by_element(builder, format, count, each(format), &[])
    }
}

/// The gradient of [`GeluForward`].
#[derive(Debug)]
pub struct GeluBackward<'a, 'b> {
    /// `T` `[count]`
    pub x: &'a Input<'a>,
    /// `T` `[count]`, the gradient by the output.
    pub dy: &'a Input<'a>,
    /// `T` `[count]`, written.
    pub dx: &'a mut Output<'b>,
    /// `T` `[count]`, written where there is one: the forward's output.
    pub y: Option<&'a mut Output<'b>>,
    /// Numbers.
    pub count: usize,
}

impl<'a> GeluBackward<'a, '_> {
    /// The launch.
    ///
    /// # Errors
    /// Formats or lengths other than above.
    pub fn launch(self) -> Result<Launch<'a>, LaunchError> {
        let (builder, format, count) = begun("gelu_backward", "x", self.x, self.count)?;
        let builder = builder
            .input("dy", self.dy, count, format)?
            .output("dx", self.dx, count, format)?
            .optional_output("y", self.y, count, format)?;
        by_element(builder, format, count, each(format), &[])
    }
}
