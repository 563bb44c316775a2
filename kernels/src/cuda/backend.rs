//! The backend of NVIDIA GPUs.
//!
//! A device has three streams: one computes, one copies to the host, one back. candle computes on the first;
//! what another stream does with a tensor is ordered by cudarc's events, so that memory is neither freed nor
//! read too early. The host waits for a copy where it asks for one: copies have threads of their own, and
//! neither the thread that gives work to a device nor the device's compute stream waits with them.
//!
//! Where there are fewer GPUs than devices asked for, several devices share one: with streams and budgets of
//! their own, so that what they compute and what they hold is right, and times are not those of as many GPUs.

use std::sync::Arc;

use candle_core::op::BackpropOp;
use candle_core::{CudaDevice as Candle, CudaStorage, DType, Device, Storage, Tensor};
use cudarc::driver::sys::{self, CUevent_flags, CUmemPool_attribute_enum as Attribute};
use cudarc::driver::{CudaStream, DriverError, result};
use half::bf16;

use super::describe::bus_id;
use super::launch::Kernels;
use super::nvml::{Conditions, Library};
use super::ops::wait::Hold;
use super::pinned::PinnedSource;
use super::tensors;
use super::{CudaError, devices};
use crate::alloc::Usage;
use crate::arena::{HostPool, HostTensor};
use crate::backend::{Backend, BackendError, BackendKind, DeviceInfo, Stamp, one_of};
use crate::copy::CopyError;

/// How long [`Backend::hold`] keeps a device, ns: the host gives the launches of a layer in less.
const HELD_NS: u64 = 3_000_000;

/// NVIDIA GPUs as devices.
#[derive(Debug)]
pub struct CudaBackend {
    infos: Vec<DeviceInfo>,
    places: Vec<Place>,
    pool: HostPool,
    nvml: Library,
}

/// One device.
#[derive(Debug)]
struct Place {
    device: Device,
    bus_id: String,
    candle: Candle,
    offload: Arc<CudaStream>,
    reload: Arc<CudaStream>,
    kernels: Arc<Kernels>,
    memory: MemoryPool,
}

impl CudaBackend {
    /// So many devices, on as many GPUs as there are, in turn.
    ///
    /// # Errors
    /// [`BackendError::Devices`] for 0 devices; [`BackendError::Cuda`] where there is no GPU, or the driver
    /// refuses a stream or a library.
    pub fn new(count: usize) -> Result<Self, BackendError> {
        if count == 0 {
            let found = "at least 1 is needed".to_owned();
            return Err(BackendError::Devices { backend: BackendKind::Cuda, asked: 0, found });
        }
        let found = devices()?;
        let failed = |e: &dyn std::fmt::Display| CudaError::Driver(e.to_string());
        let (mut infos, mut places) = (Vec::new(), Vec::new());
        for index in 0..count {
            let ordinal = index % found.len();
            let gpu = &found[ordinal];
            infos.push(DeviceInfo {
                name: gpu.name.clone(),
                memory_bytes: gpu.memory_bytes,
                cores: gpu.multiprocessors,
            });
            places.push(Place::new(ordinal).map_err(|e| failed(&e))?);
        }
        let pool = HostPool::pinned(PinnedSource::new(Arc::clone(places[0].candle.cuda_stream().context())));
        Ok(CudaBackend { infos, places, pool, nvml: Library::load() })
    }

    fn place(&self, index: usize) -> candle_core::Result<&Place> {
        one_of(&self.places, index)
    }

    fn place_of(&self, tensor: &Tensor) -> Result<&Place, CopyError> {
        let own = self.places.iter().find(|place| place.device.same_device(tensor.device()));
        own.ok_or_else(|| CopyError::NotOnDevice(tensor.device().location()))
    }
}

impl Place {
    fn new(ordinal: usize) -> candle_core::Result<Place> {
        let device = Device::new_cuda_with_stream(ordinal)?;
        let candle = device.as_cuda_device()?.clone();
        let context = Arc::clone(candle.cuda_stream().context());
        let stream = || context.new_stream().map_err(candle_core::Error::wrap);
        let (offload, reload) = (stream()?, stream()?);
        let kernels = tensors::kernels(&candle)?;
        let memory = MemoryPool::of(ordinal).map_err(candle_core::Error::wrap)?;
        memory.keep_all().map_err(candle_core::Error::wrap)?;
        let bus_id = bus_id(context.cu_device()).map_err(candle_core::Error::wrap)?;
        Ok(Place { device, bus_id, candle, offload, reload, kernels, memory })
    }
}

impl Backend for CudaBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Cuda
    }

    fn clock(&self) -> &'static str {
        "cuda events"
    }

    fn devices(&self) -> &[DeviceInfo] {
        &self.infos
    }

    fn physical(&self, index: usize) -> usize {
        self.places.get(index).map_or(index, |place| place.candle.cuda_stream().context().ordinal())
    }

    fn device(&self, index: usize) -> candle_core::Result<&Device> {
        self.place(index).map(|place| &place.device)
    }

    fn synchronise(&self, index: usize) -> candle_core::Result<()> {
        self.place(index)?.candle.cuda_stream().synchronize().map_err(candle_core::Error::wrap)
    }

    fn offload(&self, tensor: &Tensor) -> Result<HostTensor, CopyError> {
        let place = self.place_of(tensor)?;
        let rows = tensor.contiguous()?;
        let mut buffer = self.pool.take(rows.elem_count() * rows.dtype().size_in_bytes())?;
        let to = buffer.as_mut_slice();
        match rows.dtype() {
            DType::U8 => copy_out::<u8>(place, &rows, to)?,
            DType::U32 => copy_out::<u32>(place, &rows, to)?,
            DType::I64 => copy_out::<i64>(place, &rows, to)?,
            DType::BF16 => copy_out::<bf16>(place, &rows, to)?,
            DType::F32 => copy_out::<f32>(place, &rows, to)?,
            DType::F64 => copy_out::<f64>(place, &rows, to)?,
            other => return Err(CopyError::Dtype(other)),
        }
        Ok(HostTensor { buffer, dtype: tensor.dtype(), shape: tensor.shape().clone() })
    }

    fn reload(&self, host: &HostTensor, index: usize) -> Result<Tensor, CopyError> {
        let place = self.place(index)?;
        let from = host.buffer.as_slice();
        let storage = match host.dtype {
            DType::U8 => copy_in::<u8>(place, from)?,
            DType::U32 => copy_in::<u32>(place, from)?,
            DType::I64 => copy_in::<i64>(place, from)?,
            DType::BF16 => copy_in::<bf16>(place, from)?,
            DType::F32 => copy_in::<f32>(place, from)?,
            DType::F64 => copy_in::<f64>(place, from)?,
            other => return Err(CopyError::Dtype(other)),
        };
        Ok(Tensor::from_storage(Storage::Cuda(storage), host.shape.clone(), BackpropOp::none(), false))
    }

    fn send(&self, tensor: &Tensor, to: usize) -> candle_core::Result<Tensor> {
        let device = self.device(to)?;
        if tensor.device().same_device(device) { tensor.copy() } else { tensor.contiguous()?.to_device(device) }
    }

    fn prepare_host(&self, sizes: &[usize]) -> Result<(), CopyError> {
        self.pool.prepare(sizes)
    }

    fn stamp(&self, index: usize) -> candle_core::Result<Stamp> {
        let stream = self.place(index)?.candle.cuda_stream();
        let event = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(candle_core::Error::wrap)?;
        Ok(Stamp::cuda(event))
    }

    fn hold(&self, index: usize) -> candle_core::Result<()> {
        let place = self.place(index)?;
        let launch = Hold { ns: HELD_NS }.launch().map_err(candle_core::Error::wrap)?;
        place.kernels.run(&place.candle.cuda_stream(), &launch).map_err(candle_core::Error::wrap)
    }

    fn measure(&self, index: usize, operation: &mut dyn FnMut()) -> candle_core::Result<Option<Usage>> {
        let memory = &self.place(index)?.memory;
        self.synchronise(index)?;
        let before = memory.restart_peak().map_err(candle_core::Error::wrap)?;
        operation();
        self.synchronise(index)?;
        let peak = memory.read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH).map_err(candle_core::Error::wrap)?;
        let after = memory.read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT).map_err(candle_core::Error::wrap)?;
        Ok(Some(Usage { peak_bytes: peak.saturating_sub(before), kept_bytes: after as i64 - before as i64 }))
    }

    fn conditions(&self, index: usize) -> Option<Conditions> {
        Some(self.nvml.conditions(&self.place(index).ok()?.bus_id))
    }

    fn trim(&self) {
        self.pool.trim();
    }
}

/// Copies a contiguous tensor to the host and waits for it.
fn copy_out<T: tensors::Number>(place: &Place, tensor: &Tensor, to: &mut [u8]) -> Result<(), CopyError> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return Err(CopyError::NotOnDevice(tensor.device().location())) };
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(candle_core::Error::msg("a contiguous tensor was expected").into());
    };
    if start == end {
        return Ok(());
    }
    let from = storage.as_cuda_slice::<T>()?.slice(start..end);
    let refused = |e: DriverError| CopyError::Driver(e.to_string());
    place.offload.memcpy_dtoh(&from, T::of_bytes_mut(to)).map_err(refused)?;
    place.offload.synchronize().map_err(refused)
}

/// Copies from the host into new memory and waits for it.
fn copy_in<T: tensors::Number>(place: &Place, from: &[u8]) -> Result<CudaStorage, CopyError> {
    let refused = |e: DriverError| CopyError::Driver(e.to_string());
    let from = T::of_bytes(from);
    // SAFETY: every element is written by the copy below, on the same stream.
    let mut to = unsafe { place.reload.alloc::<T>(from.len()) }.map_err(refused)?;
    if !from.is_empty() {
        place.reload.memcpy_htod(from, &mut to).map_err(refused)?;
    }
    place.reload.synchronize().map_err(refused)?;
    Ok(CudaStorage::wrap_cuda_slice(to, place.candle.clone()))
}

/// The driver's pool of a GPU's memory, from which streams allocate.
#[derive(Debug, Clone, Copy)]
struct MemoryPool(sys::CUmemoryPool);

// SAFETY: a handle that the driver lets any thread use, for as long as the process lives.
unsafe impl Send for MemoryPool {}
// SAFETY: as above.
unsafe impl Sync for MemoryPool {}

impl MemoryPool {
    fn of(ordinal: usize) -> Result<Self, DriverError> {
        let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
        // SAFETY: `device` comes from the driver.
        Ok(MemoryPool(unsafe { result::device::get_mem_pool(device) }?))
    }

    /// Freed memory stays with the process: giving it back and asking for it anew costs milliseconds.
    fn keep_all(self) -> Result<(), DriverError> {
        self.write(Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
    }

    /// Counts the peak anew from what is used now, and returns that, bytes.
    fn restart_peak(self) -> Result<u64, DriverError> {
        self.write(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)?;
        self.read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    }

    fn read(self, attribute: Attribute) -> Result<u64, DriverError> {
        let mut value = 0_u64;
        // SAFETY: the pool lives as long as the process; these attributes are 64-bit numbers.
        unsafe { sys::cuMemPoolGetAttribute(self.0, attribute, (&raw mut value).cast()) }.result()?;
        Ok(value)
    }

    fn write(self, attribute: Attribute, mut value: u64) -> Result<(), DriverError> {
        // SAFETY: as above.
        unsafe { sys::cuMemPoolSetAttribute(self.0, attribute, (&raw mut value).cast()) }.result()
    }
}
