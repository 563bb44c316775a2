//! How much of the device's memory bandwidth the kernels reach, at the shapes of a Llama-3-8B block and head with
//! 4,096 tokens in bf16. Each operation should take as long as reading its inputs and writing its outputs once.
//!
//! Bandwidth is what a copy from device to device reaches, read and written. The operands of most rows are larger
//! than the L2 cache together; where they are not, more than the copy's bandwidth is possible.

use half::bf16;
use optpipe_kernels::cuda::launch::{Format, Launch, LaunchError};
use optpipe_kernels::cuda::ops::activation::{GeluBackward, GeluForward, SwiGluBackward, SwiGluForward};
use optpipe_kernels::cuda::ops::cross_entropy;
use optpipe_kernels::cuda::ops::norm::{self, BackwardInput, BackwardWeight, Norm, SumShares};
use optpipe_kernels::cuda::ops::optimizer::{Accumulate, AdamW, AdamWStep};
use optpipe_kernels::cuda::ops::rotary::{Direction, Rope};

use crate::Bench;

const TOKENS: usize = 4096;
const HIDDEN: usize = 4096;
const INTERMEDIATE: usize = 14336;
const HEADS: usize = 32;
const HEAD_WIDTH: usize = 128;
const VOCABULARY: usize = 128_256;
/// Rows of logits at a time.
const LOGIT_ROWS: usize = 1024;

/// Prints the time of a launch that moves so many bytes.
type Report<'a> = dyn Fn(Result<Launch<'_>, LaunchError>, usize) + 'a;

impl Bench {
    /// All kernels that memory limits.
    pub(crate) fn bandwidths(&self) {
        let bytes = 512 << 20;
        let from = self.stream.alloc_zeros::<u8>(bytes).unwrap();
        let mut to = self.stream.alloc_zeros::<u8>(bytes).unwrap();
        let copy = 2.0 * bytes as f64 / self.seconds(|| self.stream.memcpy_dtod(&from, &mut to).unwrap());
        println!("copy on the device: {:.0} GB/s read and written", copy / 1e9);
        drop((from, to));
        let report = |launch: Result<Launch<'_>, LaunchError>, bytes: usize| {
            let launch = launch.unwrap();
            let seconds = self.seconds_of(&launch);
            let rate = bytes as f64 / seconds;
            println!(
                "{:36} {:9.1} us {:7.0} MB {:7.0} GB/s {:5.1} % of a copy",
                launch.kernel(),
                seconds * 1e6,
                bytes as f64 / 1e6,
                rate / 1e9,
                100.0 * rate / copy
            );
        };
        self.norms(&report);
        self.activations(&report);
        self.rotary(&report);
        self.cross_entropy(&report);
        self.optimizer(&report);
    }

    fn norms(&self, report: &Report<'_>) {
        let count = TOKENS * HIDDEN;
        let (x, dy, residual) = (
            self.random(count, bf16::from_f32),
            self.random(count, bf16::from_f32),
            self.random(count, bf16::from_f32),
        );
        let (weight, bias) = (self.random(HIDDEN, bf16::from_f32), self.random(HIDDEN, bf16::from_f32));
        let (mut y, mut sum) = (x.clone(), weight.clone());
        for norm in [Norm::Rms, Norm::Layer] {
            let (rows, width) = (TOKENS, HIDDEN);
            let mut statistics = self.stream.alloc_zeros::<f32>(rows * norm.statistics()).unwrap();
            let (x, dy, residual) = (self.input(&x), self.input(&dy), self.input(&residual));
            let (weight, bias) = (self.input(&weight), self.input(&bias));
            let bias = (norm == Norm::Layer).then_some(&bias);
            report(
                norm::Forward {
                    norm,
                    x: &x,
                    weight: &weight,
                    bias,
                    y: &mut self.output(&mut y),
                    statistics: &mut self.output(&mut statistics),
                    rows,
                    width,
                    epsilon: 1e-5,
                }
                .launch(),
                4 * count,
            );
            let statistics = self.input(&statistics);
            report(
                BackwardInput {
                    norm,
                    x: &x,
                    weight: &weight,
                    statistics: &statistics,
                    dy: &dy,
                    residual: Some(&residual),
                    dx: &mut self.output(&mut y),
                    rows,
                    width,
                }
                .launch(),
                8 * count,
            );
            let shares = norm::shares(rows, width, Format::Bf16);
            let [mut weight_shares, mut bias_shares] =
                [0; 2].map(|_| self.stream.alloc_zeros::<f32>(shares * width).unwrap());
            let mut bias_output = (norm == Norm::Layer).then(|| self.output(&mut bias_shares));
            report(
                BackwardWeight {
                    norm,
                    x: &x,
                    statistics: &statistics,
                    dy: &dy,
                    weight_shares: &mut self.output(&mut weight_shares),
                    bias_shares: bias_output.as_mut(),
                    shares,
                    rows,
                    width,
                }
                .launch(),
                4 * count,
            );
            drop(bias_output);
            let shares_of = self.input(&weight_shares);
            let sum = &mut self.output(&mut sum);
            report(SumShares { shares_of: &shares_of, sum, shares, width }.launch(), 4 * shares * width);
        }
    }

    fn activations(&self, report: &Report<'_>) {
        let count = TOKENS * INTERMEDIATE;
        let [gate, up, dy] = [0; 3].map(|_| self.random(count, bf16::from_f32));
        let [mut dgate, mut dup, mut y] = [0; 3].map(|_| self.stream.alloc_zeros::<bf16>(count).unwrap());
        let (gate, up, dy) = (self.input(&gate), self.input(&up), self.input(&dy));
        let (dgate, dup, y) = (&mut self.output(&mut dgate), &mut self.output(&mut dup), &mut self.output(&mut y));
        report(SwiGluForward { gate: &gate, up: &up, y, count }.launch(), 6 * count);
        let backward = SwiGluBackward { gate: &gate, up: &up, dy: &dy, dgate, dup, y: Some(y), count };
        report(backward.launch(), 12 * count);
        report(GeluForward { x: &gate, y, count }.launch(), 4 * count);
        report(GeluBackward { x: &gate, dy: &dy, dx: y, y: None, count }.launch(), 6 * count);
    }

    fn rotary(&self, report: &Report<'_>) {
        let row = HEADS * HEAD_WIDTH;
        let x = self.random(TOKENS * row, bf16::from_f32);
        let mut y = x.clone();
        let table = self.random(TOKENS * HEAD_WIDTH / 2, |x| x);
        let rope = Rope {
            x: Some(&self.input(&x)),
            y: &mut self.output(&mut y),
            cosines: &self.input(&table),
            sines: &self.input(&table),
            tokens: TOKENS,
            sequence: TOKENS,
            heads: HEADS,
            width: HEAD_WIDTH,
            strides: (row, row),
            direction: Direction::Forward,
        };
        report(rope.launch(), 4 * TOKENS * row);
    }

    fn cross_entropy(&self, report: &Report<'_>) {
        let (rows, columns) = (LOGIT_ROWS, VOCABULARY);
        let mut logits = self.random(rows * columns, bf16::from_f32);
        let targets = self.random(rows, |x| ((x + 1.0) * 50_000.0) as u32);
        let targets = self.input(&targets);
        let [mut log_sums, mut hits] = [0; 2].map(|_| self.stream.alloc_zeros::<f32>(rows).unwrap());
        report(
            cross_entropy::Forward {
                logits: &self.input(&logits),
                targets: &targets,
                log_sums: &mut self.output(&mut log_sums),
                hits: &mut self.output(&mut hits),
                rows,
                columns,
                first: 0,
            }
            .launch(),
            2 * rows * columns,
        );
        let gradient = self.random(1, |_| 1.0f32);
        report(
            cross_entropy::Backward {
                logits: &mut self.output(&mut logits),
                targets: &targets,
                log_sums: &self.input(&log_sums),
                gradient: &self.input(&gradient),
                factor: 1.0 / rows as f32,
                rows,
                columns,
                first: 0,
            }
            .launch(),
            4 * rows * columns,
        );
    }

    fn optimizer(&self, report: &Report<'_>) {
        let count = HIDDEN * INTERMEDIATE;
        let (mut weights, narrow) = (self.random(count, bf16::from_f32), self.random(count, bf16::from_f32));
        let gradient = self.random(count, |x| x);
        let [mut master, mut first, mut second] = [0; 3].map(|_| self.stream.alloc_zeros::<f32>(count).unwrap());
        let step =
            AdamWStep { learning_rate: 1e-4, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, step: 10 };
        report(
            AdamW {
                weights: &mut self.output(&mut weights),
                master: Some(&mut self.output(&mut master)),
                first: &mut self.output(&mut first),
                second: &mut self.output(&mut second),
                gradient: &self.input(&gradient),
                count,
                step,
            }
            .launch(),
            (2 + 8 + 8 + 8 + 4) * count,
        );
        let (sum, gradient) = (&mut self.output(&mut master), &self.input(&narrow));
        report(Accumulate { sum, gradient, count, replace: false }.launch(), 10 * count);
    }
}
