//! Own kernels on candle's tensors.
//!
//! Each function puts its kernels on the stream of the tensors' device and returns before they have run. A
//! kernel that is launched for the first time is compiled first.

mod activation;
mod attention;
mod loss;
mod norm;
mod optimizer;
mod rotary;

pub use activation::{gelu, gelu_backward, swiglu, swiglu_backward};
pub use attention::{Backward as AttentionBackward, attention, attention_backward, takes_heads};
pub use loss::{cross_entropy_backward, log_sum_exp};
pub use norm::{norm_apply, norm_backward_input, norm_backward_weight, norm_forward};
pub use optimizer::{OptimizerStates, Step, accumulate};
pub use rotary::rope;

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, DeviceLocation, Layout, Result, Shape, Storage, Tensor, bail};
use cudarc::driver::{CudaSlice, CudaStream, CudaView, DeviceRepr};
use half::bf16;

use super::launch::{Input, Kernels, Launch, LaunchError, Output};

/// Numbers that are copied between devices and the host.
pub(super) trait Number: CudaDType + DeviceRepr + Copy {
    /// The numbers that these bytes are, to be written; the memory is aligned for them, as tensors in all of a pool's
    /// buffers are.
    fn of_bytes_mut(bytes: &mut [u8]) -> &mut [Self] {
        // SAFETY: every bit pattern is a number of the formats that implement this.
        unsafe { bytes.align_to_mut() }.1
    }
}

impl Number for u8 {}
impl Number for u32 {}
impl Number for i64 {}
impl Number for bf16 {}
impl Number for f32 {}
impl Number for f64 {}

/// The kernels of a device's GPU, compiled once for the process.
///
/// # Errors
/// A driver that does not tell the compute capability.
pub fn kernels(device: &CudaDevice) -> Result<Arc<Kernels>> {
    static LOADED: OnceLock<Mutex<HashMap<usize, Arc<Kernels>>>> = OnceLock::new();
    let DeviceLocation::Cuda { gpu_id } = device.location() else { bail!("a CUDA device was expected") };
    let mut loaded = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kernels) = loaded.get(&gpu_id) {
        return Ok(Arc::clone(kernels));
    }
    let kernels = Arc::new(Kernels::new(Arc::clone(device.cuda_stream().context())).map_err(wrapped)?);
    loaded.insert(gpu_id, Arc::clone(&kernels));
    Ok(kernels)
}

fn wrapped(error: LaunchError) -> candle_core::Error {
    candle_core::Error::msg(error)
}

/// Where kernels run.
struct Place {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    kernels: Arc<Kernels>,
}

impl Place {
    fn of(device: &CudaDevice) -> Result<Place> {
        Ok(Place { device: device.clone(), stream: device.cuda_stream(), kernels: kernels(device)? })
    }

    fn run(&self, launch: std::result::Result<Launch<'_>, LaunchError>) -> Result<()> {
        self.kernels.run(&self.stream, &launch.map_err(wrapped)?).map_err(wrapped)
    }

    /// Memory for a result, which holds nothing yet.
    fn fresh(&self, dtype: DType, count: usize) -> Result<Fresh> {
        let refused = candle_core::Error::wrap;
        // SAFETY: the kernels that get it write every element before anyone reads one.
        unsafe {
            match dtype {
                DType::F32 => Ok(Fresh::F32(self.stream.alloc(count).map_err(refused)?)),
                DType::BF16 => Ok(Fresh::Bf16(self.stream.alloc(count).map_err(refused)?)),
                other => bail!("own kernels compute in f32 and bf16, not in {}", other.as_str()),
            }
        }
    }

    fn tensor(&self, fresh: Fresh, shape: impl Into<Shape>) -> Tensor {
        let storage = match fresh {
            Fresh::F32(slice) => CudaStorage::wrap_cuda_slice(slice, self.device.clone()),
            Fresh::Bf16(slice) => CudaStorage::wrap_cuda_slice(slice, self.device.clone()),
        };
        Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
    }
}

/// A result's memory.
enum Fresh {
    F32(CudaSlice<f32>),
    Bf16(CudaSlice<bf16>),
}

impl Fresh {
    /// What kernels have written into it.
    fn view(&self) -> View<'_> {
        match self {
            Fresh::F32(slice) => View::F32(slice.slice(..)),
            Fresh::Bf16(slice) => View::Bf16(slice.slice(..)),
        }
    }

    fn output<'a>(&'a mut self, place: &'a Place) -> Output<'a> {
        match self {
            Fresh::F32(slice) => Output::new(slice, &place.stream),
            Fresh::Bf16(slice) => Output::new(slice, &place.stream),
        }
    }
}

/// A tensor that is read: contiguous, on a CUDA device.
struct Held<S> {
    storage: S,
    start: usize,
    end: usize,
}

/// Keeps a tensor's storage from being written.
fn held(tensor: &Tensor) -> Result<Held<impl Deref<Target = Storage> + '_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = window(layout)?;
    Ok(Held { storage, start, end })
}

impl<S: Deref<Target = Storage>> Held<S> {
    fn view(&self) -> Result<View<'_>> {
        match &*self.storage {
            Storage::Cuda(storage) => View::of(storage, self.start, self.end),
            _ => bail!("own kernels read tensors of CUDA devices"),
        }
    }
}

/// Numbers in device memory.
enum View<'a> {
    F32(CudaView<'a, f32>),
    Bf16(CudaView<'a, bf16>),
    U32(CudaView<'a, u32>),
}

impl<'a> View<'a> {
    fn of(storage: &'a CudaStorage, start: usize, end: usize) -> Result<View<'a>> {
        match &storage.slice {
            CudaStorageSlice::F32(slice) => Ok(View::F32(slice.slice(start..end))),
            CudaStorageSlice::BF16(slice) => Ok(View::Bf16(slice.slice(start..end))),
            CudaStorageSlice::U32(slice) => Ok(View::U32(slice.slice(start..end))),
            _ => bail!("own kernels read f32, bf16 and u32"),
        }
    }

    fn input<'b>(&'b self, place: &'b Place) -> Input<'b> {
        match self {
            View::F32(view) => Input::new(view, &place.stream),
            View::Bf16(view) => Input::new(view, &place.stream),
            View::U32(view) => Input::new(view, &place.stream),
        }
    }
}

fn window(layout: &Layout) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(window) => Ok(window),
        None => bail!("own kernels work on contiguous tensors"),
    }
}

/// Whether own kernels take a tensor: on a CUDA device, in f32 or bf16.
pub fn takes(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::BF16)
}
