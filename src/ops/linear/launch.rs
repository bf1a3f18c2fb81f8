//! The layer's products on a GPU: cuBLASLt, or kernels/linear.cu and kernels/linear_backward.cu where it is not to be had.
use std::sync::Arc;

use crate::error::Result;
use crate::ops::{expect_f32, int, kernel_dtype};
use crate::tensor::{Card, DType, Gpu, Launch, Matmul, Ptr, Tensor};

/// Rows of x up to which kernels/linear.cu reads W for all of them at once, rows of W in a block of that kernel; and the block's warps.
pub(in crate::ops) const SKINNY: usize = 16;
const SKINNY_WARPS: usize = 8;

/// y = alpha x W^T (+ bias), and + y with `accumulate`.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Scale {
    pub alpha: f32,
    pub accumulate: bool,
}

/// cuBLASLt, or kernels/linear.cu for few rows and where the former is not to be had; shapes have been checked. The former may choose another
/// algorithm, and round otherwise, for another M.
pub(in crate::ops) fn launch(
    gpu: &Arc<Gpu>,
    op: &'static str,
    y: &mut Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    Scale { alpha, accumulate }: Scale,
) -> Result<()> {
    let (m, n, k) = (x.rows(), weight.rows(), x.cols());
    let dtype = kernel_dtype(op, &[&[x, weight], bias.as_slice()].concat())?;
    if y.dtype() != DType::F32 {
        kernel_dtype(op, &[y, x])?;
    }
    let output = if y.dtype() == dtype { "" } else { "_to_f32" };
    let (kernel, at) = if dtype == DType::Bf16 && m <= SKINNY {
        let shared = SKINNY_WARPS * SKINNY * SKINNY * size_of::<f32>();
        let block = 32 * SKINNY_WARPS as u32;
        ("linear_skinny_forward_bf16".to_owned(), Launch { grid: [n.div_ceil(SKINNY), 1, 1], block, shared })
    } else {
        let job = Matmul {
            y: y.ptr_mut(gpu)?,
            a: x.ptr(gpu)?.matrix(),
            b: weight.ptr(gpu)?.transpose(),
            bias: bias.map(|b| b.ptr(gpu)).transpose()?,
            m,
            n,
            k,
            dtype,
            out: y.dtype(),
            alpha,
            accumulate,
        };
        if gpu.matmul(&job)? {
            return Ok(());
        }
        let (tile, at) = tiles(gpu.card(), m, n, dtype);
        (format!("linear_forward_{dtype}{tile}"), at)
    };
    let args = [
        y.ptr_mut(gpu)?.into(),
        x.ptr(gpu)?.into(),
        weight.ptr(gpu)?.into(),
        bias.map_or(Ok(Ptr::NULL), |b| b.ptr(gpu))?.into(),
        int(op, m)?.into(),
        int(op, n)?.into(),
        int(op, k)?.into(),
        alpha.into(),
        i32::from(accumulate).into(),
    ];
    gpu.launch(&format!("{kernel}{output}"), at, &args)
}

/// Which tile of kernels/gemm.cuh makes an m x n matrix (how the kernel's name goes on), and how such a kernel is launched. All tiles of a
/// type give the same bits.
pub(in crate::ops) fn tiles(card: Card, m: usize, n: usize, dtype: DType) -> (&'static str, Launch) {
    /// Stages of the pipeline, and bytes of a row in one.
    const STAGES: usize = 3;
    const ROW: usize = 32 * 2;
    let launch = |side: usize, block, shared| {
        let grid = [m.div_ceil(side), n.div_ceil(side), 1];
        Launch { grid, block, shared }
    };
    let large = launch(128, 256, STAGES * 2 * 128 * ROW);
    if dtype == DType::F32 {
        ("", launch(32, 64, 2 * 32 * 33 * size_of::<f32>()))
    } else if card.is_filled_by(large.grid.iter().product()) {
        ("", large)
    } else {
        ("_t64", launch(64, 128, STAGES * 2 * 64 * ROW))
    }
}

/// dx [M, K] = dy W (+ dx); shapes have been checked.
pub(super) fn backward_input(
    gpu: &Arc<Gpu>,
    dx: &mut Tensor,
    dy: &Tensor,
    weight: &Tensor,
    accumulate: bool,
) -> Result<()> {
    const OP: &str = "linear backward_input";
    let (m, n, k) = (dy.rows(), weight.cols(), dy.cols());
    let dtype = kernel_dtype(OP, &[dy, weight])?;
    if dx.dtype() != DType::F32 {
        kernel_dtype(OP, &[dx, dy])?;
    }
    let job = Matmul {
        y: dx.ptr_mut(gpu)?,
        a: dy.ptr(gpu)?.matrix(),
        b: weight.ptr(gpu)?.matrix(),
        bias: None,
        m,
        n,
        k,
        dtype,
        out: dx.dtype(),
        alpha: 1.0,
        accumulate,
    };
    if gpu.matmul(&job)? {
        return Ok(());
    }
    let (tile, at) = tiles(gpu.card(), m, n, dtype);
    let output = if dx.dtype() == dtype { "" } else { "_to_f32" };
    let args = [
        job.y.into(),
        job.a.at.into(),
        job.b.at.into(),
        int(OP, m)?.into(),
        int(OP, n)?.into(),
        int(OP, k)?.into(),
        i32::from(accumulate).into(),
    ];
    gpu.launch(&format!("linear_input_backward_{dtype}{tile}{output}"), at, &args)
}

/// dweight [N, K] += dy^T x; shapes have been checked.
pub(super) fn backward_weight(gpu: &Arc<Gpu>, dweight: &mut Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    const OP: &str = "linear backward_weight";
    let (m, n, k) = (dy.cols(), x.cols(), dy.rows());
    let dtype = kernel_dtype(OP, &[dy, x])?;
    expect_f32(OP, "dweight", dweight)?;
    let job = Matmul {
        y: dweight.ptr_mut(gpu)?,
        a: dy.ptr(gpu)?.transpose(),
        b: x.ptr(gpu)?.matrix(),
        bias: None,
        m,
        n,
        k,
        dtype,
        out: DType::F32,
        alpha: 1.0,
        accumulate: true,
    };
    if gpu.matmul(&job)? {
        return Ok(());
    }
    let (tile, at) = tiles(gpu.card(), m, n, dtype);
    let args = [
        job.y.into(),
        job.a.at.into(),
        job.b.at.into(),
        int(OP, m)?.into(),
        int(OP, n)?.into(),
        int(OP, k)?.into(),
    ];
    gpu.launch(&format!("linear_weight_backward_{dtype}{tile}"), at, &args)
}

/// dbias [N] += column sums of dy; shapes have been checked.
pub(super) fn backward_bias(gpu: &Arc<Gpu>, dbias: &mut Tensor, dy: &Tensor) -> Result<()> {
    const OP: &str = "linear backward_bias";
    /// As in the kernel: warps of a block, rows that it sums, bytes of a row.
    const WARPS: usize = 8;
    const PIECE: usize = 256;
    const ROW: usize = 32 * 16;
    let (rows, cols) = (dy.rows(), dy.cols());
    let dtype = kernel_dtype(OP, &[dy])?;
    expect_f32(OP, "dbias", dbias)?;
    let (width, pieces) = (ROW / dtype.size(), rows.div_ceil(PIECE));
    let partials = gpu.alloc(pieces * cols * size_of::<f32>())?;
    let at = Launch {
        grid: [cols.div_ceil(width), pieces, 1],
        block: 32 * WARPS as u32,
        shared: WARPS * width * size_of::<f32>(),
    };
    let args = [partials.ptr().into(), dy.ptr(gpu)?.into(), int(OP, rows)?.into(), int(OP, cols)?.into()];
    gpu.launch(&format!("linear_bias_backward_{dtype}"), at, &args)?;
    let at = Launch { grid: [cols.div_ceil(256), 1, 1], block: 256, shared: 0 };
    let args =
        [dbias.ptr_mut(gpu)?.into(), partials.ptr().into(), int(OP, pieces)?.into(), int(OP, cols)?.into()];
    gpu.launch("linear_bias_reduce_backward_f32", at, &args)
}
