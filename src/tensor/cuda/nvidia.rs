//! NVIDIA's driver, through cudarc, which finds libcuda when the program runs: this binary also starts where there is none.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUfunction_attribute_enum as FunctionAttribute};
use cudarc::driver::{CudaContext, CudaGraph, CudaStream, DriverError, result};
use serde::Serialize;

use super::args::MapBytes;
use super::blas::Blas;
use super::kernels::{MODULES, NO_KERNELS, NVCC};
use super::ring::Rings;
use super::{Arg, Card, DType, Driver, Launch, Mark, Matmul, Replay, TensorMap, forbids_hopper};
use crate::error::{Error, Result};

/// The oldest GPUs that the kernels run on (mma.sync with bf16, cp.async).
const LEAST_CAPABILITY: (i32, i32) = (8, 0);
/// Those that have wgmma (sm_90a code runs on these alone).
const HOPPER: (i32, i32) = (9, 0);
/// Dynamic shared memory that a kernel may use without being allowed more.
const SHARED_DEFAULT: usize = 48 << 10;

pub(super) struct Nvidia {
    name: String,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    rings: Mutex<Rings>,
    /// `None`: there is no cuBLASLt, or it has been closed.
    blas: Option<Blas>,
    functions: HashMap<&'static str, sys::CUfunction>,
    /// Dynamic shared memory that a function has been allowed, where it is more than the default.
    allowed: Mutex<HashMap<&'static str, usize>>,
    card: Card,
}

// SAFETY: function handles are addresses that the driver may be given from any thread; they live as long as the context.
unsafe impl Send for Nvidia {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Nvidia {}

fn fail(what: &str, error: DriverError) -> Error {
    match error {
        // The driver's own memory, for a graph or a kernel that it loads late: as for ours, a smaller batch may do.
        DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) => Error::OutOfMemory { wanted: 0, in_use: 0 },
        _ => Error::Failure(format!("CUDA, {what}: {error}")),
    }
}

/// How many GPUs the driver shows, or why there are none.
pub fn count() -> Result<usize, String> {
    // SAFETY: it only tries to load the library.
    if !unsafe { sys::is_culib_present() } {
        return Err("there is no NVIDIA driver (libcuda.so)".into());
    }
    result::init().map_err(|e| format!("the NVIDIA driver does not start: {e}"))?;
    serves(cuda_version(), NVCC)?;
    let count = CudaContext::device_count().map_err(|e| format!("the NVIDIA driver shows no GPUs: {e}"))?;
    if count == 0 { Err("the NVIDIA driver shows no GPU".into()) } else { Ok(count as usize) }
}

/// The CUDA version that the driver serves, like 13000 for 13.0; 0 if it does not say.
fn cuda_version() -> i32 {
    let mut version = 0;
    // SAFETY: it writes one int.
    let known = unsafe { sys::cuDriverGetVersion(&raw mut version) } == sys::CUresult::CUDA_SUCCESS;
    if known { version } else { 0 }
}

/// Whether a driver for CUDA `version` takes machine code from nvcc: that of its own major version, and older.
fn serves(version: i32, nvcc: &str) -> Result<(), String> {
    let needed: i32 = nvcc.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if version / 1000 >= needed {
        return Ok(());
    }
    let (major, minor) = (version / 1000, version % 1000 / 10);
    Err(format!(
        "the NVIDIA driver serves CUDA {major}.{minor}, expected {needed}.0 or later, which made the kernels"
    ))
}

/// A GPU that the driver shows.
#[derive(Clone, Debug, Serialize)]
pub struct GpuFacts {
    pub name: String,
    pub memory_bytes: usize,
    /// Compute capability, like 9.0.
    pub capability: String,
    /// Whether the kernels run on it.
    pub usable: bool,
}

/// All GPUs that the driver shows, by ordinal, or why there are none. Nothing is allocated on them.
pub fn gpus() -> Result<Vec<GpuFacts>, String> {
    (0..count()?)
        .map(|ordinal| facts(ordinal as i32).map_err(|e| format!("GPU {ordinal} does not answer: {e}")))
        .collect()
}

fn facts(ordinal: i32) -> Result<GpuFacts, DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let device = result::device::get(ordinal)?;
    // SAFETY: `device` is from the line above, here and below.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    Ok(GpuFacts {
        name: result::device::get_name(device)?,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }?,
        capability: format!("{}.{}", capability.0, capability.1),
        usable: capability >= LEAST_CAPABILITY,
    })
}

/// Whether NVIDIA's driver library and its library of matrix products can be loaded: libcuda, libcublasLt.
pub fn libraries() -> (bool, bool) {
    // SAFETY: these only try to load the libraries.
    unsafe { (sys::is_culib_present(), cudarc::cublaslt::sys::is_culib_present()) }
}

impl Nvidia {
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        if let Some(why) = NO_KERNELS {
            return Err(Error::Usage(format!("no CUDA: this binary was built without kernels, since {why}")));
        }
        let count = count().map_err(|why| Error::Usage(format!("no CUDA: {why}")))?;
        if ordinal >= count {
            return Err(Error::Usage(format!("--device {ordinal}: expected 0 to {}", count - 1)));
        }
        let context = CudaContext::new(ordinal).map_err(|e| fail("context", e))?;
        let capability = context.compute_capability().map_err(|e| fail("compute capability", e))?;
        let name = context.name().map_err(|e| fail("name", e))?;
        if capability < LEAST_CAPABILITY {
            let (major, minor) = capability;
            return Err(Error::Usage(format!(
                "{name}: expected compute capability 8.0 or more, got {major}.{minor}"
            )));
        }
        let stream = context.new_stream().map_err(|e| fail("stream", e))?;
        let rings = Mutex::new(Rings::new(&context).map_err(|e| fail("page-locked memory", e))?);
        let functions = functions()?;
        let blas = Blas::open()?;
        let multiprocessors = context
            .attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(|e| fail("multiprocessors", e))?;
        let hopper = capability == HOPPER && !forbids_hopper();
        let card = Card { hopper, multiprocessors: usize::try_from(multiprocessors).unwrap_or(1).max(1) };
        Ok(Nvidia { name, context, stream, rings, blas, functions, allowed: Mutex::default(), card })
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| fail("context", e))
    }

    /// Lets a function use more than the default of dynamic shared memory.
    fn allow_shared(&self, name: &'static str, function: sys::CUfunction, bytes: usize) -> Result<()> {
        if bytes <= SHARED_DEFAULT {
            return Ok(());
        }
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        let most = allowed.entry(name).or_insert(SHARED_DEFAULT);
        if bytes > *most {
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `function` belongs to a module that is never unloaded.
            unsafe { result::function::set_function_attribute(function, attribute, bytes as i32) }
                .map_err(|e| fail(&format!("{name} with {bytes} bytes of shared memory"), e))?;
            *most = bytes;
        }
        Ok(())
    }
}

/// Loads all modules into the current context. They stay as long as it does.
fn functions() -> Result<HashMap<&'static str, sys::CUfunction>> {
    let mut functions = HashMap::new();
    for module in MODULES {
        // SAFETY: the image is a whole fatbin that nvcc wrote, in memory for the life of the program.
        let loaded = unsafe { result::module::load_data(module.fatbin.as_ptr().cast::<c_void>()) }
            .map_err(|e| fail(&format!("kernels/{}.cu", module.stem), e))?;
        for &(symbol, _) in module.symbols {
            let name = CString::new(symbol).map_err(|_| Error::Failure(format!("{symbol:?} has a NUL")))?;
            // SAFETY: the module was loaded above and is never unloaded.
            let function =
                unsafe { result::module::get_function(loaded, name) }.map_err(|e| fail(symbol, e))?;
            functions.insert(symbol, function);
        }
    }
    Ok(functions)
}

/// What the loaded kernel module says of itself: the first word of its line that looks like 580.159.04.
fn module_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let numbers = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.lines().next()?.split_whitespace().find(numbers).map(str::to_owned)
}

fn encode(map: &TensorMap) -> Result<MapBytes, DriverError> {
    use sys::CUtensorMapDataType_enum as Type;
    let dtype = match map.dtype {
        DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        // Bytes are copied as they are, whatever their sign.
        DType::U8 | DType::I8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
    };
    let swizzle = match map.swizzle {
        128 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
        64 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_64B,
        32 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_32B,
        _ => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE,
    };
    let wide = |of: &[usize]| of.iter().map(|&n| n as u64).collect::<Vec<_>>();
    let (dims, strides) = (wide(&map.dims), wide(&map.strides));
    let tile: Vec<u32> = map.tile.iter().map(|&n| n as u32).collect();
    let steps = vec![1u32; tile.len()];
    let mut bytes = MapBytes([0; 128]);
    // SAFETY: the map has the size and alignment of a CUtensorMap; the lists have a number for each dimension (`TensorMap::check`), the
    // strides one less, as the function expects; it reads no memory at `base`.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            (&raw mut bytes).cast(),
            dtype,
            dims.len() as u32,
            map.base.0 as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    Ok(bytes)
}

/// One thread at a time may use a graph.
struct Kept(Mutex<CudaGraph>);

// SAFETY: the driver takes graph handles from any thread, one at a time, which the lock sees to.
unsafe impl Send for Kept {}
// SAFETY: as above.
unsafe impl Sync for Kept {}

impl Replay for Kept {
    fn launch(&self) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).launch().map_err(|e| fail("graph", e))
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        // What cuBLASLt has on the GPU is freed in its context, when nothing uses it any more.
        if self.synchronize().is_ok() {
            self.blas = None;
        } else {
            std::mem::forget(self.blas.take());
        }
    }
}

impl Driver for Nvidia {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> String {
        let cuda = cuda_version();
        let cuda = (cuda > 0).then(|| format!("CUDA {}.{}", cuda / 1000, cuda % 1000 / 10));
        let parts: Vec<String> = module_version().into_iter().chain(cuda).collect();
        parts.join(" ")
    }

    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        self.bind()?;
        // SAFETY: the address is used within `bytes` and freed once, by the arena.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(ptr) => Ok(Some(ptr)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(e) => Err(fail("memory", e)),
        }
    }

    fn free(&self, ptr: u64) {
        if self.bind().is_ok() {
            // SAFETY: from `alloc`, not freed before, and nothing queued uses it: the arena has waited. A failure leaks, which does no harm.
            let _ = unsafe { result::free_sync(ptr) };
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.upload(&self.stream, to, from).map_err(|e| fail("upload", e))
    }

    fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `from` has that many bytes (the caller's buffer); `to` is borrowed until the wait below is over.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }
            .map_err(|e| fail("download", e))?;
        self.synchronize()
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: both ranges lie in live buffers and do not overlap (the caller's contract).
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(|e| fail("copy", e))
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: the range lies in a live buffer (the caller's contract).
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }
            .map_err(|e| fail("zeros", e))
    }

    fn launch(&self, kernel: &str, launch: Launch, args: &[Arg]) -> Result<()> {
        let Some((&name, &function)) = self.functions.get_key_value(kernel) else {
            return Err(Error::Failure(format!("this binary has no kernel {kernel}")));
        };
        self.bind()?;
        self.allow_shared(name, function, launch.shared)?;
        // The driver reads them only, whatever the type says.
        let mut params: Vec<*mut c_void> =
            args.iter().map(|a| a.bytes().as_ptr().cast_mut().cast()).collect();
        let [x, y, z] = launch.grid.map(|n| n as u32);
        // SAFETY: types: the launcher in ops gives the kernel's parameters in order, which the same call through the host driver checks in
        // number and size. Bounds and aliasing: the launcher has checked shapes; outputs are `&mut`. The driver copies the arguments.
        unsafe {
            let stream = self.stream.cu_stream();
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.block, 1, 1),
                launch.shared as u32,
                stream,
                &mut params,
            )
        }
        .map_err(|e| fail(&format!("{name} with {launch:?}"), e))
    }

    fn card(&self) -> Card {
        self.card
    }

    fn vendor(&self) -> bool {
        self.blas.is_some()
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<Arg> {
        self.bind()?;
        encode(map).map(Arg::map).map_err(|e| fail(&format!("{map:?}"), e))
    }

    fn matmul(&self, job: &Matmul) -> Result<bool> {
        let Some(blas) = &self.blas else { return Ok(false) };
        self.bind()?;
        blas.matmul(job, self.stream.cu_stream())
    }

    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        self.stream.synchronize().map_err(|e| fail("waiting", e))
    }

    fn mark(&self) -> Result<Mark> {
        let timed = self.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let event = timed.and_then(|event| event.record(&self.stream).map(|()| event));
        event.map(Mark::Event).map_err(|e| fail("event", e))
    }

    fn between(&self, from: &Mark, to: &Mark) -> Result<f32> {
        match (from, to) {
            (Mark::Event(from), Mark::Event(to)) => from.elapsed_ms(to).map_err(|e| fail("event", e)),
            _ => Err(Error::op("between", "two marks of this GPU", "another's")),
        }
    }

    fn begin_capture(&self) -> Result<()> {
        // Relaxed: the arena may still ask the driver for memory, which the other modes forbid while capturing.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        self.stream.begin_capture(mode).map_err(|e| fail("capture", e))
    }

    fn end_capture(&self) -> Result<Box<dyn Replay>> {
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        match self.stream.end_capture(flags) {
            Ok(Some(graph)) => Ok(Box::new(Kept(Mutex::new(graph)))),
            Ok(None) => Err(Error::Failure("CUDA, capture: nothing was captured".into())),
            Err(e) => Err(fail("capture", e)),
        }
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(|e| fail("memory", e))
    }
}

#[cfg(test)]
mod tests {
    use super::serves;

    #[test]
    fn a_driver_serves_its_major_version_and_older_ones() {
        assert!(serves(13000, "13.0.88").is_ok() && serves(13010, "13.0.88").is_ok());
        assert!(serves(12080, "12.9.1").is_ok() && serves(14000, "13.0.88").is_ok());
        assert!(serves(0, "").is_ok(), "no kernels, no need");
        let error = serves(12080, "13.0.88").unwrap_err();
        assert!(error.contains("CUDA 12.8, expected 13.0"), "{error}");
    }
}
