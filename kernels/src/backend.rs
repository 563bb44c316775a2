//! What a backend can do, and choosing one.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};

use crate::alloc::Usage;
use crate::arena::HostTensors;
use crate::copy::CopyError;
use crate::cpu::CpuBackend;
use crate::cuda;
use crate::cuda::affinity::Affinity;
use crate::cuda::nvml::Conditions;

/// The backends by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// One device a thread on this machine's processor.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackendKind::Cpu => "cpu",
            BackendKind::Cuda => "cuda",
        })
    }
}

impl FromStr for BackendKind {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Self, BackendError> {
        match name {
            "cpu" => Ok(BackendKind::Cpu),
            "cuda" => Ok(BackendKind::Cuda),
            _ => Err(BackendError::Unknown(name.to_owned())),
        }
    }
}

/// Why there is no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// No such name.
    #[error("unknown backend `{0}`: expected `cpu` or `cuda`")]
    Unknown(String),
    /// No devices asked for, or more than there are.
    #[error("backend {backend}: {asked} devices asked for, {found}")]
    Devices {
        /// The backend.
        backend: BackendKind,
        /// Devices asked for.
        asked: usize,
        /// What is possible.
        found: String,
    },
    /// No CUDA on this machine.
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
    /// CUDA on this machine, but not in this program.
    #[error(
        "backend cuda: {devices} found, but this program was built without CUDA compute: it can list and calibrate those devices, not run on them. `make cuda` builds one that can; `backend: cpu` needs nothing"
    )]
    NoCudaCompute {
        /// What was found, e.g. `1 device (NVIDIA H100)`.
        devices: String,
    },
    /// The system does not say what must be known.
    #[error("cannot read {what}: {message}")]
    System {
        /// What was to be read.
        what: String,
        /// What went wrong.
        message: String,
    },
}

/// One device, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What the device calls itself.
    pub name: String,
    /// Its memory, bytes. On the CPU backend all devices share this.
    pub memory_bytes: u64,
    /// CPU cores (shared by all devices, too), or streaming multiprocessors.
    pub cores: usize,
}

/// A moment on a device's clock.
#[derive(Debug)]
pub struct Stamp(Clock);

#[derive(Debug)]
enum Clock {
    Host(Instant),
    #[cfg(feature = "cuda")]
    Cuda(cudarc::driver::CudaEvent),
}

impl Stamp {
    /// Now, on the host's clock.
    pub(crate) fn host() -> Self {
        Stamp(Clock::Host(Instant::now()))
    }

    /// When a device comes to an event.
    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(event: cudarc::driver::CudaEvent) -> Self {
        Stamp(Clock::Cuda(event))
    }

    /// Whether the device has come to this moment.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn has_come(&self) -> candle_core::Result<bool> {
        match &self.0 {
            Clock::Host(_) => Ok(true),
            #[cfg(feature = "cuda")]
            Clock::Cuda(event) => event.try_is_complete().map_err(candle_core::Error::wrap),
        }
    }

    /// The time from this moment to a later one of the same device, ns; waits until the later one has come.
    ///
    /// # Errors
    /// Moments of two devices; what the driver reports.
    pub fn until(&self, later: &Stamp) -> candle_core::Result<u64> {
        match (&self.0, &later.0) {
            (Clock::Host(from), Clock::Host(to)) => {
                Ok(u64::try_from(to.duration_since(*from).as_nanos()).unwrap_or(u64::MAX))
            }
            #[cfg(feature = "cuda")]
            (Clock::Cuda(from), Clock::Cuda(to)) => {
                let ms = from.elapsed_ms(to).map_err(candle_core::Error::wrap)?;
                Ok((f64::from(ms) * 1e6).round() as u64)
            }
            #[cfg(feature = "cuda")]
            _ => candle_core::bail!("moments on two clocks"),
        }
    }
}

/// Devices that hold tensors, and copies between them and the host.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Which one it is.
    fn kind(&self) -> BackendKind;

    /// The clock behind the times measured on it.
    fn clock(&self) -> &'static str;

    /// The devices, in order.
    fn devices(&self) -> &[DeviceInfo];

    /// The number of the hardware behind a device. Devices of one number take turns on it: what one of them takes
    /// shows only while the others rest. Each has its own, unless a backend says otherwise.
    fn physical(&self, index: usize) -> usize {
        index
    }

    /// Where candle puts the tensors of a device.
    ///
    /// # Errors
    /// No such device. As all methods with an index: a caller that takes another numbering for the backend's
    /// is told, with any backend.
    fn device(&self, index: usize) -> candle_core::Result<&Device>;

    /// Waits until a device has done all that it was given.
    ///
    /// # Errors
    /// What candle reports.
    fn synchronise(&self, index: usize) -> candle_core::Result<()>;

    /// Copies tensors of one device to host memory, one right after another, and returns when all are there. A
    /// tensor's own memory is free when the last tensor that shares it is dropped: the caller's part. A view is
    /// stored as what it shows, row by row.
    ///
    /// # Errors
    /// [`CopyError::Dtype`] for a number format that is not copied; what candle reports.
    fn offload(&self, tensors: &[Tensor]) -> Result<HostTensors, CopyError>;

    /// Copies back into fresh tensors of device `index`, bit by bit those that were offloaded, contiguous and in
    /// their order; returns when all are there.
    ///
    /// # Errors
    /// What candle reports.
    fn reload(&self, host: &HostTensors, index: usize) -> Result<Vec<Tensor>, CopyError>;

    /// A tensor as another device gets it: a copy of its own there. Other devices' tensors may be dropped when it
    /// returns.
    ///
    /// # Errors
    /// What candle reports.
    fn send(&self, tensor: &Tensor, to: usize) -> candle_core::Result<Tensor>;

    /// Makes host buffers for the offloads of a device ahead of their use, one for each of these sizes
    /// ([`room_for`](crate::arena::room_for) the bytes of one offload), so that the first offloads are as fast as
    /// the later ones.
    ///
    /// # Errors
    /// [`CopyError::Host`].
    fn prepare_host(&self, index: usize, sizes: &[usize]) -> Result<(), CopyError>;

    /// Keeps the calling thread near a device in the machine until the result is dropped: for threads that copy.
    /// `None` where all places are alike, or not known.
    fn near(&self, _index: usize) -> Option<Affinity> {
        None
    }

    /// The moment at which a device has done all that it was given so far.
    ///
    /// # Errors
    /// What candle reports.
    fn stamp(&self, index: usize) -> candle_core::Result<Stamp>;

    /// Keeps a device busy with nothing for so long, ns, so that what it is given next is all there when it
    /// starts: the time that the host takes to give it then counts for nothing. Returns the moment at which the
    /// device goes on; if that [has come](Stamp::has_come) when all has been given, it was too early. `None` from a
    /// processor, which is its own host and needs no such thing.
    ///
    /// # Errors
    /// What candle reports.
    fn hold(&self, _index: usize, _ns: u64) -> candle_core::Result<Option<Stamp>> {
        Ok(None)
    }

    /// Runs an operation of a device and takes the device memory that it needs; others should rest meanwhile.
    /// `None` where it cannot be told.
    ///
    /// # Errors
    /// What candle reports.
    fn measure(&self, index: usize, operation: &mut dyn FnMut()) -> candle_core::Result<Option<Usage>>;

    /// Counts [`Backend::peak_bytes`] of a device anew from what is taken now.
    ///
    /// # Errors
    /// What candle reports.
    fn restart_peak(&self, _index: usize) -> candle_core::Result<()> {
        Ok(())
    }

    /// Most memory that a device's own allocator has given out at once since [`Backend::restart_peak`], bytes.
    /// `None` where it does not tell, or serves several devices.
    ///
    /// # Errors
    /// What candle reports.
    fn peak_bytes(&self, _index: usize) -> candle_core::Result<Option<u64>> {
        Ok(None)
    }

    /// A device's clocks at this moment and what slows them, for those who measure. `None` where devices have
    /// no such thing to tell.
    fn conditions(&self, _index: usize) -> Option<Conditions> {
        None
    }

    /// Gives memory that is only kept for later use back to the system. A backend without has none.
    fn trim(&self) {}
}

/// Whether the words of an error of a backend or of candle say that a device has no more memory. The driver's own
/// error is wrapped differently by each of the libraries that it comes through; its name is in the words of all. The
/// driver has the same name for a host without memory to pin ([`CopyError::Host`]), which more offloads would not help.
pub fn is_out_of_memory(words: &str) -> bool {
    let full = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|name| words.contains(name));
    full && !words.contains(CopyError::HOST)
}

/// The one of a backend's devices with this number.
///
/// # Errors
/// There is none.
pub(crate) fn one_of<T>(devices: &[T], index: usize) -> candle_core::Result<&T> {
    let missing = || candle_core::Error::msg(format!("no device {index}: the backend has {}", devices.len()));
    devices.get(index).ok_or_else(missing)
}

/// A backend with `devices` devices.
///
/// # Errors
/// [`BackendError`]; for `cuda` always where this program has no CUDA compute: the error says what is missing.
pub fn open(kind: BackendKind, devices: usize) -> Result<Arc<dyn Backend>, BackendError> {
    match kind {
        BackendKind::Cpu => Ok(Arc::new(CpuBackend::new(devices)?)),
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => Ok(Arc::new(cuda::CudaBackend::new(devices)?)),
        #[cfg(not(feature = "cuda"))]
        BackendKind::Cuda => {
            let found = cuda::devices()?;
            let names: Vec<&str> = found.iter().map(|d| d.name.as_str()).collect();
            let plural = if found.len() == 1 { "device" } else { "devices" };
            Err(BackendError::NoCudaCompute { devices: format!("{} {plural} ({})", found.len(), names.join(", ")) })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn cuda_is_refused_in_one_line_that_names_the_way_out() {
        let error = open(BackendKind::Cuda, 1).unwrap_err();
        let line = error.to_string();
        assert!(matches!(error, BackendError::Cuda(_) | BackendError::NoCudaCompute { .. }), "{line}");
        assert!(line.contains("cpu") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn a_full_device_is_told_from_other_failures() {
        assert!(is_out_of_memory("the GPU: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"));
        let message = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".to_owned();
        assert!(is_out_of_memory(&CopyError::Driver(message.clone()).to_string()));
        assert!(!is_out_of_memory(&CopyError::Host { bytes: 12, message }.to_string()));
    }

    #[test]
    fn names_are_read_back() {
        for kind in [BackendKind::Cpu, BackendKind::Cuda] {
            assert_eq!(kind.to_string().parse::<BackendKind>().unwrap(), kind);
        }
        assert!("rocm".parse::<BackendKind>().unwrap_err().to_string().contains("rocm"));
    }
}
