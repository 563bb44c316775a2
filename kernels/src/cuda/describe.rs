//! The NVIDIA devices of this machine as driver, NVML and Linux describe them.

use std::ffi::{CStr, c_char, c_int};

use cudarc::driver::{result, sys};

use super::affinity;
use super::nvml::{Library, Reading, Sheet};
use super::topology::Ancestor;
use super::{CudaDevice, CudaError};

/// All NVIDIA devices that this process may use.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// Version of the kernel driver.
    pub driver: Reading<String>,
    /// The highest CUDA version that the driver supports, e.g. `13.0`.
    pub cuda: Reading<String>,
    /// Version of NVML.
    pub nvml: Reading<String>,
    /// The devices, in CUDA's order.
    pub devices: Vec<Description>,
    /// Every two of them, the lower number first.
    pub pairs: Vec<PairDescription>,
}

/// One device.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// What the driver says.
    pub device: CudaDevice,
    /// Its place on the PCI bus, e.g. `0000:3b:00.0`: the same in the driver, in NVML and in Linux.
    pub bus_id: String,
    /// Engines that copy while the device computes: one a direction where there are two or more.
    pub copy_engines: Reading<u32>,
    /// What NVML says.
    pub sheet: Sheet,
    /// Its NUMA node.
    pub numa_node: Reading<u32>,
    /// The processors near it, e.g. `0-15,32-47`.
    pub processors: Reading<String>,
}

/// Two devices.
#[derive(Debug, Clone, PartialEq)]
pub struct PairDescription {
    /// One device.
    pub from: usize,
    /// The other.
    pub to: usize,
    /// The nearest thing that both have in common.
    pub ancestor: Reading<Ancestor>,
    /// Whether each can read and write the other's memory.
    pub peer_access: Reading<bool>,
}

/// Describes them. Only the driver is needed; what else is missing is said in its place.
///
/// # Errors
/// [`CudaError`]: no driver, or no devices.
pub fn describe() -> Result<Machine, CudaError> {
    let found = super::devices()?;
    let library = Library::load();
    let mut devices = Vec::with_capacity(found.len());
    for (ordinal, device) in found.into_iter().enumerate() {
        let handle = handle(ordinal).map_err(|e| CudaError::Driver(e.to_string()))?;
        let bus_id = bus_id(handle).map_err(|e| CudaError::Driver(e.to_string()))?;
        devices.push(Description {
            copy_engines: copy_engines(handle),
            sheet: library.sheet(&bus_id),
            numa_node: affinity::numa_node(&bus_id),
            processors: affinity::near_processors(&bus_id),
            device,
            bus_id,
        });
    }
    let mut pairs = Vec::new();
    for from in 0..devices.len() {
        for to in from + 1..devices.len() {
            pairs.push(PairDescription {
                from,
                to,
                ancestor: library.common_ancestor(&devices[from].bus_id, &devices[to].bus_id),
                peer_access: can_access(from, to).and_then(|one| Ok(one && can_access(to, from)?)),
            });
        }
    }
    Ok(Machine {
        driver: library.driver_version(),
        cuda: driver_cuda_version().map(version_words),
        nvml: library.version(),
        devices,
        pairs,
    })
}

/// `13000` is 13.0.
fn version_words(number: c_int) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// The highest CUDA version that the driver supports. Only after the library was found.
fn driver_cuda_version() -> Reading<c_int> {
    let mut version = 0;
    // SAFETY: writes the one number that `version` has room for.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(|e| e.to_string())?;
    Ok(version)
}

fn handle(ordinal: usize) -> Result<sys::CUdevice, result::DriverError> {
    // More devices than an i32 counts: the driver refuses the number.
    result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))
}

pub(super) fn bus_id(device: sys::CUdevice) -> Result<String, result::DriverError> {
    let mut text = [0 as c_char; 32];
    // SAFETY: the driver writes at most the length that it is told, the end mark included.
    unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as c_int, device) }.result()?;
    // SAFETY: the array was all zeros, and its last byte still is: a bus id has 13 characters at most.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    Ok(text.to_string_lossy().to_ascii_lowercase())
}

fn copy_engines(device: sys::CUdevice) -> Reading<u32> {
    let which = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT;
    // SAFETY: `device` comes from the driver.
    let count = unsafe { result::device::get_attribute(device, which) }.map_err(|e| e.to_string())?;
    u32::try_from(count).map_err(|_| format!("the driver counts {count}"))
}

/// Whether one device can read and write another's memory.
fn can_access(from: usize, to: usize) -> Reading<bool> {
    let (from, to) = (handle(from).map_err(|e| e.to_string())?, handle(to).map_err(|e| e.to_string())?);
    let mut can = 0;
    // SAFETY: both devices come from the driver, which writes one number.
    unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, from, to) }.result().map_err(|e| e.to_string())?;
    Ok(can != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!([13_000, 12_080, 11_040].map(version_words), ["13.0", "12.8", "11.4"]);
    }

    /// With devices each has a place; without, the reason is one line.
    #[test]
    fn describing_answers_on_any_machine() {
        match describe() {
            Ok(machine) => {
                let count = machine.devices.len();
                assert!(count > 0 && machine.devices.iter().all(|d| d.bus_id.contains(':')));
                assert_eq!(machine.pairs.len(), count * (count - 1) / 2);
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    }
}
