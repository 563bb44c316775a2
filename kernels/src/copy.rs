//! Copies between device and host: why one did not happen. The copies themselves are a backend's
//! ([`Backend::offload`](crate::backend::Backend::offload), [`Backend::reload`](crate::backend::Backend::reload)).

use candle_core::{DType, DeviceLocation};

/// Why a copy did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A number format that is not copied.
    #[error("tensors of {} are not copied between device and host", .0.as_str())]
    Dtype(DType),
    /// A tensor of another backend.
    #[error("the tensor is on {0:?}, not on a device of this backend")]
    NotOnDevice(DeviceLocation),
    /// The system gives no more memory for the host's side.
    #[error("no {bytes} bytes of {}: {message}; raise the limit of locked memory, or offload less", CopyError::HOST)]
    Host {
        /// Bytes asked for.
        bytes: usize,
        /// The driver's words.
        message: String,
    },
    /// A copy that the driver refuses.
    #[error("the NVIDIA driver refuses a copy: {0}")]
    Driver(String),
    /// What candle reports.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl CopyError {
    /// What the host lacks, in the words of [`CopyError::Host`].
    pub(crate) const HOST: &'static str = "pinned host memory";
}
