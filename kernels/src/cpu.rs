//! The backend of this machine's processor: a device is a thread, its memory a share of the
//! machine's, and the host is the same memory once more, in buffers of its own. Copies between the
//! two are real copies.

use std::num::NonZeroUsize;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, WithDType};

use crate::alloc::{self, Usage};
use crate::arena::{HostPool, HostTensors, Part};
use crate::backend::{Backend, BackendError, BackendKind, DeviceInfo, Stamp, one_of};
use crate::copy::CopyError;
use crate::reuse;

/// The processor as `devices` devices.
#[derive(Debug)]
pub struct CpuBackend {
    devices: Vec<DeviceInfo>,
    device: Device,
    pool: HostPool,
}

impl CpuBackend {
    /// The processor as `devices` devices, each of which has the machine's memory and cores: they
    /// share both.
    ///
    /// # Errors
    /// [`BackendError::Devices`] for 0 devices, [`BackendError::System`] if the machine's memory
    /// cannot be found out.
    pub fn new(devices: usize) -> Result<Self, BackendError> {
        if devices == 0 {
            let found = "at least 1 is needed".to_owned();
            return Err(BackendError::Devices { backend: BackendKind::Cpu, asked: 0, found });
        }
        let info = DeviceInfo { name: processor_name(), memory_bytes: memory_bytes()?, cores: cores() };
        Ok(CpuBackend { devices: vec![info; devices], device: Device::Cpu, pool: HostPool::new() })
    }

    /// The host buffers.
    pub fn pool(&self) -> &HostPool {
        &self.pool
    }
}

impl Backend for CpuBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Cpu
    }

    fn clock(&self) -> &'static str {
        "monotonic"
    }

    fn devices(&self) -> &[DeviceInfo] {
        &self.devices
    }

    fn device(&self, index: usize) -> candle_core::Result<&Device> {
        one_of(&self.devices, index).map(|_| &self.device)
    }

    fn synchronise(&self, index: usize) -> candle_core::Result<()> {
        self.device(index)?.synchronize()
    }

    fn offload(&self, tensors: &[Tensor]) -> Result<HostTensors, CopyError> {
        let mut host = HostTensors::like(tensors, &self.pool)?;
        for (index, tensor) in tensors.iter().enumerate() {
            copy_out(tensor, host.values_mut(index))?;
        }
        Ok(host)
    }

    fn reload(&self, host: &HostTensors, index: usize) -> Result<Vec<Tensor>, CopyError> {
        self.device(index)?;
        let copy_in = |(part, bytes): (&Part, &[u8])| {
            let storage = match part.dtype {
                DType::U8 => CpuStorage::U8(values_of(bytes)),
                DType::U32 => CpuStorage::U32(values_of(bytes)),
                DType::I64 => CpuStorage::I64(values_of(bytes)),
                DType::BF16 => CpuStorage::BF16(values_of(bytes)),
                DType::F32 => CpuStorage::F32(values_of(bytes)),
                DType::F64 => CpuStorage::F64(values_of(bytes)),
                other => return Err(CopyError::Dtype(other)),
            };
            Ok(Tensor::from_storage(Storage::Cpu(storage), part.shape.clone(), BackpropOp::none(), false))
        };
        host.parts().map(copy_in).collect()
    }

    fn send(&self, tensor: &Tensor, to: usize) -> candle_core::Result<Tensor> {
        self.device(to)?;
        tensor.copy()
    }

    fn prepare_host(&self, _index: usize, sizes: &[usize]) -> Result<(), CopyError> {
        self.pool.prepare(sizes)
    }

    fn stamp(&self, index: usize) -> candle_core::Result<Stamp> {
        self.device(index).map(|_| Stamp::host())
    }

    fn measure(&self, index: usize, operation: &mut dyn FnMut()) -> candle_core::Result<Option<Usage>> {
        self.device(index)?;
        Ok(alloc::measure(operation).1)
    }

    fn trim(&self) {
        self.pool.trim();
        reuse::release();
    }
}

/// Copies a tensor's values to host memory of as many bytes.
fn copy_out(tensor: &Tensor, to: &mut [u8]) -> Result<(), CopyError> {
    // A view that is not in rows becomes one that is, as candle does it before any operation.
    let rows = tensor.contiguous()?;
    let (storage, layout) = rows.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { return Err(CopyError::NotOnDevice(rows.device().location())) };
    let (start, length) = (layout.start_offset(), layout.shape().elem_count());
    let bytes = match storage {
        CpuStorage::U8(values) => bytes_of(&values[start..start + length]),
        CpuStorage::U32(values) => bytes_of(&values[start..start + length]),
        CpuStorage::I64(values) => bytes_of(&values[start..start + length]),
        CpuStorage::BF16(values) => bytes_of(&values[start..start + length]),
        CpuStorage::F32(values) => bytes_of(&values[start..start + length]),
        CpuStorage::F64(values) => bytes_of(&values[start..start + length]),
        _ => return Err(CopyError::Dtype(tensor.dtype())),
    };
    to.copy_from_slice(bytes);
    Ok(())
}

/// The bytes that the values consist of.
fn bytes_of<T: WithDType>(values: &[T]) -> &[u8] {
    // SAFETY: the pointer and the length in bytes are those of `values`, which the result borrows; the
    // number formats copied here are plain numbers without padding, and any byte is a u8.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }
}

/// The values that consist of these bytes; a rest shorter than one value is left out.
fn values_of<T: WithDType>(bytes: &[u8]) -> Vec<T> {
    let count = bytes.len() / size_of::<T>();
    let mut values: Vec<T> = Vec::with_capacity(count);
    // SAFETY: the vector has room for `count` values, and `bytes` holds as many; the two do not
    // overlap, the vector being new; every bit pattern is a value of the number formats copied here.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), values.as_mut_ptr().cast::<u8>(), count * size_of::<T>());
        values.set_len(count);
    }
    values
}

/// Why the number of threads an operation uses could not be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot limit an operation to {threads} threads: {why}; start the program with RAYON_NUM_THREADS={threads} and CANDLE_NUM_THREADS={threads}"
)]
pub struct ThreadsError {
    /// Threads asked for.
    pub threads: usize,
    /// What is in the way.
    pub why: String,
}

/// Limits every tensor operation of the process to `threads` threads, the calling one included. To be
/// called first thing in `main`: with 1, a device thread computes on its own core, and devices
/// neither share nor steal each other's threads.
///
/// candle has two ways of going parallel. A matrix product asks the environment for
/// `RAYON_NUM_THREADS` each time (without it, it counts the cores by reading `/proc/cpuinfo`, each
/// time) and with 1 runs on the calling thread. Elementwise operations on 65,536 numbers and more use
/// one pool for the process, made at the first use with `CANDLE_NUM_THREADS` (or else
/// `RAYON_NUM_THREADS`) minus 1 helpers; with any helper, all callers queue for it behind one lock, so
/// that devices would wait for each other. Running an operation inside a rayon pool of one thread
/// would bind only the matrix product. So the
/// environment it is.
///
/// # Errors
/// [`ThreadsError`] if other threads run already (changing the environment would be a data race) and
/// the environment does not say the same anyway.
pub fn init_threads(threads: NonZeroUsize) -> Result<(), ThreadsError> {
    const NAMES: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];
    let wanted = threads.to_string();
    if NAMES.iter().all(|name| std::env::var(name).is_ok_and(|value| value == wanted)) {
        return Ok(());
    }
    let running = std::fs::read_dir("/proc/self/task")
        .map_err(|e| ThreadsError { threads: threads.get(), why: format!("cannot count this process's threads: {e}") })?
        .count();
    if running != 1 {
        return Err(ThreadsError { threads: threads.get(), why: format!("{running} threads run already") });
    }
    for name in NAMES {
        // SAFETY: the calling thread is the process's only one, so that none reads the environment
        // meanwhile, and none can start before the call is over.
        unsafe { std::env::set_var(name, &wanted) };
    }
    Ok(())
}

/// Cores that the process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// The processor's name, or its architecture where the system does not tell.
fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The machine's memory, bytes, or the limit of the control group if that is less.
fn memory_bytes() -> Result<u64, BackendError> {
    let failed = |message: String| BackendError::System { what: "the memory in /proc/meminfo".to_owned(), message };
    let text = std::fs::read_to_string("/proc/meminfo").map_err(|e| failed(e.to_string()))?;
    let total = meminfo_total(&text).ok_or_else(|| failed("no line `MemTotal: <number> kB`".to_owned()))?;
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limits.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    Ok(limit.map_or(total, |limit| limit.min(total)))
}

fn meminfo_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// Bits of a tensor, whatever its number format.
    fn bits(tensor: &Tensor) -> Vec<u8> {
        let flat = tensor.flatten_all().unwrap();
        let (storage, layout) = flat.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { panic!("not on the CPU") };
        let (start, end) = layout.contiguous_offsets().unwrap();
        match storage {
            CpuStorage::U8(v) => bytes_of(&v[start..end]).to_vec(),
            CpuStorage::U32(v) => bytes_of(&v[start..end]).to_vec(),
            CpuStorage::I64(v) => bytes_of(&v[start..end]).to_vec(),
            CpuStorage::BF16(v) => bytes_of(&v[start..end]).to_vec(),
            CpuStorage::F32(v) => bytes_of(&v[start..end]).to_vec(),
            CpuStorage::F64(v) => bytes_of(&v[start..end]).to_vec(),
            _ => panic!("unexpected number format"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// NaNs with payloads, infinities, negative zeros: whatever bits there are come back.
        #[test]
        fn what_was_offloaded_comes_back_bit_by_bit(
            words in proptest::collection::vec(any::<u64>(), 1..600),
            dtype in prop::sample::select(vec![DType::U8, DType::U32, DType::I64, DType::BF16, DType::F32, DType::F64]),
        ) {
            let backend = CpuBackend::new(2).unwrap();
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let shape = (words.len(), 8 / dtype.size_in_bytes());
            let device = Device::Cpu;
            let original = Tensor::from_raw_buffer(&bytes, dtype, &[shape.0, shape.1], &device).unwrap();
            let other = Tensor::from_raw_buffer(&bytes[..8], DType::U8, &[8], &device).unwrap();
            let host = backend.offload(&[other.clone(), original.clone()]).unwrap();
            prop_assert_eq!(host.bytes(), 8 + bytes.len() as u64);
            let expected = [bits(&other), bits(&original)];
            drop((other, original));
            let back = backend.reload(&host, 1).unwrap();
            prop_assert_eq!((back[1].dtype(), back[1].dims2().unwrap()), (dtype, shape));
            prop_assert_eq!([bits(&back[0]), bits(&back[1])], expected);
        }
    }

    #[test]
    fn views_are_stored_as_what_they_show() {
        let backend = CpuBackend::new(1).unwrap();
        let whole = Tensor::arange(0f32, 60., &Device::Cpu).unwrap().reshape((3, 4, 5)).unwrap();
        let views = [whole.transpose(0, 2).unwrap(), whole.narrow(0, 1, 2).unwrap(), whole.narrow(2, 2, 2).unwrap()];
        let host = backend.offload(&views).unwrap();
        assert_eq!(host.bytes(), views.iter().map(|view| 4 * view.elem_count() as u64).sum::<u64>());
        for (back, view) in backend.reload(&host, 0).unwrap().iter().zip(&views) {
            assert_eq!(back.to_vec3::<f32>().unwrap(), view.to_vec3::<f32>().unwrap());
        }
        let empty = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
        let back = backend.reload(&backend.offload(&[empty]).unwrap(), 0).unwrap();
        assert_eq!(back[0].dims(), &[0, 3]);
    }

    #[test]
    fn what_is_not_copied_is_an_error() {
        let backend = CpuBackend::new(1).unwrap();
        let half = Tensor::zeros(3, DType::F16, &Device::Cpu).unwrap();
        assert!(backend.offload(&[half]).unwrap_err().to_string().contains("f16"));
        assert!(CpuBackend::new(0).unwrap_err().to_string().contains("at least 1"));
    }

    /// As on GPUs, where each device is another one.
    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let backend = CpuBackend::new(1).unwrap();
        let tensor = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let host = backend.offload(std::slice::from_ref(&tensor)).unwrap();
        let errors = [
            backend.device(1).map(drop).unwrap_err().to_string(),
            backend.synchronise(1).unwrap_err().to_string(),
            backend.stamp(1).map(drop).unwrap_err().to_string(),
            backend.send(&tensor, 1).map(drop).unwrap_err().to_string(),
            backend.reload(&host, 1).map(drop).unwrap_err().to_string(),
            backend.measure(1, &mut || ()).map(drop).unwrap_err().to_string(),
        ];
        assert!(errors.iter().all(|e| e.contains("no device 1: the backend has 1")), "{errors:?}");
    }

    #[test]
    fn the_machine_describes_itself() {
        let backend = CpuBackend::new(3).unwrap();
        let devices = backend.devices();
        assert_eq!(devices.len(), 3);
        assert!(devices.iter().all(|d| !d.name.is_empty() && d.cores >= 1 && d.memory_bytes > 64 << 20));
        assert_eq!(meminfo_total("MemFree: 1 kB\nMemTotal:       16 kB\n"), Some(16 * 1024));
        assert_eq!(meminfo_total("MemTotal: many"), None);
    }

    #[test]
    fn threads_cannot_be_limited_late() {
        // The test runner has started threads.
        let Some(threads) = NonZeroUsize::new(cores() + 1) else { return };
        let stay = std::thread::spawn(std::thread::park);
        assert!(init_threads(threads).unwrap_err().to_string().contains("RAYON_NUM_THREADS"));
        stay.thread().unpark();
        stay.join().unwrap();
    }
}
