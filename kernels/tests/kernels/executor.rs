//! Where launches run: on the emulator, or on an NVIDIA device.

use crate::emulator;
use cudarc::driver::{CudaContext, CudaStream, PinnedHostSlice};
use optpipe_kernels::cuda;
use optpipe_kernels::cuda::launch::{Kernels, Launch, LaunchError};
use std::sync::{Arc, LazyLock};

struct Gpu {
    stream: Arc<CudaStream>,
    kernels: Kernels,
}

/// The device that the environment asks for.
static GPU: LazyLock<Option<Gpu>> = LazyLock::new(|| match std::env::var("OPTPIPE_TEST_DEVICE").as_deref() {
    Err(_) | Ok("emulator") => None,
    Ok("cuda") => {
        // Says in one line what is missing, where something is.
        cuda::devices().unwrap_or_else(|error| panic!("{error}"));
        let context = CudaContext::new(0).unwrap();
        let kernels = Kernels::new(context.clone()).unwrap();
        Some(Gpu { stream: context.new_stream().unwrap(), kernels })
    }
    Ok(other) => panic!("OPTPIPE_TEST_DEVICE is emulator or cuda, not {other}"),
});

/// Runs a launch to its end.
#[track_caller]
pub(crate) fn run(launch: Result<Launch<'_>, LaunchError>) {
    let launch = launch.unwrap();
    match &*GPU {
        None => emulator::run(&launch),
        Some(gpu) => {
            gpu.kernels.run(&gpu.stream, &launch).unwrap();
            gpu.stream.synchronize().unwrap_or_else(|error| panic!("{}: {error}", launch.kernel()));
        }
    }
}

/// Memory that both the test and the kernels reach at the same address: on a device, pinned memory of the host.
/// Begins at a multiple of 16 bytes, as device memory does.
pub(crate) struct Memory {
    words: Words,
    bytes: usize,
}

enum Words {
    Host(Vec<[u64; 2]>),
    Pinned(PinnedHostSlice<u64>),
}

impl Memory {
    pub(crate) fn new(bytes: usize) -> Self {
        let vectors = bytes.div_ceil(16).max(1);
        let words = match &*GPU {
            None => Words::Host(vec![[0; 2]; vectors]),
            Some(gpu) => {
                // SAFETY: filled below.
                let mut pinned =
                    unsafe { gpu.stream.context().alloc_pinned_with_flags::<u64>(2 * vectors, 0) }.unwrap();
                pinned.as_mut_slice().unwrap().fill(0);
                Words::Pinned(pinned)
            }
        };
        Self { words, bytes }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let start: *const u8 = match &self.words {
            Words::Host(words) => words.as_ptr().cast(),
            Words::Pinned(words) => words.as_ptr().unwrap().cast(),
        };
        // SAFETY: the words are at least as many bytes, all initialised, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(start, self.bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let start: *mut u8 = match &mut self.words {
            Words::Host(words) => words.as_mut_ptr().cast(),
            Words::Pinned(words) => words.as_mut_ptr().unwrap().cast(),
        };
        // SAFETY: as in `bytes`, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(start, self.bytes) }
    }
}
