//! One file per op: the maths and its source, shapes, CPU code. Outputs come first and are `&mut`; every function checks
//! shapes before it touches memory. Loops are split over threads in pieces that depend on the shape alone,
//! so the same bits come out whatever the number of threads.
//! Letters in shapes: B batch, T tokens, C hidden width, NH heads, NKV key/value heads, HS head size, V vocabulary, P patches, I intermediate, R LoRA rank.

pub mod adamw;
pub mod add;
pub mod attention;
pub mod clip_grad_norm;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod gelu;
pub mod gemm_int8;
pub mod kv_cache;
pub mod layer_norm;
pub mod linear;
pub mod lora;
pub mod matmul;
pub mod patch_embed;
pub mod pixel_shuffle;
pub mod quantize;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod swiglu;

mod pieces;
mod vector_math;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tensor::{Arg, DType, Gpu, Launch, Ptr, Tensor};

/// The one type of these tensors, of those that kernels are made for: f32 or bf16.
fn kernel_dtype(op: &'static str, tensors: &[&Tensor]) -> Result<DType> {
    let first = tensors.first().map_or(DType::F32, |t| t.dtype());
    if matches!(first, DType::F32 | DType::Bf16) && tensors.iter().all(|t| t.dtype() == first) {
        return Ok(first);
    }
    let got: Vec<String> = tensors.iter().map(|t| t.dtype().to_string()).collect();
    Err(Error::op(op, "tensors that are all f32 or all bf16", got.join(", ")))
}

/// A size as kernels take it.
fn int(op: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::op(op, format!("sizes up to {}", i32::MAX), n.to_string()))
}

/// The kernel of `op` that makes each element of `out` from those of `inputs`, all of one shape (kernels/elementwise.cuh).
fn launch_elementwise(gpu: &Arc<Gpu>, op: &'static str, out: &mut Tensor, inputs: &[&Tensor]) -> Result<()> {
    launch_each(gpu, op, "forward", &mut [out], inputs, &[])
}

/// The same with several outputs, and with arguments behind the number of elements.
fn launch_each(
    gpu: &Arc<Gpu>,
    op: &'static str,
    direction: &str,
    outputs: &mut [&mut Tensor],
    inputs: &[&Tensor],
    last: &[Arg],
) -> Result<()> {
    const THREADS: usize = 256;
    const THREAD_BYTES: usize = 16;
    let all: Vec<&Tensor> = outputs.iter().map(|t| &**t).chain(inputs.iter().copied()).collect();
    let dtype = kernel_dtype(op, &all)?;
    let n = all.first().map_or(0, |t| t.len());
    let threads = (n * dtype.size()).div_ceil(THREAD_BYTES);
    let at = Launch { grid: [threads.div_ceil(THREADS), 1, 1], block: THREADS as u32, shared: 0 };
    let mut args = Vec::<Arg>::new();
    for output in outputs {
        args.push(output.ptr_mut(gpu)?.into());
    }
    for input in inputs {
        args.push(input.ptr(gpu)?.into());
    }
    args.push((n as u64).into());
    args.extend_from_slice(last);
    gpu.launch(&format!("{op}_{direction}_{dtype}"), at, &args)
}

/// `kernel` (add_column_sums of kernels/column_sums.cuh): adds to `sums` [C], f32, the sums of the columns of `partial` [`rows`, C].
fn launch_column_sums(
    gpu: &Arc<Gpu>,
    op: &'static str,
    kernel: &str,
    sums: &mut Tensor,
    partial: Ptr,
    rows: usize,
) -> Result<()> {
    expect_f32(op, "sums", sums)?;
    let at = Launch { grid: [sums.len().div_ceil(32), 1, 1], block: 256, shared: 256 * size_of::<f32>() };
    let args =
        [sums.ptr_mut(gpu)?.into(), partial.into(), int(op, rows)?.into(), int(op, sums.len())?.into()];
    gpu.launch(kernel, at, &args)
}

/// `Ok` if it is f32: gradients of weights, which sums over many micro-batches need, and what is kept exact.
fn expect_f32(op: &'static str, name: &str, tensor: &Tensor) -> Result<()> {
    if tensor.dtype() == DType::F32 {
        return Ok(());
    }
    Err(Error::op(op, format!("{name} in f32"), tensor.dtype().to_string()))
}

/// `Ok` if `tensor` has exactly `shape`; else an error that names the op and the argument.
fn expect_shape(op: &'static str, name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.shape() == shape {
        Ok(())
    } else {
        Err(Error::op(op, format!("{name} {shape:?}"), format!("{:?}", tensor.shape())))
    }
}
