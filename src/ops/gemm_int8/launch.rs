//! kernels/gemm_int8.cu: which kernel, and how many blocks. All of them give the same bits.
use std::sync::Arc;

use super::{OP, Quantized};
use crate::error::Result;
use crate::ops::{int, kernel_dtype, quantize};
use crate::tensor::{Arg, Device, Gpu, Launch, Ptr, Tensor};

/// Rows of x in an mma, and of W in a block, of the kernels for few rows; such mma in a block; its warps.
const SKINNY: usize = 16;
const MOST_SKINNY: usize = 2;
const WARPS: usize = 8;

/// How a kernel's name goes on before and behind the type, and how it is launched. `matrices` of [n, k] share their rows among the blocks.
struct Choice {
    infix: &'static str,
    suffix: &'static str,
    at: Launch,
}

fn choose(m: usize, n: usize, matrices: usize) -> Choice {
    /// Blocks of 128 x 128 that keep a GPU busy.
    const MANY: usize = 128;
    /// Stages of the pipeline, and bytes of a row in one.
    const STAGES: usize = 4;
    const ROW: usize = 64;
    if m <= MOST_SKINNY * SKINNY {
        let tiles = m.div_ceil(SKINNY).max(1);
        let grid = [(n * matrices).div_ceil(SKINNY), 1, 1];
        let shared = WARPS * tiles * SKINNY * SKINNY * size_of::<i32>();
        let at = Launch { grid, block: 32 * WARPS as u32, shared };
        return Choice { infix: "_skinny", suffix: if tiles == 1 { "" } else { "_m32" }, at };
    }
    let launch = |side: usize| {
        let grid = [m.div_ceil(side), (n * matrices).div_ceil(side), 1];
        Launch { grid, block: 128, shared: STAGES * 2 * side * ROW }
    };
    let large = launch(128);
    if large.grid.iter().product::<usize>() >= MANY {
        Choice { infix: "", suffix: "", at: large }
    } else {
        Choice { infix: "", suffix: "_t64", at: launch(64) }
    }
}

/// What all of these kernels are given of a matrix.
fn matrix(gpu: &Arc<Gpu>, of: Quantized) -> Result<[Arg; 2]> {
    Ok([of.q.ptr(gpu)?.into(), of.scale.ptr(gpu)?.into()])
}

fn sizes([m, n, k]: [usize; 3]) -> Result<[Arg; 3]> {
    Ok([int(OP, m)?.into(), int(OP, n)?.into(), int(OP, k)?.into()])
}

/// Shapes have been checked.
pub(super) fn forward(
    gpu: &Arc<Gpu>,
    out: &mut Tensor,
    x: Quantized,
    weight: Quantized,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    size: [usize; 3],
) -> Result<()> {
    let dtype = kernel_dtype(OP, &[&[&*out], bias.as_slice(), residual.as_slice()].concat())?;
    let Choice { infix, suffix, at } = choose(size[0], size[1], 1);
    let optional = |t: Option<&Tensor>| t.map_or(Ok(Ptr::NULL), |t| t.ptr(gpu));
    let mut args = vec![out.ptr_mut(gpu)?.into()];
    args.extend(matrix(gpu, x)?);
    args.extend(matrix(gpu, weight)?);
    args.extend([optional(bias)?.into(), optional(residual)?.into()]);
    args.extend(sizes(size)?);
    gpu.launch(&format!("gemm_int8{infix}_forward_{dtype}{suffix}"), at, &args)
}

/// Shapes have been checked. In between the activations lie in bf16, and the largest magnitude of each row.
pub(super) fn forward_swiglu(
    gpu: &Arc<Gpu>,
    (q, scale): (&mut Tensor, &mut Tensor),
    x: Quantized,
    gate: Quantized,
    up: Quantized,
    size: [usize; 3],
) -> Result<()> {
    let [m, n, _] = size;
    let act = gpu.alloc(m * n * 2)?;
    let mut most = Tensor::zeros_on(&Device::Cuda(Arc::clone(gpu)), &[m])?;
    let Choice { infix, suffix, at } = choose(m, n, 2);
    let mut args = vec![act.ptr().into(), most.ptr_mut(gpu)?.into()];
    for of in [x, gate, up] {
        args.extend(matrix(gpu, of)?);
    }
    args.extend(sizes(size)?);
    gpu.launch(&format!("gemm_int8_swiglu{infix}_forward_bf16{suffix}"), at, &args)?;
    quantize::launch_known(gpu, q, scale, act.ptr(), &most)
}
