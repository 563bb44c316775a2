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
    /// What candle reports.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
