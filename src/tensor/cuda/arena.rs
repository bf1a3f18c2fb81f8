//! Device memory that is used again: a buffer that is dropped goes back to the arena, and the next one of about its size takes it. A step
//! that repeats the shapes of the last one asks the driver for nothing. There is one stream, so whoever takes a block is queued behind
//! whoever had it before.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Gpu, Ptr};
use crate::error::{Error, Result};

#[derive(Default)]
pub(super) struct Arena {
    /// Addresses of unused blocks by their size.
    free: BTreeMap<usize, Vec<u64>>,
    usage: MemoryUse,
}

/// Bytes of device memory, and how often the driver was asked for some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    pub in_use: usize,
    pub peak: usize,
    /// With what is kept for later.
    pub reserved: usize,
    pub allocations: usize,
}

/// A block of device memory, given back when dropped.
pub struct Buffer {
    gpu: Arc<Gpu>,
    ptr: u64,
    bytes: usize,
    capacity: usize,
}

/// What a request is rounded up to, so that requests of nearly the same size can share a block: eight sizes from one power of two to the next.
fn capacity(bytes: usize) -> usize {
    const LEAST: usize = 512;
    let bytes = bytes.max(LEAST);
    let step = (bytes.next_power_of_two() / 16).max(LEAST);
    bytes.next_multiple_of(step)
}

impl Arena {
    pub(super) fn usage(&self) -> MemoryUse {
        self.usage
    }

    fn take(&mut self, capacity: usize) -> Option<u64> {
        self.free.get_mut(&capacity)?.pop()
    }

    fn count(&mut self, capacity: usize) {
        self.usage.in_use += capacity;
        self.usage.peak = self.usage.peak.max(self.usage.in_use);
    }
}

impl Buffer {
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Buffer> {
        let capacity = capacity(bytes);
        let ptr = {
            let mut arena = gpu.arena();
            let ptr = match arena.take(capacity) {
                Some(ptr) => ptr,
                None => arena.grow(gpu, capacity)?,
            };
            arena.count(capacity);
            ptr
        };
        gpu.driver.reuse(ptr, bytes, capacity);
        Ok(Buffer { gpu: Arc::clone(gpu), ptr, bytes, capacity })
    }

    pub fn ptr(&self) -> Ptr {
        Ptr(self.ptr)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

impl Arena {
    /// A new block from the driver; if it has none left, unused blocks of other sizes are handed back to it first.
    fn grow(&mut self, gpu: &Gpu, capacity: usize) -> Result<u64> {
        for last in [false, true] {
            if let Some(ptr) = gpu.driver.alloc(capacity)? {
                self.usage.allocations += 1;
                self.usage.reserved += capacity;
                return Ok(ptr);
            }
            if !last {
                self.release_unused(gpu)?;
            }
        }
        Err(Error::OutOfMemory { wanted: capacity, in_use: self.usage.in_use })
    }

    fn release_unused(&mut self, gpu: &Gpu) -> Result<()> {
        gpu.driver.synchronize()?;
        for (size, blocks) in std::mem::take(&mut self.free) {
            for ptr in blocks {
                gpu.driver.free(ptr);
                self.usage.reserved -= size;
            }
        }
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut arena = self.gpu.arena();
        arena.usage.in_use -= self.capacity;
        arena.free.entry(self.capacity).or_default().push(self.ptr);
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Whatever still runs may use the blocks; nobody is left to tell if waiting fails.
        let _ = self.driver.synchronize();
        for ptr in std::mem::take(&mut self.arena().free).into_values().flatten() {
            self.driver.free(ptr);
        }
    }
}
