//! RMS norm (Zhang & Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * w over the last dimension.
//! With n = x / sqrt(mean(x^2) + eps) and g = dy w: dx = (g - n mean(g n)) / sqrt(mean(x^2) + eps), dw = dy n.
use std::sync::Arc;

use super::pieces::{self, widened};
use super::vector_math::{sum, sum3, vectorised};
use super::{add, expect_f32, expect_shape, int, kernel_dtype, launch_column_sums, quantize};
use crate::error::Result;
use crate::tensor::{DType, Gpu, Launch, Ptr, Tensor};

/// out, x [T, C]; weight [C].
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
    let cols = x.cols();
    expect_shape("rms_norm", "out", out, x.shape())?;
    expect_shape("rms_norm", "weight", weight, &[cols])?;
    if let Some(gpu) = x.gpu() {
        return launch(gpu, out, x.ptr(gpu)?, x, Ptr::NULL, weight, eps);
    }
    let (x, weight) = (x.f32s()?, widened(weight)?);
    pieces::each(out.f32s_mut()?, pieces::whole_rows(cols), |start, out| {
        norm_rows(out, &x[start..start + out.len()], &weight, eps);
    });
    Ok(())
}

/// x += residual, then out is the norm of x: one pass over memory on a GPU.
pub fn forward_residual(
    out: &mut Tensor,
    x: &mut Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    expect_shape("rms_norm", "residual", residual, x.shape())?;
    let Some(gpu) = x.gpu().cloned() else {
        add::forward(x, residual)?;
        return forward(out, x, weight, eps);
    };
    expect_shape("rms_norm", "out", out, x.shape())?;
    expect_shape("rms_norm", "weight", weight, &[x.cols()])?;
    kernel_dtype("rms_norm", &[x, residual])?;
    let sum = x.ptr_mut(&gpu)?;
    launch(&gpu, out, sum, x, residual.ptr(&gpu)?, weight, eps)
}

/// kernels/rms_norm.cu; `x` lies at `x_ptr`.
fn launch(
    gpu: &Arc<Gpu>,
    out: &mut Tensor,
    x_ptr: Ptr,
    x: &Tensor,
    residual: Ptr,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    /// Of a block, one warp each.
    const ROWS: usize = 4;
    let dtype = kernel_dtype("rms_norm", &[out, x, weight])?;
    let at = Launch { grid: [x.rows().div_ceil(ROWS), 1, 1], block: 32 * ROWS as u32, shared: 0 };
    let (rows, cols) = (int("rms_norm", x.rows())?, int("rms_norm", x.cols())?);
    let args = [
        out.ptr_mut(gpu)?.into(),
        x_ptr.into(),
        residual.into(),
        weight.ptr(gpu)?.into(),
        rows.into(),
        cols.into(),
        eps.into(),
    ];
    gpu.launch(&format!("rms_norm_forward_{dtype}"), at, &args)
}

/// x += residual where there is one; then q i8 [T, C] and scale f32 [T] are the norm of x, rotated and quantised from its f32 values as ops::quantize
/// does. With v = x w rotated: scale = max|v| / 127 / sqrt(mean(x^2) + eps), q = round(v * (127 / max|v|)). The root is a factor of all elements of a
/// row, so q does without it and has the same bits on every device.
pub fn forward_quantized(
    q: &mut Tensor,
    scale: &mut Tensor,
    x: &mut Tensor,
    residual: Option<&Tensor>,
    weight: &Tensor,
    eps: f32,
    rotation: usize,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let cols = x.cols();
    quantize::expect_outputs(OP, q, scale, x.shape())?;
    quantize::expect_rotation(OP, rotation, cols)?;
    expect_shape(OP, "weight", weight, &[cols])?;
    if let Some(gpu) = x.gpu().cloned() {
        return launch_quantized(&gpu, (q, scale), x, residual, (weight, eps), rotation);
    }
    if let Some(residual) = residual {
        add::forward(x, residual)?;
    }
    let (x, weight) = (x.f32s()?, widened(weight)?);
    quantize::each_row(q, scale, |i, q| {
        let mut weighted = vec![0.0; cols];
        let r = weigh(&mut weighted, &x[i * cols..][..cols], &weight, eps);
        quantize::rotate(&mut weighted, rotation);
        quantize::row(q, &weighted) * r
    })
}

/// rms_norm_quantized_forward of kernels/rms_norm.cu; the outputs of int8 have been checked.
fn launch_quantized(
    gpu: &Arc<Gpu>,
    (q, scale): (&mut Tensor, &mut Tensor),
    x: &mut Tensor,
    residual: Option<&Tensor>,
    (weight, eps): (&Tensor, f32),
    rotation: usize,
) -> Result<()> {
    let dtype = expect_beside("rms_norm", None, x, residual, &[weight])?;
    let args = [
        q.ptr_mut(gpu)?.into(),
        scale.ptr_mut(gpu)?.into(),
        x.ptr_mut(gpu)?.into(),
        residual.map_or(Ok(Ptr::NULL), |r| r.ptr(gpu))?.into(),
        weight.ptr(gpu)?.into(),
        int("rms_norm", x.cols())?.into(),
        eps.into(),
        int("rms_norm", rotation)?.into(),
    ];
    gpu.launch(&format!("rms_norm_quantized_forward_{dtype}"), quantize::norm_at(x.rows()), &args)
}

/// Of a norm that quantises: the type of x, and of what lies beside it.
pub(super) fn expect_beside(
    op: &'static str,
    out: Option<&Tensor>,
    x: &Tensor,
    residual: Option<&Tensor>,
    params: &[&Tensor],
) -> Result<DType> {
    for (name, tensor) in [("out", out), ("residual", residual)] {
        tensor.map_or(Ok(()), |tensor| expect_shape(op, name, tensor, x.shape()))?;
    }
    kernel_dtype(op, &[&[x], out.as_slice(), residual.as_slice(), params].concat())
}

/// dx is overwritten; dweight is added to. The norm is computed again from x.
pub fn backward(
    dx: &mut Tensor,
    dweight: Option<&mut Tensor>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    let cols = x.cols();
    expect_backward(dx, dweight.as_deref(), dy, x, weight)?;
    if let Some(gpu) = x.gpu() {
        return launch_backward(gpu, dx, dweight, (dy, x, weight), None, eps);
    }
    let (dy, x, weight) = (dy.f32s()?, x.f32s()?, widened(weight)?);
    let dweight = dweight.map_or(Ok(&mut [][..]), |dweight| dweight.f32s_mut())?;
    pieces::each_with_sums(dx.f32s_mut()?, pieces::whole_rows(cols), dweight, |start, dx, dweight| {
        let piece = start..start + dx.len();
        gradients(dx, dweight, &dy[piece.clone()], &x[piece], &weight, eps);
    });
    Ok(())
}

/// The same with dx += `residual`, the gradient that a residual connection around the norm brings: one pass over memory on a GPU.
pub fn backward_residual(
    dx: &mut Tensor,
    dweight: Option<&mut Tensor>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    residual: &Tensor,
    eps: f32,
) -> Result<()> {
    expect_shape("rms_norm", "residual", residual, x.shape())?;
    if let Some(gpu) = x.gpu() {
        expect_backward(dx, dweight.as_deref(), dy, x, weight)?;
        return launch_backward(gpu, dx, dweight, (dy, x, weight), Some(residual), eps);
    }
    backward(dx, dweight, dy, x, weight, eps)?;
    add::forward(dx, residual)
}

fn expect_backward(
    dx: &Tensor,
    dweight: Option<&Tensor>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
) -> Result<()> {
    let cols = x.cols();
    expect_shape("rms_norm", "dx", dx, x.shape())?;
    expect_shape("rms_norm", "dy", dy, x.shape())?;
    expect_shape("rms_norm", "weight", weight, &[cols])?;
    dweight.map_or(Ok(()), |dweight| expect_shape("rms_norm", "dweight", dweight, &[cols]))
}

/// rms_norm_backward and rms_norm_sums_backward of kernels/rms_norm.cu.
fn launch_backward(
    gpu: &Arc<Gpu>,
    dx: &mut Tensor,
    dweight: Option<&mut Tensor>,
    (dy, x, weight): (&Tensor, &Tensor, &Tensor),
    residual: Option<&Tensor>,
    eps: f32,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let dtype = kernel_dtype(OP, &[&[&*dx, dy, x, weight], residual.as_slice()].concat())?;
    if let Some(dweight) = &dweight {
        expect_f32(OP, "dweight", dweight)?;
    }
    let (rows, cols) = (x.rows(), x.cols());
    let at = backward_at(rows, size_of::<f32>());
    let blocks = at.grid[0];
    let partial = dweight.as_ref().map(|_| gpu.alloc(blocks * cols * size_of::<f32>())).transpose()?;
    let partial_ptr = partial.as_ref().map_or(Ptr::NULL, |p| p.ptr());
    let args = [
        dx.ptr_mut(gpu)?.into(),
        partial_ptr.into(),
        dy.ptr(gpu)?.into(),
        x.ptr(gpu)?.into(),
        weight.ptr(gpu)?.into(),
        residual.map_or(Ok(Ptr::NULL), |r| r.ptr(gpu))?.into(),
        int(OP, rows)?.into(),
        int(OP, cols)?.into(),
        eps.into(),
    ];
    gpu.launch(&format!("rms_norm_backward_{dtype}"), at, &args)?;
    match dweight {
        None => Ok(()),
        Some(dweight) => {
            launch_column_sums(gpu, OP, "rms_norm_sums_backward_f32", dweight, partial_ptr, blocks)
        }
    }
}

/// How the backward kernels of both norms are launched (kernels/norm.cuh), with `row_bytes` of shared memory for each of a block's rows.
pub(super) fn backward_at(rows: usize, row_bytes: usize) -> Launch {
    /// Of a block of 8 warps.
    const ROWS: usize = 16;
    Launch { grid: [rows.div_ceil(ROWS), 1, 1], block: 256, shared: ROWS * row_bytes }
}

/// 1 / sqrt(mean(x^2) + eps) of a row.
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x, |x| x * x) / x.len() as f32 + eps).sqrt()
}

vectorised! {
    /// out = x w of a row; 1 / sqrt(mean(x^2) + eps) is what they lack.
    fn weigh(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) -> f32 {
        for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * w;
        }
        inverse_rms(x, eps)
    }
}

vectorised! {
    fn norm_rows(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
        let cols = weight.len().max(1);
        for (out, x) in out.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
            let scale = inverse_rms(x, eps);
            for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * w;
            }
        }
    }
}

vectorised! {
    /// dweight may be empty: then it is not wanted.
    fn gradients(dx: &mut [f32], dweight: &mut [f32], dy: &[f32], x: &[f32], weight: &[f32], eps: f32) {
        let cols = weight.len().max(1);
        let rows = dx.chunks_exact_mut(cols).zip(dy.chunks_exact(cols)).zip(x.chunks_exact(cols));
        for ((dx, dy), x) in rows {
            let scale = inverse_rms(x, eps);
            // dx holds n until the mean over it is known.
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = x * scale;
            }
            for ((dw, &dy), &n) in dweight.iter_mut().zip(dy).zip(&*dx) {
                *dw += dy * n;
            }
            let mean_gn = sum3(dy, weight, dx, |dy, w, n| dy * w * n) / cols as f32;
            for ((dx, &dy), &w) in dx.iter_mut().zip(dy).zip(weight) {
                *dx = scale * (dy * w - *dx * mean_gn);
            }
        }
    }
}
