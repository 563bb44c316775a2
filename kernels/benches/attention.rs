//! How fast attention runs, in TFLOP/s of the products below the diagonal that are necessary: 2 forward, 5 backward,
//! of which the two kernels of the backward make 7. In bf16, at the shapes of a Llama-3-8B and a Llama-3.2-1B layer.
#![allow(clippy::unwrap_used)]

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use half::bf16;
use optpipe_kernels::cuda;
use optpipe_kernels::cuda::launch::{Element, Input, Kernels, Launch, LaunchError, Output};
use optpipe_kernels::cuda::ops::attention::{BackwardKeys, BackwardQueries, Forward, Mean, Saved, Shape};
use std::sync::Arc;

/// Launches between two events.
const LAUNCHES: u32 = 20;
/// Of which the median counts.
const SAMPLES: usize = 7;

struct Bench {
    stream: Arc<CudaStream>,
    kernels: Kernels,
}

impl Bench {
    /// Seconds of a launch among several, without the host's share.
    fn report(&self, launch: Result<Launch<'_>, LaunchError>, operations: f64) -> f64 {
        let launch = launch.unwrap();
        let event = || self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        let work = || self.kernels.run(&self.stream, &launch).unwrap();
        (0..3).for_each(|_| work());
        let mut samples: Vec<f64> = (0..SAMPLES)
            .map(|_| {
                let start = event();
                (0..LAUNCHES).for_each(|_| work());
                f64::from(start.elapsed_ms(&event()).unwrap()) / 1e3 / f64::from(LAUNCHES)
            })
            .collect();
        samples.sort_by(f64::total_cmp);
        let seconds = samples[SAMPLES / 2];
        println!("{:36} {:9.1} us {:7.1} TFLOP/s", launch.kernel(), seconds * 1e6, operations / seconds / 1e12);
        seconds
    }

    /// Numbers around 0, none of them special.
    fn random(&self, count: usize, scale: f32) -> CudaSlice<bf16> {
        let mut state = 1u32;
        let values: Vec<bf16> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bf16::from_f32(scale * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0))
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

    fn attention(&self, shape: Shape) {
        println!("{shape:?}");
        let rows = shape.heads * shape.sequence * shape.group;
        let keys = shape.heads * shape.sequence * shape.head_dim;
        // A product of all rows and the keys up to their position.
        let product = (rows * shape.head_dim) as f64 * (shape.sequence + 1) as f64;
        let queries = self.random(keys * shape.group, 2.0 / (shape.head_dim as f32).sqrt());
        let (mut output, mut dqueries, gradient) = (queries.clone(), queries.clone(), queries.clone());
        let (keys, values) = (self.random(keys, 1.0), self.random(keys, 1.0));
        let (mut dkeys, mut dvalues) = (keys.clone(), values.clone());
        let [mut log_sums, mut means] = [(); 2].map(|()| self.stream.alloc_zeros::<f32>(rows).unwrap());
        let (queries, keys, values, gradient) =
            (self.input(&queries), self.input(&keys), self.input(&values), self.input(&gradient));
        self.report(
            Forward {
                queries: &queries,
                keys: &keys,
                values: &values,
                output: &mut self.output(&mut output),
                log_sums: &mut self.output(&mut log_sums),
                shape,
            }
            .launch(),
            2.0 * product,
        );
        let output = self.input(&output);
        let mut backward = self.report(
            Mean { output: &output, gradient: &gradient, means: &mut self.output(&mut means), shape }.launch(),
            0.0,
        );
        let (log_sums, means) = (self.input(&log_sums), self.input(&means));
        let saved = Saved {
            queries: &queries,
            keys: &keys,
            values: &values,
            gradient: &gradient,
            log_sums: &log_sums,
            means: &means,
            shape,
        };
        let (dkeys, dvalues) = (&mut self.output(&mut dkeys), &mut self.output(&mut dvalues));
        backward += self.report(BackwardKeys { saved, dkeys, dvalues }.launch(), 4.0 * product);
        let dqueries = &mut self.output(&mut dqueries);
        backward += self.report(BackwardQueries { saved, dqueries }.launch(), 3.0 * product);
        println!("{:36} {:9.1} us {:7.1} TFLOP/s", "backward", backward * 1e6, 5.0 * product / backward / 1e12);
    }
}

fn main() {
    if let Err(error) = cuda::devices() {
        println!("speed of attention: not measured, {error}");
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let bench = Bench { stream, kernels: Kernels::new(context).unwrap() };
    for (head_dim, sequence) in [(128, 4096), (64, 4096), (128, 16384)] {
        bench.attention(Shape { heads: 8, sequence, group: 4, head_dim, window: None });
    }
}
