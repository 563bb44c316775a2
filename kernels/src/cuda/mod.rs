//! NVIDIA devices, and OptPipe's own kernels for them. Libraries are looked for at run time: nothing here
//! needs CUDA to be built or started.
//!
//! A kernel lives in three places: its CUDA C in `sources/`, the launch that gives it its grid and its
//! arguments ([`launch`]), and what it computes, as plain loops in f64, in [`crate::reference`]. The tests
//! compile every source for the architectures of data centre GPUs, and run every launch on this machine's
//! processor against the reference.

pub mod affinity;
#[cfg(feature = "cuda")]
mod backend;
pub mod compile;
#[cfg(feature = "cuda")]
mod copies;
pub mod describe;
mod devices;
mod gate;
pub mod launch;
pub(crate) mod memory;
pub mod nvml;
pub mod ops;
#[cfg(feature = "cuda")]
mod peers;
pub mod pinned;
#[cfg(feature = "cuda")]
mod pool;
mod product;
pub mod rig;
pub mod sources;
#[cfg(feature = "cuda")]
pub mod tensors;
pub mod topology;

#[cfg(feature = "cuda")]
pub use backend::CudaBackend;
pub use devices::{CudaDevice, CudaError, devices};
