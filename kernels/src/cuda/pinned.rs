//! Pinned host memory: what copy engines read and write without the host.

use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

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

    /// So many bytes, more than 0, every one of which has been written. Not write-combined: the host may read
    /// what the device wrote.
    ///
    /// # Errors
    /// The driver's words, where the system gives no more.
    pub(crate) fn take(&self, bytes: usize) -> Result<Pinned, String> {
        /// Usable from every context.
        const PORTABLE: u32 = cudarc::driver::sys::CU_MEMHOSTALLOC_PORTABLE;
        self.context.bind_to_thread().map_err(|e| e.to_string())?;
        // SAFETY: a context is current on this thread.
        let address = unsafe { result::malloc_host(bytes, PORTABLE) }.map_err(|e| e.to_string())?;
        let Some(address) = NonNull::new(address.cast::<u8>()) else {
            return Err("the driver returned no address".to_owned());
        };
        // SAFETY: the driver has just given `bytes` bytes at this address to us alone.
        unsafe { address.write_bytes(0xA5, bytes) };
        Ok(Pinned { address, bytes, context: Arc::clone(&self.context) })
    }
}

/// A block of pinned memory.
#[derive(Debug)]
pub(crate) struct Pinned {
    address: NonNull<u8>,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: the block belongs to its owner alone, and the driver lets any thread use and free it.
unsafe impl Send for Pinned {}
// SAFETY: shared references only read it.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: the block has so many bytes, which were written when it was made, until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.bytes) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above; `self` is borrowed for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A driver that fails here is going down with the process; there is nobody to tell.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the block came from `malloc_host` and is freed once; copies from and to it are waited for
            // before the buffer that owns it is given back.
            let _ = unsafe { result::free_host(self.address.as_ptr().cast()) };
        }
    }
}
