//! Host memory for offloaded tensors: buffers that are used again and again.
//!
//! Fresh memory costs a page fault every 4 KiB at its first use, which would double the time of a
//! copy, and not in a regular way. So buffers are written once when they are made and kept in a pool.
//! For a GPU they are pinned: copy engines take no other memory, and a copy from other memory would go through
//! a buffer of the driver's and block the host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Shape, Tensor};

use crate::copy::CopyError;
use crate::cuda::memory::Pinned;
use crate::cuda::pinned::PinnedSource;

/// Buffers are made in multiples of this, bytes.
const GRAIN: usize = 4096;

/// Tensors of one buffer begin at multiples of this, bytes: enough for any number format and any copy engine.
const ALIGNMENT: usize = 256;

#[derive(Debug, Default)]
struct Free {
    /// Free buffers by length. A `Vec` is never empty.
    by_length: BTreeMap<usize, Vec<Memory>>,
    /// Bytes of all buffers of the pool, in use or free.
    total: usize,
}

/// Memory of one buffer.
#[derive(Debug)]
enum Memory {
    Pageable(Box<[u8]>),
    Pinned(Pinned),
}

impl Memory {
    fn as_slice(&self) -> &[u8] {
        match self {
            Memory::Pageable(memory) => memory,
            Memory::Pinned(memory) => memory.bytes(),
        }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Memory::Pageable(memory) => memory,
            Memory::Pinned(memory) => memory.bytes_mut(),
        }
    }
}

/// A pool of host buffers; clones share it.
#[derive(Debug, Clone, Default)]
pub struct HostPool {
    free: Arc<Mutex<Free>>,
    /// Where pinned memory comes from; without it, buffers are ordinary memory.
    pinned: Option<PinnedSource>,
}

impl HostPool {
    /// An empty pool.
    pub fn new() -> Self {
        HostPool::default()
    }

    /// An empty pool of pinned buffers.
    pub fn pinned(source: PinnedSource) -> Self {
        HostPool { free: Arc::default(), pinned: Some(source) }
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        // Nothing that can panic happens between related changes.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `bytes`: the smallest free one that is not more than twice as long, or a new one,
    /// every page of which has been written. Contents are arbitrary.
    ///
    /// # Errors
    /// [`CopyError::Host`] where the system gives no more pinned memory.
    pub fn take(&self, bytes: usize) -> Result<HostBuffer, CopyError> {
        let length = bytes.div_ceil(GRAIN).max(1) * GRAIN;
        let mut free = self.lock();
        let found = free.by_length.range(length..=2 * length).next().map(|(&l, _)| l);
        let reused = found.and_then(|l| {
            let list = free.by_length.get_mut(&l)?;
            let memory = list.pop();
            if list.is_empty() {
                free.by_length.remove(&l);
            }
            memory
        });
        let memory = match reused {
            Some(memory) => memory,
            None => {
                free.total += length;
                drop(free);
                match &self.pinned {
                    // Not 0: zeroed memory would come from the system untouched.
                    None => Memory::Pageable(vec![0xA5; length].into_boxed_slice()),
                    Some(source) => match source.take(length) {
                        Ok(memory) => Memory::Pinned(memory),
                        Err(message) => {
                            self.lock().total -= length;
                            return Err(CopyError::Host { bytes: length, message });
                        }
                    },
                }
            }
        };
        Ok(HostBuffer { memory: Some(memory), bytes, pool: self.clone() })
    }

    /// Makes buffers of these sizes (bytes) ahead of their use.
    ///
    /// # Errors
    /// As [`HostPool::take`].
    pub fn prepare(&self, sizes: &[usize]) -> Result<(), CopyError> {
        let buffers = sizes.iter().map(|&bytes| self.take(bytes)).collect::<Result<Vec<_>, _>>()?;
        drop(buffers);
        Ok(())
    }

    /// Bytes of all buffers of the pool, in use or free.
    pub fn total_bytes(&self) -> usize {
        self.lock().total
    }

    /// Gives the free buffers back to the system.
    pub fn trim(&self) {
        let mut free = self.lock();
        let lists = std::mem::take(&mut free.by_length);
        free.total -= lists.iter().map(|(length, list)| length * list.len()).sum::<usize>();
    }
}

/// Host memory from a pool, to which it returns when dropped.
#[derive(Debug)]
pub struct HostBuffer {
    /// There until dropped.
    memory: Option<Memory>,
    bytes: usize,
    pool: HostPool,
}

impl HostBuffer {
    /// The contents.
    pub fn as_slice(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory.as_slice()[..self.bytes])
    }

    /// The contents, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let bytes = self.bytes;
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory.as_mut_slice()[..bytes])
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.lock().by_length.entry(memory.as_slice().len()).or_default().push(memory);
        }
    }
}

/// Tensors whose values are in host memory: those of one copy, one after another in one buffer.
#[derive(Debug)]
pub struct HostTensors {
    buffer: HostBuffer,
    parts: Vec<Part>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    start: usize,
    bytes: usize,
}

impl HostTensors {
    /// Room for tensors like these, whose values are arbitrary yet.
    ///
    /// # Errors
    /// As [`HostPool::take`].
    pub(crate) fn like(tensors: &[Tensor], pool: &HostPool) -> Result<Self, CopyError> {
        let mut end = 0;
        let parts = tensors.iter().map(|tensor| {
            let (start, bytes) = (end, tensor.elem_count() * tensor.dtype().size_in_bytes());
            end += bytes.next_multiple_of(ALIGNMENT);
            Part { dtype: tensor.dtype(), shape: tensor.shape().clone(), start, bytes }
        });
        let parts = parts.collect();
        Ok(HostTensors { buffer: pool.take(end)?, parts })
    }

    /// Bytes of their values.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes as u64).sum()
    }

    /// Each tensor with its values, in the order in which they were given.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&Part, &[u8])> {
        let bytes = self.buffer.as_slice();
        self.parts.iter().map(|part| (part, &bytes[part.start..part.start + part.bytes]))
    }

    /// The values of tensor `index`, to be written.
    pub(crate) fn values_mut(&mut self, index: usize) -> &mut [u8] {
        let Part { start, bytes, .. } = self.parts[index];
        &mut self.buffer.as_mut_slice()[start..start + bytes]
    }
}

/// Bytes of a buffer that holds tensors of so many bytes in all, unless they are many and odd: large ones fill their
/// alignment.
pub fn room_for(bytes: usize) -> usize {
    bytes + bytes / 64 + GRAIN
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn buffers_come_back_and_are_used_again() {
        let pool = HostPool::new();
        let mut first = pool.take(10_000).unwrap();
        first.as_mut_slice()[9_999] = 7;
        let address = first.as_slice().as_ptr();
        assert_eq!(first.as_slice().len(), 10_000);
        let total = pool.total_bytes();
        drop(first);
        let again = pool.take(9_000).unwrap();
        assert_eq!((again.as_slice().as_ptr(), pool.total_bytes()), (address, total));
        // The free buffer is taken, so this one is new.
        let other = pool.take(9_000).unwrap();
        assert_ne!(other.as_slice().as_ptr(), address);
        assert!(pool.total_bytes() > total);
        drop((again, other));
        pool.trim();
        assert_eq!(pool.total_bytes(), 0);
    }

    #[test]
    fn tensors_lie_one_after_another() {
        let pool = HostPool::new();
        let device = candle_core::Device::Cpu;
        let zeros = |count: usize, dtype| Tensor::zeros(count, dtype, &device).unwrap();
        let tensors = [zeros(3, DType::F32), zeros(0, DType::F64), zeros(300, DType::U8), zeros(1, DType::BF16)];
        let mut host = HostTensors::like(&tensors, &pool).unwrap();
        assert_eq!((host.bytes(), host.parts().count()), (12 + 300 + 2, 4));
        (0..4).for_each(|index| host.values_mut(index).fill(index as u8));
        for (index, (part, values)) in host.parts().enumerate() {
            assert_eq!((part.dtype, part.shape.dims()), (tensors[index].dtype(), tensors[index].dims()));
            assert!(values.iter().all(|&byte| usize::from(byte) == index));
            assert!((values.as_ptr().addr() - host.buffer.as_slice().as_ptr().addr()).is_multiple_of(ALIGNMENT));
        }
        let none = HostTensors::like(&[], &pool).unwrap();
        assert_eq!((none.bytes(), none.parts().count()), (0, 0));
    }

    #[test]
    fn what_was_prepared_for_is_taken() {
        let pool = HostPool::new();
        let device = candle_core::Device::Cpu;
        let tensors: Vec<Tensor> = (1..20).map(|count| Tensor::zeros(count, DType::F32, &device).unwrap()).collect();
        pool.prepare(&[room_for(tensors.iter().map(|tensor| 4 * tensor.elem_count()).sum())]).unwrap();
        let total = pool.total_bytes();
        let host = HostTensors::like(&tensors, &pool).unwrap();
        assert_eq!(pool.total_bytes(), total);
        drop(host);
    }

    #[test]
    fn a_small_request_leaves_a_large_buffer_alone() {
        let pool = HostPool::new();
        pool.prepare(&[1 << 20]).unwrap();
        let small = pool.take(1000).unwrap();
        let large = pool.take(1 << 20).unwrap();
        assert_eq!(pool.total_bytes(), (1 << 20) + GRAIN);
        drop((small, large));
    }
}
