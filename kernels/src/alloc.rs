//! A global allocator that counts: how many bytes live, and how many lived at most. Tensors on the
//! CPU backend are ordinary allocations, so this measures the memory of an operation, temporaries
//! included, exactly.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crate::reuse::Reusing;

// The counters are the process's, as the global allocator is. Signed: memory from before the first
// count may be freed after it.
static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Counts what goes through the allocator inside. A program installs it with
/// ```
/// #[global_allocator]
/// static ALLOCATOR: optpipe_kernels::alloc::Counting = optpipe_kernels::alloc::Counting::SYSTEM;
/// # assert!(optpipe_kernels::alloc::installed());
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Counting<A = Reusing>(A);

impl Counting {
    /// Counts the system's allocator, large blocks of which are kept for later ([`Reusing`]).
    pub const SYSTEM: Counting = Counting(Reusing);
}

impl<A> Counting<A> {
    /// Counts this allocator.
    pub const fn new(inner: A) -> Self {
        Counting(inner)
    }
}

fn grow(bytes: usize) {
    // Relaxed: these are statistics. The peak may miss what two threads hold for the few
    // nanoseconds between the two lines, never what one thread holds.
    let live = LIVE.fetch_add(bytes as i64, Ordering::Relaxed) + bytes as i64;
    if live > PEAK.load(Ordering::Relaxed) {
        PEAK.fetch_max(live, Ordering::Relaxed);
    }
}

fn shrink(bytes: usize) {
    LIVE.fetch_sub(bytes as i64, Ordering::Relaxed);
}

// SAFETY: every call is passed on, unchanged, to an allocator that keeps the contract; counting
// neither allocates nor panics nor touches the memory.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises, passed on.
        let memory = unsafe { self.0.alloc(layout) };
        if !memory.is_null() {
            if !INSTALLED.load(Ordering::Relaxed) {
                INSTALLED.store(true, Ordering::Relaxed);
            }
            grow(layout.size());
        }
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises, passed on.
        let memory = unsafe { self.0.alloc_zeroed(layout) };
        if !memory.is_null() {
            grow(layout.size());
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises, passed on.
        unsafe { self.0.dealloc(memory, layout) };
        shrink(layout.size());
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises, passed on.
        let moved = unsafe { self.0.realloc(memory, layout, new_size) };
        if !moved.is_null() {
            // Old and new may live side by side while the contents move.
            grow(new_size);
            shrink(layout.size());
        }
        moved
    }
}

/// Whether the program counts its allocations. Without, every other number here is 0.
pub fn installed() -> bool {
    // A fresh allocation, in case the program has not made one yet.
    drop(std::hint::black_box(Box::new(0u8)));
    INSTALLED.load(Ordering::Relaxed)
}

/// Bytes that live now.
pub fn live() -> u64 {
    LIVE.load(Ordering::Relaxed).max(0) as u64
}

/// Most bytes that lived at once, since the start or [`reset_peak`].
pub fn peak() -> u64 {
    PEAK.load(Ordering::Relaxed).max(0) as u64
}

/// Counts the peak anew from what lives now.
pub fn reset_peak() {
    PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// Memory of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// How far the live bytes rose above what lived before the operation.
    pub peak_bytes: u64,
    /// What lives after it beyond what lived before; negative where it freed more than it kept.
    pub kept_bytes: i64,
}

/// Runs an operation and takes its memory: that of the whole process meanwhile, so other threads
/// should rest. `None` where allocations are not counted ([`installed`]).
pub fn measure<T>(operation: impl FnOnce() -> T) -> (T, Option<Usage>) {
    let counted = installed();
    reset_peak();
    let before = LIVE.load(Ordering::Relaxed);
    let value = operation();
    let kept_bytes = LIVE.load(Ordering::Relaxed) - before;
    let peak_bytes = (PEAK.load(Ordering::Relaxed) - before).max(0) as u64;
    (value, counted.then_some(Usage { peak_bytes, kept_bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Not the global allocator here: the counters then count what the test does and nothing else.
    static LOCAL: Counting = Counting::SYSTEM;

    #[test]
    fn live_and_peak_follow_allocations() {
        let start = live();
        let layout = Layout::array::<u8>(1000).unwrap_or_else(|e| panic!("{e}"));
        let bigger = Layout::array::<u8>(5000).unwrap_or_else(|e| panic!("{e}"));
        // SAFETY: both layouts have a size; each block is freed once, with the layout it has then.
        unsafe {
            let a = LOCAL.alloc(layout);
            let b = LOCAL.alloc_zeroed(layout);
            assert_eq!(live() - start, 2000);
            assert!(peak() >= start + 2000);
            let a = LOCAL.realloc(a, layout, 5000);
            assert_eq!(live() - start, 6000);
            LOCAL.dealloc(a, bigger);
            LOCAL.dealloc(b, layout);
        }
        assert_eq!(live(), start);
        assert!(peak() >= start + 7000);
        let ((), usage) = measure(|| {
            // SAFETY: as above.
            unsafe { LOCAL.dealloc(LOCAL.alloc(bigger), bigger) };
        });
        assert_eq!(usage, Some(Usage { peak_bytes: 5000, kept_bytes: 0 }));
    }
}
