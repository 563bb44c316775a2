//! Pinned host memory for pools: what copy engines read and write without the host.

use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::affinity::Affinity;
use super::memory::Pinned;

/// Gives out pinned memory of a context's process; clones are the same.
#[derive(Debug, Clone)]
pub struct PinnedSource {
    context: Arc<CudaContext>,
    processors: Option<String>,
}

impl PinnedSource {
    /// Memory that any context of the process may copy from and to, near the listed processors where there are
    /// some: host memory far from a device is slower to reach from it.
    pub fn new(context: Arc<CudaContext>, processors: Option<String>) -> Self {
        PinnedSource { context, processors }
    }

    /// So many bytes, more than 0.
    ///
    /// # Errors
    /// The driver's words, where the system gives no more.
    pub(crate) fn take(&self, bytes: usize) -> Result<Pinned, String> {
        // Memory lies where the thread runs that asks for it. One that may not move gets it where it is.
        let _near = self.processors.as_ref().and_then(|list| Affinity::near(list).ok());
        Pinned::new(&self.context, bytes).map_err(|e| e.to_string())
    }
}
