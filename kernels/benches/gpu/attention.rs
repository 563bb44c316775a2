//! How fast attention runs, in TFLOP/s of the products below the diagonal that are necessary: 2 forward, 5 backward,
//! of which the two kernels of the backward make 7. In bf16, at the shapes of a Llama-3-8B and a Llama-3.2-1B layer.

use half::bf16;
use optpipe_kernels::cuda::launch::{Launch, LaunchError};
use optpipe_kernels::cuda::ops::attention::{BackwardKeys, BackwardQueries, Forward, Mean, Saved, Shape};

use crate::Bench;

impl Bench {
    /// All shapes.
    pub(crate) fn attentions(&self) {
        for (head_dim, sequence) in [(128, 4096), (64, 4096), (128, 16384)] {
            self.attention(Shape { heads: 8, sequence, group: 4, head_dim, window: None });
        }
    }

    /// Seconds of a launch of so many operations.
    fn flops(&self, launch: Result<Launch<'_>, LaunchError>, operations: f64) -> f64 {
        let launch = launch.unwrap();
        let seconds = self.seconds_of(&launch);
        self.tflops(launch.kernel(), seconds, operations);
        seconds
    }

    fn tflops(&self, name: &str, seconds: f64, operations: f64) {
        println!("{name:36} {:9.1} us {:7.1} TFLOP/s", seconds * 1e6, operations / seconds / 1e12);
    }

    /// Forward and backward of one shape.
    fn attention(&self, shape: Shape) {
        println!("{shape:?}");
        let rows = shape.heads * shape.sequence * shape.group;
        let keys = shape.heads * shape.sequence * shape.head_dim;
        // A product of all rows and the keys up to their position.
        let product = (rows * shape.head_dim) as f64 * (shape.sequence + 1) as f64;
        let queries = self.random(keys * shape.group, |x| bf16::from_f32(x * 2.0 / (shape.head_dim as f32).sqrt()));
        let (mut output, mut dqueries, gradient) = (queries.clone(), queries.clone(), queries.clone());
        let (keys, values) = (self.random(keys, bf16::from_f32), self.random(keys, bf16::from_f32));
        let (mut dkeys, mut dvalues) = (keys.clone(), values.clone());
        let [mut log_sums, mut means] = [(); 2].map(|()| self.stream.alloc_zeros::<f32>(rows).unwrap());
        let (queries, keys, values, gradient) =
            (self.input(&queries), self.input(&keys), self.input(&values), self.input(&gradient));
        self.flops(
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
        let mut backward = self.flops(
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
        backward += self.flops(BackwardKeys { saved, dkeys, dvalues }.launch(), 4.0 * product);
        let dqueries = &mut self.output(&mut dqueries);
        backward += self.flops(BackwardQueries { saved, dqueries }.launch(), 3.0 * product);
        self.tflops("attention_backward", backward, 5.0 * product);
    }
}
