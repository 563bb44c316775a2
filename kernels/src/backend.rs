//! What a backend can do, and choosing one.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::arena::HostTensor;
use crate::copy::CopyError;
use crate::cpu::CpuBackend;
use crate::cuda;

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
        "backend cuda: {devices} found, but this program was built without CUDA compute; it can list those devices, not run on them. Use `backend: cpu`, which needs nothing"
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

/// Devices that hold tensors, and copies between them and the host.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Which one it is.
    fn kind(&self) -> BackendKind;

    /// The clock behind the times measured on it.
    fn clock(&self) -> &'static str;

    /// The devices, in order.
    fn devices(&self) -> &[DeviceInfo];

    /// Where candle puts the tensors of a device.
    fn device(&self, index: usize) -> &Device;

    /// Waits until a device has done all that it was given.
    ///
    /// # Errors
    /// What candle reports.
    fn synchronise(&self, index: usize) -> candle_core::Result<()>;

    /// Copies a tensor to host memory. The tensor's own memory is free when the last tensor that
    /// shares it is dropped: the caller's part. A view is stored as what it shows, row by row.
    ///
    /// # Errors
    /// [`CopyError::Dtype`] for a number format that is not copied; what candle reports.
    fn offload(&self, tensor: &Tensor) -> Result<HostTensor, CopyError>;

    /// Copies back into a fresh tensor of device `index`, bit by bit the one that was offloaded,
    /// contiguous.
    ///
    /// # Errors
    /// What candle reports.
    fn reload(&self, host: &HostTensor, index: usize) -> Result<Tensor, CopyError>;

    /// Makes host buffers of these sizes (bytes) ahead of their use, so that the first offloads are
    /// as fast as the later ones.
    fn prepare_host(&self, sizes: &[usize]);

    /// Gives memory that is only kept for later use back to the system. A backend without has none.
    fn trim(&self) {}
}

/// A backend with `devices` devices.
///
/// # Errors
/// [`BackendError`]: for `cuda` always, since this program has no CUDA compute; the error says what is
/// missing.
pub fn open(kind: BackendKind, devices: usize) -> Result<Arc<dyn Backend>, BackendError> {
    match kind {
        BackendKind::Cpu => Ok(Arc::new(CpuBackend::new(devices)?)),
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

    #[test]
    fn cuda_is_refused_in_one_line_that_names_the_way_out() {
        let error = open(BackendKind::Cuda, 1).unwrap_err();
        let line = error.to_string();
        assert!(matches!(error, BackendError::Cuda(_) | BackendError::NoCudaCompute { .. }), "{line}");
        assert!(line.contains("cpu") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn names_are_read_back() {
        for kind in [BackendKind::Cpu, BackendKind::Cuda] {
            assert_eq!(kind.to_string().parse::<BackendKind>().unwrap(), kind);
        }
        assert!("rocm".parse::<BackendKind>().unwrap_err().to_string().contains("rocm"));
    }
}
