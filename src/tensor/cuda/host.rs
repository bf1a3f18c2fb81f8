//! The CPU in the place of a GPU, for tests: the library that kernels/host/build.sh makes of kernels/*.cu runs every CUDA thread as a fiber.
//! Its state is global, so all calls share one lock. MPA_HOST_KERNELS names another build of it (with a sanitizer, or with a planted fault).

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use libloading::{Library, Symbol};

use super::args::MapBytes;
use super::{Arg, Card, Driver, Launch, Mark, Replay, TensorMap, forbids_hopper};
use crate::error::{Error, Result};

/// Memory that the host driver claims to have.
const MEMORY: usize = 512 << 20;

static LOCK: Mutex<()> = Mutex::new(());

pub(super) struct Host {
    machine: Arc<Machine>,
    /// What is kept while a graph is captured.
    captured: Mutex<Option<Vec<Work>>>,
    /// Sizes of the blocks that are lent out, by address.
    blocks: Mutex<HashMap<u64, usize>>,
    card: Card,
}

/// kernels/host/launch.h, mpa_host_launch.
type LaunchFn = unsafe extern "C" fn(
    name: *const c_char,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: usize,
    seed: u64,
    args: *const *const c_void,
    arg_bytes: *const usize,
    n_args: usize,
    message: *mut c_char,
    message_bytes: usize,
) -> i32;

fn lock() -> MutexGuard<'static, ()> {
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    pub(super) fn open(card: Card, seed: u64) -> Result<Self> {
        let path = std::env::var_os("MPA_HOST_KERNELS").map_or_else(
            || PathBuf::from(concat!(env!("OUT_DIR"), "/libmpa_host_kernels.so")),
            PathBuf::from,
        );
        // SAFETY: the library is this project's own; loading it registers its kernels and does nothing else.
        let library = unsafe { Library::new(&path) }
            .map_err(|e| Error::input(&path, format!("expected the library of host kernels: {e}")))?;
        let machine = Arc::new(Machine { library, seed });
        let card = Card { hopper: card.hopper && !forbids_hopper(), ..card };
        Ok(Host { machine, captured: Mutex::default(), blocks: Mutex::default(), card })
    }

    fn blocks(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_use(&self) -> usize {
        self.blocks().values().sum()
    }

    fn captured(&self) -> MutexGuard<'_, Option<Vec<Work>>> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The library's functions are called through this, from the driver and from what it has kept.
struct Machine {
    library: Library,
    seed: u64,
}

impl Machine {
    /// # Safety
    /// T is the type of the function `name` in kernels/host/launch.h.
    unsafe fn function<T>(&self, name: &CStr) -> Result<Symbol<'_, T>> {
        // SAFETY: the caller's contract.
        unsafe { self.library.get(name) }
            .map_err(|e| Error::Failure(format!("library of host kernels, {name:?}: {e}")))
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) {
        let _lock = lock();
        // SAFETY: both ranges lie in live buffers and do not overlap (the contract of `Gpu::copy`).
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
    }

    fn zero(&self, at: u64, bytes: usize) {
        let _lock = lock();
        // SAFETY: the range lies in a live buffer (the contract of `Gpu::zero`).
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
    }

    fn launch(&self, kernel: &str, launch: Launch, args: &[Arg]) -> Result<()> {
        let _lock = lock();
        let name = CString::new(kernel).map_err(|_| Error::Failure(format!("{kernel:?} has a NUL")))?;
        let pointers: Vec<*const c_void> = args.iter().map(|a| a.bytes().as_ptr().cast()).collect();
        let sizes: Vec<usize> = args.iter().map(|a| a.bytes().len()).collect();
        let [x, y, z] = launch.grid.map(|n| n as u32);
        let mut message = [0u8; 512];
        // SAFETY: the type is that of kernels/host/launch.h.
        let run = unsafe { self.function::<LaunchFn>(c"mpa_host_launch") }?;
        // SAFETY: the arrays have the lengths given and live through the call; the library checks number and sizes of the arguments.
        let code = unsafe {
            run(
                name.as_ptr(),
                x,
                y,
                z,
                launch.block,
                1,
                1,
                launch.shared,
                self.seed,
                pointers.as_ptr(),
                sizes.as_ptr(),
                args.len(),
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let text = CStr::from_bytes_until_nul(&message).map_or("no message".into(), CStr::to_string_lossy);
        Err(Error::Failure(format!("{kernel}: {text}")))
    }
}

/// Work that was kept while a graph was captured.
enum Work {
    Launch(String, Launch, Vec<Arg>),
    Copy(u64, u64, usize),
    Zero(u64, usize),
}

struct Kept {
    machine: Arc<Machine>,
    work: Vec<Work>,
}

impl Replay for Kept {
    fn launch(&self) -> Result<()> {
        for work in &self.work {
            match work {
                Work::Launch(kernel, launch, args) => self.machine.launch(kernel, *launch, args)?,
                Work::Copy(to, from, bytes) => self.machine.copy(*to, *from, *bytes),
                Work::Zero(at, bytes) => self.machine.zero(*at, *bytes),
            }
        }
        Ok(())
    }
}

impl Driver for Host {
    fn name(&self) -> &str {
        "host-executed kernels"
    }

    fn version(&self) -> String {
        "none".into()
    }

    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        let _lock = lock();
        if self.in_use() + bytes > MEMORY {
            return Ok(None);
        }
        // SAFETY: void* mpa_host_alloc(size_t).
        let alloc = unsafe {
            self.machine.function::<unsafe extern "C" fn(usize) -> *mut c_void>(c"mpa_host_alloc")
        }?;
        // SAFETY: it may be called with any size.
        let ptr = unsafe { alloc(bytes) } as u64;
        if ptr == 0 {
            return Ok(None);
        }
        self.blocks().insert(ptr, bytes);
        Ok(Some(ptr))
    }

    fn free(&self, ptr: u64) {
        let _lock = lock();
        self.blocks().remove(&ptr);
        // SAFETY: void mpa_host_free(void*).
        if let Ok(free) =
            unsafe { self.machine.function::<unsafe extern "C" fn(*mut c_void)>(c"mpa_host_free") }
        {
            // SAFETY: from `alloc`, freed once.
            unsafe { free(ptr as *mut c_void) };
        }
    }

    fn reuse(&self, ptr: u64, bytes: usize, capacity: usize) {
        let _lock = lock();
        // SAFETY: void mpa_host_reuse(void*, size_t, size_t).
        let reuse = unsafe {
            self.machine.function::<unsafe extern "C" fn(*mut c_void, usize, usize)>(c"mpa_host_reuse")
        };
        if let Ok(reuse) = reuse {
            // SAFETY: the block at `ptr` has `capacity` bytes and no other user.
            unsafe { reuse(ptr as *mut c_void, bytes, capacity) };
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        let _lock = lock();
        // SAFETY: `to` has room for it (the caller's buffer); nothing runs on the "device" while the lock is held.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        let _lock = lock();
        // SAFETY: as for `upload`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        match self.captured().as_mut() {
            Some(work) => work.push(Work::Copy(to, from, bytes)),
            None => self.machine.copy(to, from, bytes),
        }
        Ok(())
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        match self.captured().as_mut() {
            Some(work) => work.push(Work::Zero(at, bytes)),
            None => self.machine.zero(at, bytes),
        }
        Ok(())
    }

    fn launch(&self, kernel: &str, launch: Launch, args: &[Arg]) -> Result<()> {
        match self.captured().as_mut() {
            Some(work) => work.push(Work::Launch(kernel.to_string(), launch, args.to_vec())),
            None => return self.machine.launch(kernel, launch, args),
        }
        Ok(())
    }

    fn card(&self) -> Card {
        self.card
    }

    /// kernels/host/hopper.h, TileMap.
    fn tensor_map(&self, map: &TensorMap) -> Result<Arg> {
        const MAGIC: u32 = 0x7061_6d74;
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(map.base.0.to_ne_bytes());
        let padded = |of: &[usize], len| of.iter().copied().chain(std::iter::repeat(0)).take(len).collect();
        let strides: Vec<usize> = padded(&map.strides, 4);
        strides.iter().for_each(|&n| bytes.extend((n as u64).to_ne_bytes()));
        let mut words: Vec<usize> = padded(&map.dims, 5);
        words.extend::<Vec<usize>>(padded(&map.tile, 5));
        words.extend([map.dims.len(), map.dtype.size(), map.swizzle]);
        words.iter().for_each(|&n| bytes.extend((n as u32).to_ne_bytes()));
        bytes.extend(MAGIC.to_ne_bytes());
        let mut whole = MapBytes([0; 128]);
        whole.0[..bytes.len()].copy_from_slice(&bytes);
        Ok(Arg::map(whole))
    }

    fn mark(&self) -> Result<Mark> {
        Ok(Mark::Time(Instant::now()))
    }

    fn between(&self, from: &Mark, to: &Mark) -> Result<f32> {
        match (from, to) {
            (Mark::Time(from), Mark::Time(to)) => Ok(to.duration_since(*from).as_secs_f32() * 1e3),
            _ => Err(Error::op("between", "two marks of this device", "another's")),
        }
    }

    fn begin_capture(&self) -> Result<()> {
        *self.captured() = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Replay>> {
        let work = self.captured().take().unwrap_or_default();
        Ok(Box::new(Kept { machine: Arc::clone(&self.machine), work }))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok((MEMORY - self.in_use(), MEMORY))
    }
}
