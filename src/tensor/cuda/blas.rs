//! Matrix products by cuBLASLt, which is found when the program runs. Not run under host execution: read with care.
//!
//! Ours are row-major, cuBLASLt's are column-major, and a row-major matrix [R, C] is, as it lies, the column-major one of C rows and R columns
//! with leading dimension C: its transpose. So y = a b with y [M, N], a [M, K], b [K, N] is asked for as y^T = b^T a^T:
//!
//! ```text
//! D = op(A) op(B):   D = y^T          N x M, leading dimension N: y as it lies
//!                    A = b^T, N x K   b [K, N] lies as N x K, leading dimension N; op = none
//!                                     transposed it lies as [N, K], that is K x N, leading dimension K; op = transpose
//!                    B = a^T, K x M   a [M, K] lies as K x M, leading dimension K; op = none
//!                                     transposed it lies as [K, M], that is M x K, leading dimension M; op = transpose
//! ```
//!
//! A layer's products (src/ops/linear.rs): y = x W^T has b transposed, dx = dy W none, dW = dy^T x has a transposed.
//! The bias of the epilogue has one element for each row of D, that is N of them: b's columns.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtEpilogue_t, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtReductionScheme_t, cublasStatus_t as Status,
    cudaDataType_t,
};
use cudarc::driver;

use super::Matmul;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// What NVIDIA recommends for Hopper.
pub const WORKSPACE: usize = 32 << 20;
/// cublasOperation_t: as it is, transposed.
const OP_N: i32 = 0;
const OP_T: i32 = 1;
/// Shapes that are remembered; a run over ragged batches meets ever new ones.
const MOST_PLANS: usize = 4096;

pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    /// Device memory. There is one stream: products use it one after the other.
    workspace: u64,
    plans: Mutex<HashMap<Shape, Option<Plan>>>,
}

// SAFETY: a handle may be used from any thread; descriptors are used under the lock only.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// What an algorithm is chosen for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    a_transposed: bool,
    b_transposed: bool,
    dtype: DType,
    out: DType,
    bias: bool,
    accumulate: bool,
}

/// Descriptors of a shape, and the algorithm.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn fail(what: &str, error: CublasError) -> Error {
    match error {
        CublasError(Status::CUBLAS_STATUS_ALLOC_FAILED) => Error::OutOfMemory { wanted: 0, in_use: 0 },
        _ => Error::Failure(format!("cuBLASLt, {what}: {error}")),
    }
}

fn data_type(dtype: DType) -> Option<cudaDataType_t> {
    match dtype {
        DType::F32 => Some(cudaDataType_t::CUDA_R_32F),
        DType::Bf16 => Some(cudaDataType_t::CUDA_R_16BF),
        DType::F16 | DType::U8 | DType::I8 => None,
    }
}

impl Blas {
    /// `None` without the library, or with MPA_CUBLASLT=0: then kernels/linear.cu has all the work (scripts/gpu-check.sh tests it so). The context
    /// is current.
    pub(super) fn open() -> Result<Option<Blas>> {
        if std::env::var_os("MPA_CUBLASLT").is_some_and(|v| v == "0") {
            return Ok(None);
        }
        // SAFETY: it only tries to load the library. Everything below panics without it.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let handle = match result::create_handle() {
            Ok(handle) => handle,
            Err(error @ CublasError(Status::CUBLAS_STATUS_ALLOC_FAILED)) => {
                return Err(fail("handle", error));
            }
            // An old library that does not know this GPU.
            Err(_) => return Ok(None),
        };
        // SAFETY: freed once, by drop. Its address is aligned to 256 bytes, as the library wants.
        match unsafe { driver::result::malloc_sync(WORKSPACE) } {
            Ok(workspace) => Ok(Some(Blas { handle, workspace, plans: Mutex::default() })),
            Err(e) => {
                // SAFETY: made above and used nowhere.
                let _ = unsafe { result::destroy_handle(handle) };
                Err(Error::Failure(format!("cuBLASLt, workspace: {e}")))
            }
        }
    }

    /// Queues a product on `stream`; false if the library has no algorithm for it. The context is current.
    pub(super) fn matmul(&self, job: &Matmul, stream: driver::sys::CUstream) -> Result<bool> {
        let shape = Shape {
            m: job.m,
            n: job.n,
            k: job.k,
            a_transposed: job.a.transposed,
            b_transposed: job.b.transposed,
            dtype: job.dtype,
            out: job.out,
            bias: job.bias.is_some(),
            accumulate: job.accumulate,
        };
        // The library takes a bias of D's type only.
        if job.m * job.n * job.k == 0 || (shape.bias && job.out != job.dtype) {
            return Ok(false);
        }
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= MOST_PLANS {
            plans.clear();
        }
        let plan = match plans.entry(shape) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Plan::choose(self.handle, shape).map_err(|e| fail("plan", e))?)
            }
        };
        let Some(plan) = plan else { return Ok(false) };
        plan.run(self, job, stream).map_err(|e| fail("product", e))?;
        Ok(true)
    }
}

impl Plan {
    /// The library's first choice; `None` if it has nothing.
    fn choose(handle: sys::cublasLtHandle_t, shape: Shape) -> Result<Option<Plan>, CublasError> {
        let Shape { m, n, k, .. } = shape;
        let (Some(inputs), Some(output)) = (data_type(shape.dtype), data_type(shape.out)) else {
            return Ok(None);
        };
        // Sums and scales in f32; for f32 inputs no TF32 either, which has a compute type of its own.
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // Null until it is made: what fails half way is destroyed by drop.
        let mut plan = Plan {
            product: result::create_matmul_desc(compute, cudaDataType_t::CUDA_R_32F)?,
            a: std::ptr::null_mut(),
            b: std::ptr::null_mut(),
            y: std::ptr::null_mut(),
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        // A row-major matrix as the library sees it: the leading dimension is its width.
        let lies = |dtype, rows: usize, width: usize| {
            result::create_matrix_layout(dtype, width as u64, rows as u64, width as i64)
        };
        plan.a = if shape.a_transposed { lies(inputs, k, m)? } else { lies(inputs, m, k)? };
        plan.b = if shape.b_transposed { lies(inputs, n, k)? } else { lies(inputs, k, n)? };
        plan.y = lies(output, m, n)?;
        let op = |transposed| if transposed { OP_T } else { OP_N };
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &op(shape.b_transposed))?;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &op(shape.a_transposed))?;
        if shape.bias {
            let epilogue = cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        match plan.first_algorithm(handle) {
            Ok(algorithm) => plan.algorithm = algorithm,
            Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED | Status::CUBLAS_STATUS_ARCH_MISMATCH)) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
        Ok(Some(plan))
    }

    /// Sets an attribute, which is as wide as `T`.
    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<(), CublasError> {
        let value = std::ptr::from_ref(value).cast::<c_void>();
        // SAFETY: `product` lives as long as `self`; the library copies the value.
        unsafe { result::set_matmul_desc_attribute(self.product, attribute, value, size_of::<T>()) }
    }

    fn first_algorithm(
        &self,
        handle: sys::cublasLtHandle_t,
    ) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        let preference = result::create_matmul_pref()?;
        // Parts of a sum over a split K meet in f32, never in y's type.
        let reduction = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let workspace = WORKSPACE;
        // SAFETY: the preference was made above and is destroyed below; the library copies values of the widths that it documents (size_t
        // and uint32_t); the descriptors live as long as `self`. That pointers are aligned to 256 bytes is the default, and so they are.
        unsafe {
            let chosen = result::set_matmul_pref_attribute(
                preference,
                Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                std::ptr::from_ref(&workspace).cast(),
                size_of::<usize>(),
            )
            .and_then(|()| {
                result::set_matmul_pref_attribute(
                    preference,
                    Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                    std::ptr::from_ref(&reduction).cast(),
                    size_of::<u32>(),
                )
            })
            .and_then(|()| {
                let Plan { product, a, b, y, .. } = *self;
                result::get_matmul_algo_heuristic(handle, product, b, a, y, y, preference)
            });
            let destroyed = result::destroy_matmul_pref(preference);
            chosen.and_then(|chosen| destroyed.map(|()| chosen.algo))
        }
    }

    fn run(&self, blas: &Blas, job: &Matmul, stream: driver::sys::CUstream) -> Result<(), CublasError> {
        if let Some(bias) = job.bias {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.0)?;
        }
        let beta: f32 = if job.accumulate { 1.0 } else { 0.0 };
        let address = |ptr: u64| ptr as *mut c_void;
        let y = address(job.y.0);
        // SAFETY: types and bounds: the layouts are those of tensors that the op has checked. Aliasing: y is `&mut` in the op; that C is D with
        // the same layout is allowed, and with beta = 0 C is not read. alpha and beta are on the host, which is the default, and are read
        // before the call returns. Workspace and stream are this GPU's.
        unsafe {
            result::matmul(
                blas.handle,
                self.product,
                std::ptr::from_ref(&job.alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                address(job.b.at.0),
                self.b,
                address(job.a.at.0),
                self.a,
                y,
                self.y,
                y,
                self.y,
                &raw const self.algorithm,
                address(blas.workspace),
                WORKSPACE,
                stream.cast(),
            )
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `choose`, used by nobody else. A failure leaks, which does no harm.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in [self.a, self.b, self.y] {
                if !layout.is_null() {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
        }
    }
}

impl Drop for Blas {
    /// The context is current and all work is done: the driver has seen to it.
    fn drop(&mut self) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: both are from `open` and freed only here. A failure leaks, which does no harm.
        unsafe {
            let _ = result::destroy_handle(self.handle);
            let _ = driver::result::free_sync(self.workspace);
        }
    }
}
