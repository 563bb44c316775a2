//! Which NVIDIA devices there are. Libraries are looked for at run time: nothing here needs CUDA to
//! be built or started.

use cudarc::driver::{result, sys};
use nvml_wrapper::Nvml;

/// Why there are no CUDA devices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// No driver on this machine.
    #[error("no NVIDIA driver: the library libcuda cannot be loaded; the backend `cpu` needs nothing")]
    NoDriver,
    /// A driver that does not start.
    #[error("the NVIDIA driver fails to start: {0}; the backend `cpu` needs nothing")]
    Driver(String),
    /// A driver, but no devices.
    #[error(
        "the NVIDIA driver finds no devices (are they hidden by CUDA_VISIBLE_DEVICES?); the backend `cpu` needs nothing"
    )]
    NoDevices,
    /// A device without an allocator in the order of streams.
    #[error(
        "device {ordinal} ({name}) has no stream-ordered allocator (memory pools), without which copies cannot overlap with compute: a virtual GPU's host may allow them, other devices can be chosen by CUDA_VISIBLE_DEVICES, the backend `cpu` needs nothing"
    )]
    NoMemoryPools {
        /// Its number.
        ordinal: usize,
        /// Its name.
        name: String,
    },
}

/// An NVIDIA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDevice {
    /// Its name.
    pub name: String,
    /// Its memory, bytes.
    pub memory_bytes: u64,
    /// Compute capability, e.g. `(9, 0)`.
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Version of the kernel driver, e.g. `580.65.06`; `None` where NVML is missing or does not tell.
    pub driver_version: Option<String>,
}

/// The NVIDIA devices that this process may use, in CUDA's order.
///
/// # Errors
/// [`CudaError`], of which each is one line that says what is missing.
pub fn devices() -> Result<Vec<CudaDevice>, CudaError> {
    if !driver_is_there() {
        return Err(CudaError::NoDriver);
    }
    let failed = |e: result::DriverError| CudaError::Driver(e.to_string());
    result::init().map_err(failed)?;
    let count = result::device::get_count().map_err(failed)?;
    if count < 1 {
        return Err(CudaError::NoDevices);
    }
    let driver_version = Nvml::init().and_then(|nvml| nvml.sys_driver_version()).ok();
    (0..count).map(|ordinal| describe(ordinal, driver_version.clone()).map_err(failed)).collect()
}

/// Whether the driver's library can be loaded: cudarc panics where it needs it and cannot.
#[cfg(not(feature = "cuda"))]
pub(crate) fn driver_is_there() -> bool {
    // SAFETY: loads and unloads libcuda by name; its initialisers are the driver's own and the
    // system's search path says which file it is, as for any program that uses CUDA.
    unsafe { sys::is_culib_present() }
}

/// Whether the driver's library can be loaded: this program would not have started without it.
#[cfg(feature = "cuda")]
pub(crate) fn driver_is_there() -> bool {
    true
}

fn describe(ordinal: i32, driver_version: Option<String>) -> Result<CudaDevice, result::DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let device = result::device::get(ordinal)?;
    let attribute = |which| {
        // SAFETY: `device` comes from the driver.
        unsafe { result::device::get_attribute(device, which) }
    };
    Ok(CudaDevice {
        name: result::device::get_name(device)?,
        // SAFETY: `device` comes from the driver.
        memory_bytes: unsafe { result::device::total_mem(device) }? as u64,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: usize::try_from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?).unwrap_or(0),
        driver_version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_answers_on_any_machine() {
        match devices() {
            Ok(found) => assert!(found.iter().all(|d| d.memory_bytes > 0 && d.compute_capability.0 > 0)),
            Err(error) => {
                let line = error.to_string();
                assert!(line.contains("NVIDIA") && line.contains("`cpu`") && !line.contains('\n'), "{line}");
            }
        }
    }
}
