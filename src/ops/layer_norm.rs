//! Layer norm (Ba et al. 2016): y = (x - mean) / sqrt(var + eps) * w + b over the last dimension.
//! With n = (x - mean) / sqrt(var + eps) and g = dy w: dx = (g - mean(g) - n mean(g n)) / sqrt(var + eps), dw = dy n, db = dy.
use std::sync::Arc;

use super::add::{self, add_to};
use super::pieces::{self, widened};
use super::rms_norm::{backward_at, expect_beside};
use super::vector_math::{sum, sum2, sum3, vectorised};
use super::{expect_f32, expect_shape, int, kernel_dtype, launch_column_sums, quantize};
use crate::error::Result;
use crate::tensor::{Gpu, Launch, Ptr, Tensor};

/// out, x [T, C]; weight, bias [C].
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<()> {
    let cols = x.cols();
    expect_shape("layer_norm", "out", out, x.shape())?;
    expect_shape("layer_norm", "weight", weight, &[cols])?;
    expect_shape("layer_norm", "bias", bias, &[cols])?;
    if let Some(gpu) = x.gpu() {
        return launch(gpu, out, x.ptr(gpu)?, x, Ptr::NULL, (weight, bias), eps);
    }
    let (x, weight, bias) = (x.f32s()?, widened(weight)?, widened(bias)?);
    pieces::each(out.f32s_mut()?, pieces::whole_rows(cols), |start, out| {
        norm_rows(out, &x[start..start + out.len()], &weight, &bias, eps);
    });
    Ok(())
}

/// x += residual, then out is the norm of x: one pass over memory on a GPU.
pub fn forward_residual(
    out: &mut Tensor,
    x: &mut Tensor,
    residual: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<()> {
    expect_shape("layer_norm", "residual", residual, x.shape())?;
    let Some(gpu) = x.gpu().cloned() else {
        add::forward(x, residual)?;
        return forward(out, x, weight, bias, eps);
    };
    expect_shape("layer_norm", "out", out, x.shape())?;
    expect_shape("layer_norm", "weight", weight, &[x.cols()])?;
    expect_shape("layer_norm", "bias", bias, &[x.cols()])?;
    kernel_dtype("layer_norm", &[x, residual])?;
    let sum = x.ptr_mut(&gpu)?;
    launch(&gpu, out, sum, x, residual.ptr(&gpu)?, (weight, bias), eps)
}

/// kernels/layer_norm.cu; `x` lies at `x_ptr`.
fn launch(
    gpu: &Arc<Gpu>,
    out: &mut Tensor,
    x_ptr: Ptr,
    x: &Tensor,
    residual: Ptr,
    (weight, bias): (&Tensor, &Tensor),
    eps: f32,
) -> Result<()> {
    /// Of a block, one warp each.
    const ROWS: usize = 4;
    let dtype = kernel_dtype("layer_norm", &[out, x, weight, bias])?;
    let at = Launch { grid: [x.rows().div_ceil(ROWS), 1, 1], block: 32 * ROWS as u32, shared: 0 };
    let (rows, cols) = (int("layer_norm", x.rows())?, int("layer_norm", x.cols())?);
    let args = [
        out.ptr_mut(gpu)?.into(),
        x_ptr.into(),
        residual.into(),
        weight.ptr(gpu)?.into(),
        bias.ptr(gpu)?.into(),
        rows.into(),
        cols.into(),
        eps.into(),
    ];
    gpu.launch(&format!("layer_norm_forward_{dtype}"), at, &args)
}

/// x += residual where there is one; then q i8 [T, C] and scale f32 [T] are the norm of x, quantised from its f32 values (ops::quantize). `out`
/// gets the norm itself, if it is wanted too.
pub fn forward_quantized(
    q: &mut Tensor,
    scale: &mut Tensor,
    out: Option<&mut Tensor>,
    x: &mut Tensor,
    residual: Option<&Tensor>,
    (weight, bias): (&Tensor, &Tensor),
    eps: f32,
) -> Result<()> {
    const OP: &str = "layer_norm";
    let cols = x.cols();
    quantize::expect_outputs(OP, q, scale, x.shape())?;
    expect_shape(OP, "weight", weight, &[cols])?;
    expect_shape(OP, "bias", bias, &[cols])?;
    if let Some(gpu) = x.gpu().cloned() {
        return launch_quantized(&gpu, (q, scale), out, x, residual, (weight, bias), eps);
    }
    if let Some(residual) = residual {
        add::forward(x, residual)?;
    }
    if let Some(out) = out {
        forward(out, x, weight, bias, eps)?;
    }
    let (x, weight, bias) = (x.f32s()?, widened(weight)?, widened(bias)?);
    quantize::each_row(q, scale, |i, q| {
        let mut normed = vec![0.0; cols];
        norm_rows(&mut normed, &x[i * cols..][..cols], &weight, &bias, eps);
        quantize::row(q, &normed)
    })
}

/// layer_norm_quantized_forward of kernels/layer_norm.cu; the outputs of int8 have been checked.
fn launch_quantized(
    gpu: &Arc<Gpu>,
    (q, scale): (&mut Tensor, &mut Tensor),
    mut out: Option<&mut Tensor>,
    x: &mut Tensor,
    residual: Option<&Tensor>,
    (weight, bias): (&Tensor, &Tensor),
    eps: f32,
) -> Result<()> {
    let dtype = expect_beside("layer_norm", out.as_deref(), x, residual, &[weight, bias])?;
    let args = [
        q.ptr_mut(gpu)?.into(),
        scale.ptr_mut(gpu)?.into(),
        out.as_mut().map_or(Ok(Ptr::NULL), |out| out.ptr_mut(gpu))?.into(),
        x.ptr_mut(gpu)?.into(),
        residual.map_or(Ok(Ptr::NULL), |r| r.ptr(gpu))?.into(),
        weight.ptr(gpu)?.into(),
        bias.ptr(gpu)?.into(),
        int("layer_norm", x.cols())?.into(),
        eps.into(),
    ];
    gpu.launch(&format!("layer_norm_quantized_forward_{dtype}"), quantize::norm_at(x.rows()), &args)
}

/// dx is overwritten; dweight and dbias (both or neither) are added to. Mean and variance are computed again from x.
pub fn backward(
    dx: &mut Tensor,
    dparams: Option<(&mut Tensor, &mut Tensor)>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    let cols = x.cols();
    expect_backward(dx, &dparams, dy, x, weight)?;
    if let Some(gpu) = x.gpu() {
        return launch_backward(gpu, dx, dparams, (dy, x, weight), None, eps);
    }
    let (dy, x, weight) = (dy.f32s()?, x.f32s()?, widened(weight)?);
    let mut sums = vec![0.0; if dparams.is_some() { 2 * cols } else { 0 }];
    pieces::each_with_sums(dx.f32s_mut()?, pieces::whole_rows(cols), &mut sums, |start, dx, sums| {
        let piece = start..start + dx.len();
        let (dweight, dbias) = sums.split_at_mut(sums.len() / 2);
        gradients(dx, dweight, dbias, &dy[piece.clone()], &x[piece], &weight, eps);
    });
    if let Some((dweight, dbias)) = dparams {
        add_to(dweight.f32s_mut()?, &sums[..cols]);
        add_to(dbias.f32s_mut()?, &sums[cols..]);
    }
    Ok(())
}

/// The same with dx += `residual`, the gradient that a residual connection around the norm brings: one pass over memory on a GPU.
pub fn backward_residual(
    dx: &mut Tensor,
    dparams: Option<(&mut Tensor, &mut Tensor)>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    residual: &Tensor,
    eps: f32,
) -> Result<()> {
    expect_shape("layer_norm", "residual", residual, x.shape())?;
    if let Some(gpu) = x.gpu() {
        expect_backward(dx, &dparams, dy, x, weight)?;
        return launch_backward(gpu, dx, dparams, (dy, x, weight), Some(residual), eps);
    }
    backward(dx, dparams, dy, x, weight, eps)?;
    add::forward(dx, residual)
}

fn expect_backward(
    dx: &Tensor,
    dparams: &Option<(&mut Tensor, &mut Tensor)>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
) -> Result<()> {
    let cols = x.cols();
    expect_shape("layer_norm", "dx", dx, x.shape())?;
    expect_shape("layer_norm", "dy", dy, x.shape())?;
    expect_shape("layer_norm", "weight", weight, &[cols])?;
    if let Some((dweight, dbias)) = dparams {
        expect_shape("layer_norm", "dweight", dweight, &[cols])?;
        expect_shape("layer_norm", "dbias", dbias, &[cols])?;
    }
    Ok(())
}

/// layer_norm_backward and layer_norm_sums_backward of kernels/layer_norm.cu.
fn launch_backward(
    gpu: &Arc<Gpu>,
    dx: &mut Tensor,
    dparams: Option<(&mut Tensor, &mut Tensor)>,
    (dy, x, weight): (&Tensor, &Tensor, &Tensor),
    residual: Option<&Tensor>,
    eps: f32,
) -> Result<()> {
    const OP: &str = "layer_norm";
    let dtype = kernel_dtype(OP, &[&[&*dx, dy, x, weight], residual.as_slice()].concat())?;
    if let Some((dweight, dbias)) = &dparams {
        expect_f32(OP, "dweight", dweight)?;
        expect_f32(OP, "dbias", dbias)?;
    }
    let (rows, cols) = (x.rows(), x.cols());
    let at = backward_at(rows, 2 * size_of::<f32>());
    let blocks = at.grid[0];
    let half = blocks * cols * size_of::<f32>();
    let partial = dparams.as_ref().map(|_| gpu.alloc(2 * half)).transpose()?;
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
    gpu.launch(&format!("layer_norm_backward_{dtype}"), at, &args)?;
    let Some((dweight, dbias)) = dparams else { return Ok(()) };
    let kernel = "layer_norm_sums_backward_f32";
    launch_column_sums(gpu, OP, kernel, dweight, partial_ptr, blocks)?;
    launch_column_sums(gpu, OP, kernel, dbias, Ptr(partial_ptr.0 + half as u64), blocks)
}

/// Mean and 1 / sqrt(var + eps) of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x, |x| x) / n;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

vectorised! {
    fn norm_rows(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
        let cols = weight.len().max(1);
        for (out, x) in out.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
            let (mean, scale) = moments(x, eps);
            for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = (x - mean) * scale * w + b;
            }
        }
    }
}

vectorised! {
    /// dweight and dbias may be empty: then they are not wanted.
    fn gradients(
        dx: &mut [f32],
        dweight: &mut [f32],
        dbias: &mut [f32],
        dy: &[f32],
        x: &[f32],
        weight: &[f32],
        eps: f32,
    ) {
        let cols = weight.len().max(1);
        let rows = dx.chunks_exact_mut(cols).zip(dy.chunks_exact(cols)).zip(x.chunks_exact(cols));
        for ((dx, dy), x) in rows {
            let (mean, scale) = moments(x, eps);
            let mean_g = sum2(dy, weight, |dy, w| dy * w) / cols as f32;
            // dx holds n until the mean over it is known.
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = (x - mean) * scale;
            }
            for (((dw, db), &dy), &n) in dweight.iter_mut().zip(dbias.iter_mut()).zip(dy).zip(&*dx) {
                *dw += dy * n;
                *db += dy;
            }
            let mean_gn = sum3(dy, weight, dx, |dy, w, n| dy * w * n) / cols as f32;
            for ((dx, &dy), &w) in dx.iter_mut().zip(dy).zip(weight) {
                *dx = scale * (dy * w - mean_g - *dx * mean_gn);
            }
        }
    }
}
