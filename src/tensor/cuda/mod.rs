//! A GPU: its memory, its one stream, its kernels. All work on it is done in the order of the calls.
//!
//! ```text
//! Tensor, ops --launch, copy--> Gpu --> Driver: nvidia.rs (cudarc), host.rs (the same kernels on the CPU, for tests)
//!                                |              or dry.rs (nothing runs, memory is counted)
//!                                +----> Arena: memory that is used again
//!                                |                 blas.rs: plain matrix products by cuBLASLt, where there is one
//!                                +----> graph.rs: launches kept, to be queued again at once
//!                                 what a kernel is given: args.rs
//! ```

mod arena;
mod args;
mod blas;
mod dry;
mod graph;
#[cfg(feature = "host-kernels")]
mod host;
mod kernels;
mod nvidia;
mod resources;
mod ring;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arena::Arena;
pub use arena::{Buffer, MemoryUse};
pub use args::{Arg, Ptr, TensorMap};
pub use blas::WORKSPACE as MATMUL_WORKSPACE;
pub use graph::Graph;
pub use kernels::{NO_KERNELS, NVCC, kernel_count};
pub use nvidia::{GpuFacts, count as gpu_count, gpus, libraries as cuda_libraries};
pub use resources::{KernelResources, kernel_resources, resources_table};

use cudarc::driver::CudaEvent;

use super::DType;
use crate::error::{Error, Result};

/// What a GPU can do. Pointers are addresses on the device; every call is queued behind the ones before it.
trait Driver: Send + Sync + std::panic::RefUnwindSafe {
    fn name(&self) -> &str;
    /// Of the driver, for records of measurements.
    fn version(&self) -> String;
    /// `None`: out of memory.
    fn alloc(&self, bytes: usize) -> Result<Option<u64>>;
    fn free(&self, ptr: u64);
    /// The first `bytes` of the block of `capacity` bytes at `ptr` are about to be used, what they held is not: a test's driver spoils them.
    fn reuse(&self, _ptr: u64, _bytes: usize, _capacity: usize) {}
    /// `from` may be dropped when this returns. Not while a graph is captured.
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;
    /// Waits for the bytes. Not while a graph is captured.
    fn download(&self, to: &mut [u8], from: u64) -> Result<()>;
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    fn zero(&self, at: u64, bytes: usize) -> Result<()>;
    fn launch(&self, kernel: &str, launch: Launch, args: &[Arg]) -> Result<()>;
    /// The kernels so far, with the most dynamic shared memory of each, where that is noted.
    fn launched(&self) -> BTreeMap<String, usize> {
        BTreeMap::new()
    }
    fn card(&self) -> Card;
    /// Whether it has matrix products of the vendor's.
    fn vendor(&self) -> bool {
        false
    }
    /// The argument that tells a kernel for Hopper how to cut tiles out of a tensor.
    fn tensor_map(&self, map: &TensorMap) -> Result<Arg>;
    /// Queues a matrix product of the vendor's; false if it has none that does it.
    fn matmul(&self, _job: &Matmul) -> Result<bool> {
        Ok(false)
    }
    /// Waits until all is done.
    fn synchronize(&self) -> Result<()>;
    fn mark(&self) -> Result<Mark>;
    /// Milliseconds between two marks, both of which have been passed.
    fn between(&self, from: &Mark, to: &Mark) -> Result<f32>;
    /// From here on launches and copies are kept and not run.
    fn begin_capture(&self) -> Result<()>;
    /// What has been kept.
    fn end_capture(&self) -> Result<Box<dyn Replay>>;
    /// Free and total bytes.
    fn memory(&self) -> Result<(usize, usize)>;
}

/// MPA_NO_HOPPER=1: kernels for Hopper are not used, also where they would run.
fn forbids_hopper() -> bool {
    std::env::var_os("MPA_NO_HOPPER").is_some_and(|v| v == "1")
}

/// MPA_NO_GRAPH=1: decode steps are queued launch by launch, to find what fails in one.
pub fn forbids_graphs() -> bool {
    std::env::var_os("MPA_NO_GRAPH").is_some_and(|v| v == "1")
}

/// Work that can be queued again.
trait Replay: Send + Sync {
    fn launch(&self) -> Result<()>;
}

/// A point in the order of the work.
pub enum Mark {
    Event(CudaEvent),
    Time(Instant),
}

pub struct Gpu {
    driver: Box<dyn Driver>,
    arena: Mutex<Arena>,
}

/// What decides which kernels are taken.
#[derive(Clone, Copy, Debug)]
pub struct Card {
    /// It runs wgmma and the like: compute capability 9.0, and MPA_NO_HOPPER=1 does not forbid it.
    pub hopper: bool,
    pub multiprocessors: usize,
}

impl Card {
    /// An H100 SXM or H200.
    pub const H100: Card = Card { hopper: true, multiprocessors: 132 };

    /// As many multiprocessors, and no Hopper.
    pub const OTHER: Card = Card { hopper: false, ..Card::H100 };

    /// A grid of so many blocks leaves next to none of them idle.
    pub fn is_filled_by(self, blocks: usize) -> bool {
        32 * blocks >= 31 * self.multiprocessors
    }
}

/// How many blocks of how many threads, and bytes of dynamic shared memory a block.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    pub grid: [usize; 3],
    pub block: u32,
    pub shared: usize,
}

/// y = alpha a b (+ bias) (+ y): y [M, N] of type `out`; a [M, K], b [K, N] and bias [N] of type `dtype`, all row-major.
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    pub y: Ptr,
    pub a: Operand,
    pub b: Operand,
    pub bias: Option<Ptr>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub dtype: DType,
    pub out: DType,
    pub alpha: f32,
    pub accumulate: bool,
}

/// A matrix of a product, as it lies or the transpose of what lies there.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub at: Ptr,
    pub transposed: bool,
}

impl Ptr {
    /// The matrix that lies here, as an operand.
    pub fn matrix(self) -> Operand {
        Operand { at: self, transposed: false }
    }

    /// Its transpose.
    pub fn transpose(self) -> Operand {
        Operand { at: self, transposed: true }
    }
}

impl Gpu {
    /// The NVIDIA GPU with this ordinal.
    pub fn open(ordinal: usize) -> Result<Arc<Gpu>> {
        Ok(Gpu::with(Box::new(nvidia::Nvidia::open(ordinal)?)))
    }

    /// The CPU in the place of an H100; `seed` decides in which order it runs warps and lanes.
    #[cfg(feature = "host-kernels")]
    pub fn host(seed: u64) -> Result<Arc<Gpu>> {
        Gpu::host_of(Card::H100, seed)
    }

    /// The CPU in the place of such a card. One with few multiprocessors takes the kernels for large matrices for small ones.
    #[cfg(feature = "host-kernels")]
    pub fn host_of(card: Card, seed: u64) -> Result<Arc<Gpu>> {
        Ok(Gpu::with(Box::new(host::Host::open(card, seed)?)))
    }

    /// None at all: launches and copies do nothing, and only memory is counted.
    pub fn dry() -> Arc<Gpu> {
        Gpu::with(Box::new(dry::Dry::new(Card::H100, true)))
    }

    /// As `dry`, with the kernels that run here: what they take there is what they take here.
    pub fn to_dry(&self) -> Arc<Gpu> {
        Gpu::with(Box::new(dry::Dry::new(self.driver.card(), self.driver.vendor())))
    }

    /// As `dry`, with no kernels but ours, those for this card: `launched` names them.
    pub fn dry_with_our_kernels(card: Card) -> Arc<Gpu> {
        Gpu::with(Box::new(dry::Dry::new(card, false)))
    }

    fn with(driver: Box<dyn Driver>) -> Arc<Gpu> {
        Arc::new(Gpu { driver, arena: Mutex::new(Arena::new()) })
    }

    pub fn name(&self) -> &str {
        self.driver.name()
    }

    /// The driver's version and that of CUDA which it serves, like `580.159.04 CUDA 13.0`.
    pub fn driver_version(&self) -> String {
        self.driver.version()
    }

    /// Whether kernels for Hopper (kernels/hopper.cuh) run here: an H100 or H200, unless MPA_NO_HOPPER=1.
    pub fn hopper(&self) -> bool {
        self.driver.card().hopper
    }

    pub fn card(&self) -> Card {
        self.driver.card()
    }

    /// Whether matrix products are cuBLASLt's: it is there, and MPA_CUBLASLT=0 does not forbid it.
    pub fn has_cublaslt(&self) -> bool {
        self.driver.vendor()
    }

    /// The argument for a kernel's `const __grid_constant__ TensorMap`. The tensor must live as long as the launches that are given it.
    pub fn tensor_map(&self, map: &TensorMap) -> Result<Arg> {
        map.check()?;
        self.driver.tensor_map(map)
    }

    /// Queues a kernel of kernels/*.cu. `args` are its parameters in order, with their exact types. A grid without blocks is no work.
    pub fn launch(&self, kernel: &str, launch: Launch, args: &[Arg]) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.driver.launch(kernel, launch, args)
    }

    /// On a dry device the kernels that were launched, with the most dynamic shared memory that a launch of each asked for; else nothing.
    pub fn launched(&self) -> BTreeMap<String, usize> {
        self.driver.launched()
    }

    /// Queues a matrix product of the vendor's; false if there is none that does it: then a kernel of ours has to.
    pub fn matmul(&self, job: &Matmul) -> Result<bool> {
        self.driver.matmul(job)
    }

    /// Memory for `bytes`, holding anything.
    pub fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Buffer> {
        Buffer::new(self, bytes)
    }

    pub fn upload(self: &Arc<Self>, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.alloc(bytes.len())?;
        self.write(buffer.ptr(), bytes)?;
        Ok(buffer)
    }

    /// Overwrites what lies at `to`, where there is room for it.
    pub(super) fn write(&self, to: Ptr, bytes: &[u8]) -> Result<()> {
        self.refuse_while_capturing("an upload")?;
        self.driver.upload(to.0, bytes)
    }

    /// Waits for all work on `buffer`, then reads `to.len()` bytes of it.
    pub fn download(&self, to: &mut [u8], buffer: &Buffer) -> Result<()> {
        self.refuse_while_capturing("a download")?;
        self.driver.download(to, buffer.ptr().0)
    }

    /// Copies on the device; the ranges must not overlap.
    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 { Ok(()) } else { self.driver.copy(to, from, bytes) }
    }

    /// Fills with zero bytes.
    pub(super) fn zero(&self, at: Ptr, bytes: usize) -> Result<()> {
        if bytes == 0 { Ok(()) } else { self.driver.zero(at.0, bytes) }
    }

    pub fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }

    /// A point in the order of the work, for `milliseconds`.
    pub fn mark(&self) -> Result<Mark> {
        self.driver.mark()
    }

    /// What the device took from one mark to the other; waits for it.
    pub fn milliseconds(&self, from: &Mark, to: &Mark) -> Result<f32> {
        self.synchronize()?;
        self.driver.between(from, to)
    }

    /// Bytes that can still be had, from the device or from what the arena keeps.
    pub fn free_memory(&self) -> Result<usize> {
        let usage = self.memory_use();
        Ok(self.driver.memory()?.0 + usage.reserved - usage.in_use)
    }

    /// Free and total bytes of the device.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.driver.memory()
    }

    pub fn memory_use(&self) -> MemoryUse {
        self.arena().usage()
    }

    /// A graph would keep an upload's bytes of now, and nothing has run that a download could wait for.
    fn refuse_while_capturing(&self, what: &str) -> Result<()> {
        if self.arena().is_capturing() {
            return Err(Error::Failure(format!("{what} while a graph is captured")));
        }
        Ok(())
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        // The arena is consistent between its own calls, also when a thread that held it panicked.
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
