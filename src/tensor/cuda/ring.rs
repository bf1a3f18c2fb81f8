//! Uploads that wait for nothing: bytes are copied into page-locked memory, from where the GPU fetches them while the CPU goes on. Slots are
//! used in turn, each again when its last fetch is over.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};

/// Small arrays (ids, spans) and pictures have slots of their own: the former come many at a time, the latter in many bytes.
const SMALL: (usize, usize) = (64, 64 << 10);
const LARGE: (usize, usize) = (4, 8 << 20);

pub(super) struct Rings {
    small: Ring,
    large: Ring,
}

struct Ring {
    slots: Vec<Slot>,
    bytes: usize,
    next: usize,
}

struct Slot {
    memory: *mut u8,
    /// When the last fetch from it is over.
    fetched: CudaEvent,
}

// SAFETY: the memory belongs to the slot alone; who has the `&mut` of its ring may write it from any thread.
unsafe impl Send for Slot {}

impl Rings {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        Ok(Rings { small: Ring::new(context, SMALL)?, large: Ring::new(context, LARGE)? })
    }

    /// Queues the upload of `from` to device address `to`, which has room for it.
    pub(super) fn upload(&mut self, stream: &CudaStream, to: u64, from: &[u8]) -> Result<(), DriverError> {
        let ring = if from.len() <= self.small.bytes { &mut self.small } else { &mut self.large };
        let mut at = to;
        for piece in from.chunks(ring.bytes) {
            ring.upload(stream, at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

impl Ring {
    fn new(context: &Arc<CudaContext>, (count, bytes): (usize, usize)) -> Result<Self, DriverError> {
        let mut ring = Ring { slots: Vec::with_capacity(count), bytes, next: 0 };
        for _ in 0..count {
            let fetched = context.new_event(None)?;
            // SAFETY: page-locked memory of `bytes`, freed once when the slot is dropped.
            let memory = unsafe { result::malloc_host(bytes, 0) }?.cast::<u8>();
            ring.slots.push(Slot { memory, fetched });
        }
        Ok(ring)
    }

    fn upload(&mut self, stream: &CudaStream, to: u64, piece: &[u8]) -> Result<(), DriverError> {
        let slot = &self.slots[self.next];
        self.next = (self.next + 1) % self.slots.len();
        slot.fetched.synchronize()?;
        // SAFETY: the slot has `bytes` >= the piece's length, and nothing fetches from it any more. `to` has room for the piece.
        unsafe {
            std::ptr::copy_nonoverlapping(piece.as_ptr(), slot.memory, piece.len());
            let staged = std::slice::from_raw_parts(slot.memory, piece.len());
            result::memcpy_htod_async(to, staged, stream.cu_stream())?;
        }
        slot.fetched.record(stream)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The memory may go when the fetch is over. Failures leak, which does no harm.
        if self.fetched.synchronize().is_ok() {
            // SAFETY: from malloc_host, freed once.
            let _ = unsafe { result::free_host(self.memory.cast::<c_void>()) };
        }
    }
}
