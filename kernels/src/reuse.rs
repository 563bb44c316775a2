//! Large blocks of memory that are used again instead of going back to the system.
//!
//! A GPU's memory pool hands the same memory out again and again. The C library, asked for a large
//! block, maps fresh memory, each page of which costs a fault at its first use: more than all else in
//! a copy, and as much as in many an operation, and it never settles, since large blocks go back to the
//! system when freed. [`Reusing`] keeps them, by size, for the next allocation of that size, as the
//! pools of CUDA and PyTorch do.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Smaller blocks are the C library's, which keeps them itself.
const SMALLEST_SHIFT: u32 = 16;
/// Every block is aligned so; what needs more goes to the system.
const ALIGN: usize = 64;
/// Sizes between a power of two and the next: at most an eighth of a block is beyond what was asked.
const STEPS: usize = 8;
/// Powers of two from 64 KiB to 64 GiB.
const CLASSES: usize = 20 * STEPS;
/// Most bytes kept; what is freed beyond goes back to the system.
const MOST_KEPT: usize = 4 << 30;

/// A list of free blocks, linked through their own first bytes.
struct FreeList(*mut u8);

// SAFETY: the blocks in the list belong to nobody else, and any thread may own them.
unsafe impl Send for FreeList {}

static FREE: [Mutex<FreeList>; CLASSES] = [const { Mutex::new(FreeList(ptr::null_mut())) }; CLASSES];
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with large blocks kept for later: all the process's instances share them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reusing;

/// The class of a large block and the layout that all blocks of the class have; `None` for what the
/// system handles.
fn class_of(layout: Layout) -> Option<(usize, Layout)> {
    let size = layout.size();
    if size < 1 << SMALLEST_SHIFT || layout.align() > ALIGN {
        return None;
    }
    let shift = size.ilog2();
    let step = (1usize << shift) / STEPS;
    // 0 is the power of two itself; 8 is the next one.
    let above = (size - (1 << shift)).div_ceil(step);
    let class = (shift - SMALLEST_SHIFT) as usize * STEPS + above;
    let whole = Layout::from_size_align((1 << shift) + above * step, ALIGN).ok()?;
    (class < CLASSES).then_some((class, whole))
}

fn pop(class: usize, whole: Layout) -> *mut u8 {
    // A lock held by a panicking thread: nothing between lock and unlock panics.
    let mut list = FREE[class].lock().unwrap_or_else(PoisonError::into_inner);
    let block = list.0;
    if !block.is_null() {
        // SAFETY: a block in the list is a free one of at least 64 KiB, aligned to 64 bytes, whose first
        // bytes hold the next one's address, written by `push`.
        list.0 = unsafe { block.cast::<*mut u8>().read() };
        KEPT.fetch_sub(whole.size(), Ordering::Relaxed);
    }
    block
}

/// # Safety
/// `block` was allocated by [`System`] with the layout `whole` of `class`, and is used no more.
unsafe fn push(class: usize, whole: Layout, block: *mut u8) {
    if KEPT.fetch_add(whole.size(), Ordering::Relaxed) + whole.size() > MOST_KEPT {
        KEPT.fetch_sub(whole.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, whole) };
        return;
    }
    let mut list = FREE[class].lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the block is free, large and aligned enough for a pointer.
    unsafe { block.cast::<*mut u8>().write(list.0) };
    list.0 = block;
}

// SAFETY: a block is either the system's, allocated and freed with the caller's layout, or one of a
// class, which the caller's layout tells in the same way each time; a block of a class is at least as
// large and as aligned as asked for, and is in the free list or with one owner, never both.
unsafe impl GlobalAlloc for Reusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((class, whole)) = class_of(layout) else {
            // SAFETY: the caller's promises, passed on.
            return unsafe { System.alloc(layout) };
        };
        let block = pop(class, whole);
        if block.is_null() {
            // SAFETY: `whole` has a size.
            return unsafe { System.alloc(whole) };
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some((class, whole)) = class_of(layout) else {
            // SAFETY: the caller's promises, passed on.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let block = pop(class, whole);
        if block.is_null() {
            // SAFETY: `whole` has a size.
            return unsafe { System.alloc_zeroed(whole) };
        }
        // SAFETY: the block is at least as large as the layout, and nobody else's.
        unsafe { ptr::write_bytes(block, 0, layout.size()) };
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class_of(layout) {
            // SAFETY: a block of this layout came from `System` with the class's layout.
            Some((class, whole)) => unsafe { push(class, whole, block) },
            // SAFETY: the caller's promises, passed on.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else { return ptr::null_mut() };
        match (class_of(layout), class_of(new_layout)) {
            // SAFETY: the caller's promises, passed on.
            (None, None) => unsafe { System.realloc(block, layout, new_size) },
            (Some((old, _)), Some((new, _))) if old == new => block,
            _ => {
                // SAFETY: `new_layout` has a size, as the caller promises.
                let moved = unsafe { self.alloc(new_layout) };
                if !moved.is_null() {
                    // SAFETY: both blocks hold as many bytes, and are different ones.
                    unsafe { ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size)) };
                    // SAFETY: the caller's block, whose contents have moved.
                    unsafe { self.dealloc(block, layout) };
                }
                moved
            }
        }
    }
}

/// Bytes kept for later.
pub fn kept() -> usize {
    KEPT.load(Ordering::Relaxed)
}

/// Gives all that is kept back to the system.
pub fn release() {
    for class in 0..CLASSES {
        let (shift, above) = (SMALLEST_SHIFT as usize + class / STEPS, class % STEPS);
        let size = (1 << shift) + above * ((1 << shift) / STEPS);
        let Ok(whole) = Layout::from_size_align(size, ALIGN) else { continue };
        loop {
            let block = pop(class, whole);
            if block.is_null() {
                break;
            }
            // SAFETY: the block came from `System` with the layout of its class, and is nobody's.
            unsafe { System.dealloc(block, whole) };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// Whether a block's first `size` bytes are `mark`: many of them, its ends among them.
    ///
    /// # Safety
    /// The block has as many bytes.
    unsafe fn holds(block: *const u8, size: usize, mark: u8) -> bool {
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts(block, size) };
        bytes.iter().step_by(61).chain(bytes.iter().rev().take(64)).all(|&b| b == mark)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Blocks that live at the same time never overlap, keep what was written to them, however they
        /// grow and shrink, and zeroed ones are zero even when they were used before.
        #[test]
        fn blocks_are_whole_and_ones_own(
            sizes in proptest::collection::vec((1usize..600_000, 1usize..600_000, any::<bool>()), 1..6),
        ) {
            let align = |size| Layout::from_size_align(size, 8).unwrap();
            for _ in 0..2 {
                let mut live = Vec::new();
                for (i, &(size, later, zeroed)) in sizes.iter().enumerate() {
                    let mark = i as u8 + 1;
                    // SAFETY: sizes are not 0; each block is written within its size and freed once with
                    // its last layout.
                    unsafe {
                        let block = if zeroed { Reusing.alloc_zeroed(align(size)) } else { Reusing.alloc(align(size)) };
                        prop_assert!(!block.is_null());
                        if zeroed {
                            prop_assert!(holds(block, size, 0));
                        }
                        ptr::write_bytes(block, mark, size);
                        let block = Reusing.realloc(block, align(size), later);
                        live.push((block, size.min(later), later, mark));
                    }
                }
                for &(block, written, later, mark) in &live {
                    // SAFETY: as above.
                    unsafe {
                        prop_assert!(holds(block, written, mark));
                        Reusing.dealloc(block, align(later));
                    }
                }
            }
        }
    }

    #[test]
    fn classes_hold_what_they_are_for_and_waste_little() {
        for shift in SMALLEST_SHIFT..35 {
            for size in [(1usize << shift) - 1, 1 << shift, (1 << shift) + 1, (3 << shift) / 2 + 1] {
                let Some((class, whole)) = class_of(Layout::from_size_align(size, 4).unwrap()) else {
                    assert!(size < 1 << SMALLEST_SHIFT);
                    continue;
                };
                assert!(class < CLASSES && whole.size() >= size && whole.size() - size <= size / 8 + 1);
                assert_eq!(class_of(whole), Some((class, whole)));
            }
        }
        assert_eq!(class_of(Layout::from_size_align(1 << 20, 4096).unwrap()), None);
    }

    #[test]
    fn a_freed_block_serves_again() {
        let layout = Layout::from_size_align(40 << 20, 8).unwrap();
        // SAFETY: the layout has a size; each block is freed once.
        unsafe {
            let first = Reusing.alloc(layout);
            Reusing.dealloc(first, layout);
            assert!(kept() >= layout.size());
            let second = Reusing.alloc(layout);
            assert_eq!(first, second);
            Reusing.dealloc(second, layout);
        }
        release();
    }
}
