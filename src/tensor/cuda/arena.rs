//! Device memory that is used again: a buffer that is dropped goes back to the arena, and the next one of about its size takes it. A step
//! that repeats the shapes of the last one asks the driver for nothing. There is one stream, so whoever takes a block is queued behind
//! whoever had it before. What is kept beyond the most that was ever in use is given back before it is more than a tenth of that: batches
//! of ever other sizes do not pile up blocks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Gpu, Ptr};
use crate::error::{Error, Result};

#[derive(Default)]
pub(super) struct Arena {
    free: Free,
    usage: MemoryUse,
    /// MPA_ARENA=exact: blocks have the size that is asked for, so that compute-sanitizer sees what goes past their ends.
    exact: bool,
    /// Where blocks come from and go to while a graph is captured.
    pool: Option<Arc<Pool>>,
}

/// Blocks of a graph, which nobody else may use while it can be replayed.
pub(super) struct Pool {
    gpu: Weak<Gpu>,
    free: Mutex<Free>,
}

/// Addresses of unused blocks by their size; no list is empty.
#[derive(Default)]
struct Free {
    blocks: BTreeMap<usize, Vec<u64>>,
    bytes: usize,
}

impl Free {
    fn put(&mut self, ptr: u64, size: usize) {
        self.blocks.entry(size).or_default().push(ptr);
        self.bytes += size;
    }

    /// The smallest block of `least` to `most` bytes, and its size.
    fn take(&mut self, least: usize, most: usize) -> Option<(u64, usize)> {
        let (&size, list) = self.blocks.range_mut(least..=most).next()?;
        let ptr = list.pop()?;
        if list.is_empty() {
            self.blocks.remove(&size);
        }
        self.bytes -= size;
        Some((ptr, size))
    }

    fn take_all(&mut self) -> impl Iterator<Item = (u64, usize)> + use<> {
        let all = std::mem::take(self).blocks;
        all.into_iter().flat_map(|(size, list)| list.into_iter().map(move |ptr| (ptr, size)))
    }
}

/// Bytes of device memory, and how often the driver was asked for some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    pub in_use: usize,
    pub peak: usize,
    /// With what is kept for later.
    pub reserved: usize,
    pub most_reserved: usize,
    pub allocations: usize,
}

/// A block of device memory, given back when dropped.
pub struct Buffer {
    gpu: Arc<Gpu>,
    ptr: u64,
    bytes: usize,
    capacity: usize,
    pool: Option<Arc<Pool>>,
}

/// What a request is rounded up to, so that requests of nearly the same size can share a block: eight sizes from one power of two to the next.
fn capacity(bytes: usize) -> usize {
    const LEAST: usize = 512;
    let bytes = bytes.max(LEAST);
    let step = (bytes.next_power_of_two() / 16).max(LEAST);
    bytes.next_multiple_of(step)
}

impl Arena {
    pub(super) fn new() -> Arena {
        Arena { exact: std::env::var_os("MPA_ARENA").is_some_and(|v| v == "exact"), ..Arena::default() }
    }

    pub(super) fn usage(&self) -> MemoryUse {
        self.usage
    }

    /// An unused block, and its size. One of more than twice that is left to those who need it.
    fn take(&mut self, least: usize) -> Option<(u64, usize)> {
        let most = if self.exact { least } else { 2 * least };
        let pooled = self.pool.as_ref().and_then(|pool| pool.free().take(least, most));
        pooled.or_else(|| self.free.take(least, most))
    }

    /// Until `end_set_aside`, all blocks that are taken belong to the pool that is returned.
    pub(super) fn set_aside(&mut self, gpu: &Arc<Gpu>) -> Result<Arc<Pool>> {
        if self.pool.is_some() {
            return Err(Error::Failure("a graph is being captured already".into()));
        }
        let pool = Arc::new(Pool { gpu: Arc::downgrade(gpu), free: Mutex::default() });
        self.pool = Some(Arc::clone(&pool));
        Ok(pool)
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.pool.is_some()
    }

    pub(super) fn end_set_aside(&mut self) {
        self.pool = None;
    }

    fn count(&mut self, capacity: usize) {
        self.usage.in_use += capacity;
        self.usage.peak = self.usage.peak.max(self.usage.in_use);
    }
}

impl Buffer {
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Buffer> {
        let (ptr, capacity, pool) = {
            let mut arena = gpu.arena();
            let least = if arena.exact { bytes.max(1) } else { capacity(bytes) };
            let (ptr, capacity) = match arena.take(least) {
                Some(block) => block,
                None => (arena.grow(gpu, least)?, least),
            };
            arena.count(capacity);
            (ptr, capacity, arena.pool.clone())
        };
        gpu.driver.reuse(ptr, bytes, capacity);
        Ok(Buffer { gpu: Arc::clone(gpu), ptr, bytes, capacity, pool })
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
    /// A new block from the driver; if it has none left, or too much would be kept, unused blocks of other sizes are handed back to it first.
    fn grow(&mut self, gpu: &Gpu, capacity: usize) -> Result<u64> {
        let most = self.usage.peak.max(self.usage.in_use + capacity);
        // While a graph is captured nothing may be waited for.
        if !self.is_capturing()
            && self.usage.reserved + capacity > most + most / 10
            && self.free.bytes > most / 10
        {
            self.release_unused(gpu)?;
        }
        for last in [false, true] {
            if let Some(ptr) = gpu.driver.alloc(capacity)? {
                self.usage.allocations += 1;
                self.usage.reserved += capacity;
                self.usage.most_reserved = self.usage.most_reserved.max(self.usage.reserved);
                return Ok(ptr);
            }
            if !last && !self.is_capturing() {
                self.release_unused(gpu)?;
            }
        }
        Err(Error::OutOfMemory { wanted: capacity, in_use: self.usage.in_use })
    }

    fn release_unused(&mut self, gpu: &Gpu) -> Result<()> {
        gpu.driver.synchronize()?;
        for (ptr, size) in self.free.take_all() {
            gpu.driver.free(ptr);
            self.usage.reserved -= size;
        }
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut arena = self.gpu.arena();
        arena.usage.in_use -= self.capacity;
        match &self.pool {
            Some(pool) => pool.free().put(self.ptr, self.capacity),
            None => arena.free.put(self.ptr, self.capacity),
        }
    }
}

impl Pool {
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The last of a graph and its buffers has gone: everybody may use the blocks. Without a GPU there is nobody left.
        let Some(gpu) = self.gpu.upgrade() else { return };
        let mut arena = gpu.arena();
        for (ptr, size) in self.free().take_all() {
            arena.free.put(ptr, size);
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Whatever still runs may use the blocks; nobody is left to tell if waiting fails.
        let _ = self.driver.synchronize();
        for (ptr, _) in self.arena().free.take_all() {
            self.driver.free(ptr);
        }
    }
}
