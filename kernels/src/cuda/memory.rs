//! Memory that copies are timed with: pinned on the host, plain on the device.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

/// Pinned host memory. Not write-combined: the host reads what devices copy to it.
#[derive(Debug)]
pub(crate) struct Pinned {
    start: *mut c_void,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl Pinned {
    /// So many bytes, more than 0, all of which have been written.
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Pinned, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: the memory is seen as bytes only after `fill` or `scrub` has written all of them.
        let start = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) }?;
        let mut pinned = Pinned { start, bytes, context: Arc::clone(context) };
        pinned.scrub(bytes);
        Ok(pinned)
    }

    pub(super) fn start(&self) -> *mut c_void {
        self.start
    }

    /// The bytes. Callers see to it that no device writes to them meanwhile.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` bytes were allocated at `start` and written in `new`.
        unsafe { std::slice::from_raw_parts(self.start.cast::<u8>(), self.bytes) }
    }

    /// The bytes, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast::<u8>(), self.bytes) }
    }

    /// Overwrites the first bytes.
    pub(super) fn scrub(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        // SAFETY: as many bytes were allocated at `start`.
        unsafe { std::ptr::write_bytes(self.start.cast::<u8>(), SCRUBBED, bytes) };
    }

    /// Fills it with numbers that differ from place to place and from seed to seed.
    pub(super) fn fill(&mut self, seed: u64) {
        pattern(self.bytes_mut(), seed);
    }
}

// SAFETY: the memory belongs to its owner alone, and the driver lets any thread use and free it.
unsafe impl Send for Pinned {}
// SAFETY: shared references only read it.
unsafe impl Sync for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread().and_then(|()| {
            // SAFETY: comes from `malloc_host` and is freed once; the driver waits for copies.
            unsafe { result::free_host(self.start) }
        }));
    }
}

/// Device memory.
#[derive(Debug)]
pub(super) struct OnDevice {
    start: sys::CUdeviceptr,
    context: Arc<CudaContext>,
}

impl OnDevice {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<OnDevice, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: the memory is only copied from and to, and written before it is copied from.
        let start = unsafe { result::malloc_sync(bytes) }?;
        Ok(OnDevice { start, context: Arc::clone(context) })
    }

    pub(super) fn start(&self) -> sys::CUdeviceptr {
        self.start
    }

    /// Overwrites the first bytes, of which there must be as many, and waits for it.
    pub(super) fn scrub(&self, bytes: usize) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: the caller stays within what it asked `new` for.
        unsafe { result::memset_d8_sync(self.start, SCRUBBED, bytes) }?;
        self.context.synchronize()
    }

    /// Copies all of `source` here and waits for it.
    pub(super) fn write(&self, source: &[u8]) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: the caller gives no more than it asked `new` for.
        unsafe { result::memcpy_htod_sync(self.start, source) }
    }

    /// Copies the first bytes to `target` and waits for it.
    pub(super) fn read(&self, target: &mut Pinned, bytes: usize) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: both have as many bytes, by the caller's word.
        unsafe { result::memcpy_dtoh_sync(&mut target.bytes_mut()[..bytes], self.start) }
    }
}

impl Drop for OnDevice {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread().and_then(|()| {
            // SAFETY: comes from `malloc_sync` and is freed once; the driver waits for its use.
            unsafe { result::free_sync(self.start) }
        }));
    }
}

/// What scrubbed memory holds: no pattern has it in every byte.
const SCRUBBED: u8 = 0xa5;

/// Numbers that differ from place to place: a copy that shifts, repeats or drops a part shows.
/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn pattern(bytes: &mut [u8], seed: u64) {
    let mut state = seed;
    for word in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        word.copy_from_slice(&mixed.to_le_bytes()[..word.len()]);
    }
}

/// Where the first byte differs.
pub(super) fn first_difference(expected: &[u8], found: &[u8]) -> Option<usize> {
    // Equal slices, the rule, compare at the speed of memory.
    if expected == found {
        return None;
    }
    let common = expected.iter().zip(found).position(|(a, b)| a != b);
    Some(common.unwrap_or_else(|| expected.len().min(found.len())))
}

/// Host memory that may be pinned without harm, bytes: half of what is available. `None` where the system
/// does not tell.
pub(super) fn host_room() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let available = available_bytes(&read("/proc/meminfo")?)?;
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(limit, used)| limit.saturating_sub(used));
    Some(group.map_or(available, |group| group.min(available)) / 2)
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn patterns_tell_places_and_seeds_apart() {
        let make = |seed, length| {
            let mut bytes = vec![0; length];
            pattern(&mut bytes, seed);
            bytes
        };
        let bytes = make(1, 4099);
        assert_eq!(first_difference(&bytes, &make(1, 4099)), None);
        assert!(first_difference(&bytes, &make(2, 4099)).unwrap() < 8);
        // A copy that repeats its first page, and one that ends early.
        let mut page = bytes.clone();
        page.copy_within(0..2048, 2048);
        assert!((2048..2056).contains(&first_difference(&bytes, &page).unwrap()));
        let mut short = bytes.clone();
        short[4096..].fill(SCRUBBED);
        assert!((4096..4099).contains(&first_difference(&bytes, &short).unwrap()));
        assert_eq!(first_difference(&bytes, &bytes[..100]), Some(100));
    }

    #[test]
    fn available_memory_is_read() {
        assert_eq!(available_bytes("MemTotal: 9 kB\nMemAvailable:    8 kB\n"), Some(8192));
        assert_eq!(available_bytes("MemTotal: 9 kB\n"), None);
    }
}
