//! How fast the kernels run on the first GPU. Each row names the kernel and the time of one launch.
#![allow(clippy::unwrap_used)]

mod attention;
mod bandwidth;

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr};
use optpipe_kernels::cuda;
use optpipe_kernels::cuda::launch::{Element, Input, Kernels, Launch, Output};

/// Launches between two events.
const LAUNCHES: u32 = 20;
/// Of which the median counts.
const SAMPLES: usize = 7;

struct Bench {
    stream: Arc<CudaStream>,
    kernels: Kernels,
}

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

    /// Seconds of a launch.
    fn seconds_of(&self, launch: &Launch<'_>) -> f64 {
        self.seconds(|| self.kernels.run(&self.stream, launch).unwrap())
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
}

fn main() {
    if let Err(error) = cuda::devices() {
        println!("speed of the kernels: not measured, {error}");
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let bench = Bench { stream, kernels: Kernels::new(context).unwrap() };
    bench.bandwidths();
    bench.attentions();
}
