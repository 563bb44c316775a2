//! How much of the device's memory bandwidth the kernels reach, at the shapes of a Llama-3-8B block and head with
//! 4,096 tokens in bf16. Each operation should take as long as reading its inputs and writing its outputs once.
//!
//! Bandwidth is what a copy from device to device reaches, read and written. The operands of most rows are larger
//! than the L2 cache together; where they are not, more than the copy's bandwidth is possible.
#![allow(clippy::unwrap_used)]

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr};
use half::bf16;
use optpipe_kernels::cuda::launch::{Element, Input, Kernels, Launch, LaunchError, Output};
use optpipe_kernels::cuda::ops::activation::{GeluBackward, GeluForward, SwiGluBackward, SwiGluForward};
use optpipe_kernels::cuda::ops::cross_entropy;
use optpipe_kernels::cuda::ops::norm::{self, BackwardInput, BackwardWeight, Norm, SumShares};
use optpipe_kernels::cuda::ops::optimizer::{Accumulate, AdamW, AdamWStep};
use optpipe_kernels::cuda::ops::rotary::{Direction, Rope};
use optpipe_kernels::cuda::{self, launch::Format};
use std::sync::Arc;

const TOKENS: usize = 4096;
const HIDDEN: usize = 4096;
const INTERMEDIATE: usize = 14336;
const HEADS: usize = 32;
const HEAD_WIDTH: usize = 128;
const VOCABULARY: usize = 128_256;
/// Rows of logits at a time.
const LOGIT_ROWS: usize = 1024;

struct Bench {
    stream: Arc<CudaStream>,
    kernels: Kernels,
    /// Bytes a second.
    copy: f64,
}

/// Launches between two events.
const LAUNCHES: u32 = 20;
/// Of which the median counts.
const SAMPLES: usize = 7;

impl Bench {
    /// Seconds of one `work` among several, without the host's share.
    fn seconds(&self, mut work: impl FnMut()) -> f64 {
        let event = || self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        (0..3).for_each(|_| work());
        let mut samples: Vec<f64> = (0..SAMPLES)
            .map(|_| {
                let start = event();
                (0..LAUNCHES).for_each(|_| work());
                f64::from(start.elapsed_ms(&event()).unwrap()) / 1e3 / f64::from(LAUNCHES)
            })
            .collect();
        samples.sort_by(f64::total_cmp);
        samples[SAMPLES / 2]
    }

    fn report(&self, launch: Result<Launch<'_>, LaunchError>, bytes: usize) {
        let launch = launch.unwrap();
        let seconds = self.seconds(|| self.kernels.run(&self.stream, &launch).unwrap());
        let rate = bytes as f64 / seconds;
        println!(
            "{:32} {:9.1} us {:7.0} MB {:7.0} GB/s {:5.1} % of a copy",
            launch.kernel(),
            seconds * 1e6,
            bytes as f64 / 1e6,
            rate / 1e9,
            100.0 * rate / self.copy
        );
    }

    /// Numbers around 0, none of them special.
    fn random<T: DeviceRepr>(&self, count: usize, number: impl Fn(f32) -> T) -> CudaSlice<T> {
        let mut state = 1u32;
        let values: Vec<T> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                number((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
            })
            .collect();
        self.stream.clone_htod(&values).unwrap()
    }

    fn input<'a, T: Element>(&'a self, memory: &'a CudaSlice<T>) -> Input<'a> {
        Input::new(memory, &self.stream)
    }

    fn output<'a, T: Element>(&'a self, memory: &'a mut CudaSlice<T>) -> Output<'a> {
        Output::new(memory, &self.stream)
    }

    fn norms(&self) {
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
            self.report(
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
            self.report(
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
            self.report(
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
            self.report(SumShares { shares_of: &shares_of, sum, shares, width }.launch(), 4 * shares * width);
        }
    }

    fn activations(&self) {
        let count = TOKENS * INTERMEDIATE;
        let [gate, up, dy] = [0; 3].map(|_| self.random(count, bf16::from_f32));
        let [mut dgate, mut dup, mut y] = [0; 3].map(|_| self.stream.alloc_zeros::<bf16>(count).unwrap());
        let (gate, up, dy) = (self.input(&gate), self.input(&up), self.input(&dy));
        let (dgate, dup, y) = (&mut self.output(&mut dgate), &mut self.output(&mut dup), &mut self.output(&mut y));
        self.report(SwiGluForward { gate: &gate, up: &up, y, count }.launch(), 6 * count);
        let backward = SwiGluBackward { gate: &gate, up: &up, dy: &dy, dgate, dup, y: Some(y), count };
        self.report(backward.launch(), 12 * count);
        self.report(GeluForward { x: &gate, y, count }.launch(), 4 * count);
        self.report(GeluBackward { x: &gate, dy: &dy, dx: y, y: None, count }.launch(), 6 * count);
    }

    fn rotary(&self) {
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
        self.report(rope.launch(), 4 * TOKENS * row);
    }

    fn cross_entropy(&self) {
        let (rows, columns) = (LOGIT_ROWS, VOCABULARY);
        let mut logits = self.random(rows * columns, bf16::from_f32);
        let targets = self.random(rows, |x| ((x + 1.0) * 50_000.0) as u32);
        let targets = self.input(&targets);
        let [mut log_sums, mut hits] = [0; 2].map(|_| self.stream.alloc_zeros::<f32>(rows).unwrap());
        self.report(
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
        self.report(
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

    fn optimizer(&self) {
        let count = HIDDEN * INTERMEDIATE;
        let (mut weights, narrow) = (self.random(count, bf16::from_f32), self.random(count, bf16::from_f32));
        let gradient = self.random(count, |x| x);
        let [mut master, mut first, mut second] = [0; 3].map(|_| self.stream.alloc_zeros::<f32>(count).unwrap());
        let step =
            AdamWStep { learning_rate: 1e-4, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, step: 10 };
        self.report(
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
        self.report(Accumulate { sum, gradient, count, replace: false }.launch(), 10 * count);
    }
}

fn main() {
    if let Err(error) = cuda::devices() {
        println!("bandwidth of the kernels: not measured, {error}");
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let kernels = Kernels::new(context).unwrap();
    let mut bench = Bench { stream, kernels, copy: f64::NAN };
    let bytes = 512 << 20;
    let from = bench.stream.alloc_zeros::<u8>(bytes).unwrap();
    let mut to = bench.stream.alloc_zeros::<u8>(bytes).unwrap();
    bench.copy = 2.0 * bytes as f64 / bench.seconds(|| bench.stream.memcpy_dtod(&from, &mut to).unwrap());
    println!("copy on the device: {:.0} GB/s read and written", bench.copy / 1e9);
    drop((from, to));
    bench.norms();
    bench.activations();
    bench.rotary();
    bench.cross_entropy();
    bench.optimizer();
}
