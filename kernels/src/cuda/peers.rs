//! Access of GPUs to each other's memory.

use std::ffi::c_int;

use cudarc::driver::{DriverError, result, sys};

use super::backend::Place;

/// Lets every GPU reach the memory of every other where the machine allows it: copies between the two then go
/// straight, else the driver stages them in host memory.
pub(super) fn connect(places: &[Place]) -> Result<(), DriverError> {
    for from in places {
        for to in places {
            let (source, target) = (from.context(), to.context());
            if source.ordinal() == target.ordinal() {
                continue;
            }
            let mut can: c_int = 0;
            // SAFETY: both devices come from the driver, which writes one number.
            unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, source.cu_device(), target.cu_device()) }.result()?;
            if can == 0 {
                continue;
            }
            source.bind_to_thread()?;
            // SAFETY: both contexts are their GPUs' primary ones, which live as long as the places.
            match unsafe { sys::cuCtxEnablePeerAccess(target.cu_ctx(), 0) } {
                sys::CUresult::CUDA_SUCCESS | sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {}
                // NVLink switches allow for a number of peers only.
                sys::CUresult::CUDA_ERROR_TOO_MANY_PEERS => continue,
                other => return Err(result::DriverError(other)),
            }
            // Memory of pools has permissions of its own.
            to.memory.open_to(source.cu_device())?;
        }
    }
    Ok(())
}
