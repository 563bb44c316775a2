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

use candle_core::{CudaDevice as Candle, Device, Tensor};
use cudarc::driver::sys::{CUdevice_attribute_enum as DeviceAttribute, CUevent_flags};
use cudarc::driver::{CudaContext, CudaStream, result};

use super::affinity::{Affinity, near_processors};
use super::describe::bus_id;
use super::launch::Kernels;
use super::nvml::{Conditions, Library};
use super::ops::wait::Hold;
use super::pinned::PinnedSource;
use super::pool::MemoryPool;
use super::{CudaError, copies, devices, peers, tensors};
use crate::alloc::Usage;
use crate::arena::{HostPool, HostTensors};
use crate::backend::{Backend, BackendError, BackendKind, DeviceInfo, Stamp, one_of};
use crate::copy::CopyError;

/// NVIDIA GPUs as devices.
#[derive(Debug)]
pub struct CudaBackend {
    infos: Vec<DeviceInfo>,
    places: Vec<Place>,
    nvml: Library,
}

/// One device.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) device: Device,
    pub(super) candle: Candle,
    /// Copies to the host.
    pub(super) offload: Arc<CudaStream>,
    /// Copies back.
    pub(super) reload: Arc<CudaStream>,
    /// Host memory near the device.
    pub(super) host: HostPool,
    bus_id: String,
    /// The processors near it, where they are known.
    processors: Option<String>,
    kernels: Arc<Kernels>,
    pub(super) memory: MemoryPool,
}

impl CudaBackend {
    /// So many devices, on as many GPUs as there are, in turn.
    ///
    /// # Errors
    /// [`BackendError::Devices`] for 0 devices; [`BackendError::Cuda`] where there is no GPU, one without an
    /// allocator in the order of streams, or the driver refuses a stream or a library.
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
            if !has_memory_pools(ordinal).map_err(|e| failed(&e))? {
                return Err(CudaError::NoMemoryPools { ordinal, name: gpu.name.clone() }.into());
            }
            places.push(Place::new(ordinal).map_err(|e| failed(&e))?);
        }
        peers::connect(&places).map_err(|e| failed(&e))?;
        Ok(CudaBackend { infos, places, nvml: Library::load() })
    }

    fn place(&self, index: usize) -> candle_core::Result<&Place> {
        one_of(&self.places, index)
    }

    fn place_of(&self, tensor: &Tensor) -> Result<&Place, CopyError> {
        let own = self.places.iter().find(|place| place.device.same_device(tensor.device()));
        own.ok_or_else(|| CopyError::NotOnDevice(tensor.device().location()))
    }
}

/// Whether a GPU allocates and frees memory in the order of streams. Without, a tensor that is dropped would
/// block the host until its device rests, and nothing would tell how much memory is held.
fn has_memory_pools(ordinal: usize) -> Result<bool, result::DriverError> {
    let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
    let attribute = DeviceAttribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
    // SAFETY: `device` comes from the driver.
    Ok(unsafe { result::device::get_attribute(device, attribute) }? > 0)
}

impl Place {
    fn new(ordinal: usize) -> candle_core::Result<Place> {
        let device = Device::new_cuda_with_stream(ordinal)?;
        let candle = device.as_cuda_device()?.clone();
        let refused = candle_core::Error::wrap;
        let context = Arc::clone(candle.cuda_stream().context());
        // Where both could go on, a copy goes first: it takes little of the device, and an op may wait for it.
        context.bind_to_thread().map_err(refused)?;
        let (_, first) = result::stream::get_priority_range().map_err(refused)?;
        let stream = || context.new_stream_with_priority(first).map_err(refused);
        let (offload, reload) = (stream()?, stream()?);
        let kernels = tensors::kernels(&candle)?;
        let memory = MemoryPool::of(ordinal).map_err(refused)?;
        memory.prepare().map_err(refused)?;
        let bus_id = bus_id(context.cu_device()).map_err(refused)?;
        let processors = near_processors(&bus_id).ok();
        let host = HostPool::pinned(PinnedSource::new(context, processors.clone()));
        Ok(Place { device, candle, offload, reload, host, bus_id, processors, kernels, memory })
    }

    /// Its GPU's context.
    pub(super) fn context(&self) -> Arc<CudaContext> {
        Arc::clone(self.candle.cuda_stream().context())
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
        self.places.get(index).map_or(index, |place| place.context().ordinal())
    }

    fn device(&self, index: usize) -> candle_core::Result<&Device> {
        self.place(index).map(|place| &place.device)
    }

    fn synchronise(&self, index: usize) -> candle_core::Result<()> {
        self.place(index)?.candle.cuda_stream().synchronize().map_err(candle_core::Error::wrap)
    }

    fn offload(&self, tensors: &[Tensor]) -> Result<HostTensors, CopyError> {
        let Some(first) = tensors.first() else { return HostTensors::like(&[], &HostPool::new()) };
        copies::out(self.place_of(first)?, tensors)
    }

    fn reload(&self, host: &HostTensors, index: usize) -> Result<Vec<Tensor>, CopyError> {
        copies::back(self.place(index)?, host)
    }

    fn send(&self, tensor: &Tensor, to: usize) -> candle_core::Result<Tensor> {
        let target = self.place(to)?;
        if tensor.device().same_device(&target.device) {
            return tensor.copy();
        }
        copies::across(self.place_of(tensor).map_err(candle_core::Error::wrap)?, target, tensor)
    }

    fn prepare_host(&self, index: usize, sizes: &[usize]) -> Result<(), CopyError> {
        self.place(index)?.host.prepare(sizes)
    }

    fn near(&self, index: usize) -> Option<Affinity> {
        // Where the thread may not move, copies are slower, not wrong.
        Affinity::near(self.places.get(index)?.processors.as_ref()?).ok()
    }

    fn stamp(&self, index: usize) -> candle_core::Result<Stamp> {
        let stream = self.place(index)?.candle.cuda_stream();
        let event = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(candle_core::Error::wrap)?;
        Ok(Stamp::cuda(event))
    }

    fn hold(&self, index: usize, ns: u64) -> candle_core::Result<Option<Stamp>> {
        let place = self.place(index)?;
        let launch = Hold { ns }.launch().map_err(candle_core::Error::wrap)?;
        place.kernels.run(&place.candle.cuda_stream(), &launch).map_err(candle_core::Error::wrap)?;
        self.stamp(index).map(Some)
    }

    fn measure(&self, index: usize, operation: &mut dyn FnMut()) -> candle_core::Result<Option<Usage>> {
        let memory = &self.place(index)?.memory;
        self.synchronise(index)?;
        let before = memory.restart_peak().map_err(candle_core::Error::wrap)?;
        operation();
        self.synchronise(index)?;
        let peak = memory.peak().map_err(candle_core::Error::wrap)?;
        let after = memory.used().map_err(candle_core::Error::wrap)?;
        Ok(Some(Usage { peak_bytes: peak.saturating_sub(before), kept_bytes: after as i64 - before as i64 }))
    }

    fn restart_peak(&self, index: usize) -> candle_core::Result<()> {
        self.place(index)?.memory.restart_peak().map(drop).map_err(candle_core::Error::wrap)
    }

    fn peak_bytes(&self, index: usize) -> candle_core::Result<Option<u64>> {
        let place = self.place(index)?;
        let shared = (0..self.places.len()).any(|other| other != index && self.physical(other) == self.physical(index));
        let peak = (!shared).then(|| place.memory.peak()).transpose();
        peak.map_err(candle_core::Error::wrap)
    }

    fn conditions(&self, index: usize) -> Option<Conditions> {
        Some(self.nvml.conditions(&self.place(index).ok()?.bus_id))
    }

    fn trim(&self) {
        self.places.iter().for_each(|place| place.host.trim());
    }
}
