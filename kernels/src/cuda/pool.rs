//! The driver's pool of a GPU's memory, from which streams allocate.

use cudarc::driver::sys::{self, CUmemPool_attribute_enum as Attribute};
use cudarc::driver::{DriverError, result};

/// The pool of a GPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryPool(sys::CUmemoryPool);

// SAFETY: a handle that the driver lets any thread use, for as long as the process lives.
unsafe impl Send for MemoryPool {}
// SAFETY: as above.
unsafe impl Sync for MemoryPool {}

impl MemoryPool {
    pub(super) fn of(ordinal: usize) -> Result<Self, DriverError> {
        let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
        // SAFETY: `device` comes from the driver.
        Ok(MemoryPool(unsafe { result::device::get_mem_pool(device) }?))
    }

    /// Freed memory stays with the process: giving it back and asking for it anew costs milliseconds. And memory
    /// that the compute stream is still to free is not given to a reload, which would then wait for what is queued
    /// there: it takes other memory.
    pub(super) fn prepare(self) -> Result<(), DriverError> {
        self.write(Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
        self.write(Attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES, 0_i32)
    }

    /// Lets another GPU reach its memory, where the two can.
    pub(super) fn open_to(self, device: sys::CUdevice) -> Result<(), DriverError> {
        let access = sys::CUmemAccessDesc {
            location: sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device },
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the pool lives as long as the process; one description is read.
        unsafe { sys::cuMemPoolSetAccess(self.0, &raw const access, 1) }.result()
    }

    /// Counts the peak anew from what is used now, and returns that, bytes.
    pub(super) fn restart_peak(self) -> Result<u64, DriverError> {
        self.write(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0_u64)?;
        self.used()
    }

    /// Bytes used now.
    pub(super) fn used(self) -> Result<u64, DriverError> {
        self.read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    }

    /// Most bytes used at once since [`restart_peak`](MemoryPool::restart_peak).
    pub(super) fn peak(self) -> Result<u64, DriverError> {
        self.read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// A 64-bit attribute.
    fn read(self, attribute: Attribute) -> Result<u64, DriverError> {
        let mut value = 0_u64;
        // SAFETY: the pool lives as long as the process; the attributes read here are 64-bit numbers.
        unsafe { sys::cuMemPoolGetAttribute(self.0, attribute, (&raw mut value).cast()) }.result()?;
        Ok(value)
    }

    /// Sets an attribute, by a number of its type.
    fn write<T>(self, attribute: Attribute, mut value: T) -> Result<(), DriverError> {
        // SAFETY: the pool lives as long as the process; callers give the attribute's type.
        unsafe { sys::cuMemPoolSetAttribute(self.0, attribute, (&raw mut value).cast()) }.result()
    }
}
