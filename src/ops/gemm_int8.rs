//! The layer's product in int8: y = (x_q W_q^T) x_scale w_scale + b, the sum over K in int32, exact.
use super::matmul::Shared;
use super::matmul::packed::products_int8;
use super::vector_math::vectorised;
use super::{expect_f32, expect_shape, pieces, quantize, swiglu};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

mod launch;

/// A matrix in int8 with the scale of each row: activations by token, weights by output channel (ops::quantize).
#[derive(Clone, Copy)]
pub struct Quantized<'a> {
    pub q: &'a Tensor,     // i8 [M, K]
    pub scale: &'a Tensor, // f32 [M]
}

/// Terms of the longest sum that int32 holds: 127 * 127 of each.
pub const MAX_DEPTH: usize = (i32::MAX as usize) / (127 * 127);

/// What a layer makes of x.
pub struct Layer<'a> {
    pub out: &'a mut Tensor,          // [M, N], f32 in main memory
    pub weight: Quantized<'a>,        // [N, K]
    pub bias: Option<&'a Tensor>,     // [N], of any float type
    pub residual: Option<&'a Tensor>, // [M, N]: out is that plus the product
}

/// out [M, N] (f32 in main memory); x [M, K], weight [N, K], bias [N] of any float type. With `residual` [M, N], out is that plus the product.
/// On a GPU out, bias and residual have one type. It gives the same bits, rounded once if that is bf16.
pub fn forward(
    out: &mut Tensor,
    x: Quantized,
    weight: Quantized,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<()> {
    forward_group(&mut [Layer { out, weight, bias, residual }], x)
}

/// The same for layers that read x [M, K], at once.
pub fn forward_group(layers: &mut [Layer], x: Quantized) -> Result<()> {
    let mut sizes = [0; 3];
    for Layer { out, weight, bias, residual } in &mut *layers {
        sizes = check(out, x, *weight, *bias, *residual)?;
        if let Some(gpu) = x.q.gpu() {
            launch::forward(gpu, out, x, *weight, *bias, *residual, sizes)?;
        }
    }
    if x.q.gpu().is_some() {
        return Ok(());
    }
    let ([m, _, k], x_scale) = (sizes, x.scale.f32s()?);
    let (mut weights, mut parts) = (Vec::new(), Vec::new());
    for Layer { out, weight, bias, residual } in layers {
        let n = out.cols();
        weights.push((weight.q.i8s()?, n));
        let bias = bias.map(pieces::widened).transpose()?;
        let residual = residual.map(|r| r.f32s()).transpose()?;
        parts.push((Shared::new(out.f32s_mut()?), n, weight.scale.f32s()?, bias, residual));
    }
    products_int8(x.q.i8s()?, k, m, &weights, &|layer, row, column, sums: &mut [i32]| {
        let (out, n, w_scale, bias, residual) = &parts[layer];
        let at = row * n + column;
        // SAFETY: each element comes once.
        let out = unsafe { out.slice(at, sums.len()) };
        match bias {
            None => scaled(out, sums, x_scale[row], &w_scale[column..]),
            Some(bias) => scaled_biased(out, sums, x_scale[row], &w_scale[column..], &bias[column..]),
        }
        if let Some(residual) = residual {
            out.iter_mut().zip(&residual[at..]).for_each(|(y, residual)| *y += residual);
        }
    });
    Ok(())
}

vectorised! {
    fn scaled(out: &mut [f32], sums: &[i32], x_scale: f32, w_scale: &[f32]) {
        for ((y, &sum), w_scale) in out.iter_mut().zip(sums).zip(w_scale) {
            *y = sum as f32 * (x_scale * w_scale);
        }
    }
}

vectorised! {
    fn scaled_biased(out: &mut [f32], sums: &[i32], x_scale: f32, w_scale: &[f32], bias: &[f32]) {
        for (((y, &sum), w_scale), bias) in out.iter_mut().zip(sums).zip(w_scale).zip(bias) {
            *y = sum as f32 * (x_scale * w_scale) + bias;
        }
    }
}

/// q i8 [M, I] and scale f32 [M] are act = silu(x G^T) * (x U^T), rotated and quantised by row (ops::quantize); x [M, K], gate G and up U [I, K].
/// In main memory act is f32 in between, on a GPU it is rounded to bf16.
pub fn forward_swiglu(
    q: &mut Tensor,
    scale: &mut Tensor,
    x: Quantized,
    gate: Quantized,
    up: Quantized,
    rotation: usize,
) -> Result<()> {
    let size = check(q, x, gate, None, None)?;
    if up.q.shape() != gate.q.shape() {
        return Err(Error::op(OP, format!("up {:?}", gate.q.shape()), format!("{:?}", up.q.shape())));
    }
    check(q, x, up, None, None)?;
    quantize::expect_outputs(OP, q, scale, q.shape())?;
    quantize::expect_rotation(OP, rotation, q.cols())?;
    if let Some(gpu) = x.q.gpu() {
        let act = launch::forward_swiglu(gpu, x, gate, up, size)?;
        return quantize::launch(gpu, q, scale, (act.ptr(), DType::Bf16), rotation);
    }
    let made = || x.scale.like_f32(q.shape());
    let (mut gates, mut ups, mut act) = (made()?, made()?, made()?);
    let layer = |out, weight| Layer { out, weight, bias: None, residual: None };
    forward_group(&mut [layer(&mut gates, gate), layer(&mut ups, up)], x)?;
    swiglu::forward(&mut act, &gates, &ups)?;
    quantize::forward(q, scale, &act, rotation)
}

const OP: &str = "gemm_int8";

/// (M, N, K), if all fits together.
fn check(
    out: &Tensor,
    x: Quantized,
    weight: Quantized,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<[usize; 3]> {
    let &[n, k] = weight.q.shape() else {
        return Err(Error::op(OP, "weight [N, K]", format!("{:?}", weight.q.shape())));
    };
    let m = x.q.rows();
    for (name, matrix) in [("x", x), ("weight", weight)] {
        if matrix.q.dtype() != DType::I8 {
            return Err(Error::op(OP, format!("{name} in i8"), matrix.q.dtype().to_string()));
        }
        expect_shape(OP, &format!("{name} scale"), matrix.scale, &[matrix.q.rows()])?;
        expect_f32(OP, &format!("{name} scale"), matrix.scale)?;
    }
    if x.q.cols() != k {
        return Err(Error::op(OP, format!("x [{m}, {k}]"), format!("{:?}", x.q.shape())));
    }
    if k > MAX_DEPTH {
        return Err(Error::op(OP, format!("K up to {MAX_DEPTH}"), k.to_string()));
    }
    if out.cols() != n || out.rows() != m {
        return Err(Error::op(OP, format!("out [{m}, {n}]"), format!("{:?}", out.shape())));
    }
    if let Some(bias) = bias {
        expect_shape(OP, "bias", bias, &[n])?;
    }
    if let Some(residual) = residual {
        expect_shape(OP, "residual", residual, out.shape())?;
    }
    Ok([m, n, k])
}
