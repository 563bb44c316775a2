//! Pinned host memory for pools: what copy engines read and write without the host.

use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::memory::Pinned;

/// Gives out pinned memory of a context's process; clones are the same.
#[derive(Debug, Clone)]
pub struct PinnedSource {
    context: Arc<CudaContext>,
}

impl PinnedSource {
    /// Memory that any context of the process may copy from and to.
    pub fn new(context: Arc<CudaContext>) -> Self {
        PinnedSource { context }
    }

    /// So many bytes, more than 0.
    ///
    /// # Errors
    /// The driver's words, where the system gives no more.
    pub(crate) fn take(&self, bytes: usize) -> Result<Pinned, String> {
        Pinned::new(&self.context, bytes).map_err(|e| e.to_string())
    }
}
