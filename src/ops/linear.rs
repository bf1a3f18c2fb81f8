//! y = x W^T + b.
//! A row of y has the same bits whatever the other rows of x are and however many (matmul/packed.rs).
use std::ops::Range;

use rayon::prelude::*;

use super::expect_shape;
use super::matmul::{Shared, View, block, for_pieces, matmul, packed};
use super::pieces;
use super::vector_math::vectorised;
use crate::error::{Error, Result};
use crate::tensor::{Elements, Tensor};

mod launch;
pub(super) use launch::{SKINNY, Scale, launch, tiles};

/// Rows of W that are widened at a time for the backward.
const DEPTH: usize = 512;

/// (M, N, K) of y = x W^T for matrices of matching sizes.
fn sizes(op: &'static str, y: &Tensor, weight: &Tensor, x: &Tensor) -> Result<(usize, usize, usize)> {
    let &[n, k] = weight.shape() else {
        return Err(Error::op(op, "weight [N, K]", format!("{:?}", weight.shape())));
    };
    let m = x.rows();
    if x.cols() != k {
        return Err(Error::op(op, format!("x [{m}, {k}]"), format!("{:?}", x.shape())));
    }
    if y.cols() != n || y.rows() != m {
        return Err(Error::op(op, format!("y [{m}, {n}]"), format!("{:?}", y.shape())));
    }
    Ok((m, n, k))
}

/// What a layer makes of x.
pub struct Layer<'a> {
    pub out: &'a mut Tensor,      // [M, N]
    pub weight: &'a Tensor,       // [N, K]
    pub bias: Option<&'a Tensor>, // [N]
}

/// out [M, N], x [M, K] f32; weight [N, K] and bias [N] of any dtype (widened piece by piece, never as a whole). By a bf16 weight x is rounded to bf16.
/// On a GPU x, weight and bias have one type and out has it too or is f32.
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    forward_group(&mut [Layer { out, weight, bias }], x)
}

/// The same for layers that read x [M, K]: at once in main memory, where each would have threads to wake.
pub fn forward_group(layers: &mut [Layer], x: &Tensor) -> Result<()> {
    const OP: &str = "linear forward";
    for Layer { out, weight, bias } in &mut *layers {
        let (_, n, _) = sizes(OP, out, weight, x)?;
        if let Some(bias) = bias {
            expect_shape(OP, "bias", bias, &[n])?;
        }
        if let Some(gpu) = x.gpu() {
            launch(gpu, OP, out, x, weight, *bias, Scale { alpha: 1.0, accumulate: false })?;
        }
    }
    if x.gpu().is_some() {
        return Ok(());
    }
    let (mut weights, mut parts) = (Vec::new(), Vec::new());
    for Layer { out, weight, bias } in layers {
        let n = out.cols();
        weights.push((weight.elements()?, n));
        parts.push((Shared::new(out.f32s_mut()?), n, bias.map(pieces::widened).transpose()?));
    }
    packed::products(x.f32s()?, x.cols(), x.rows(), &weights, &|layer, row, col, sums: &mut [f32]| {
        let (out, n, bias) = &parts[layer];
        // SAFETY: each element comes once.
        let to = unsafe { out.slice(row * n + col, sums.len()) };
        match bias {
            None => packed::copy(to, sums),
            Some(bias) => biased(to, sums, &bias[col..]),
        }
    });
    Ok(())
}

vectorised! {
    fn biased(to: &mut [f32], sums: &[f32], bias: &[f32]) {
        for ((to, &sum), &bias) in to.iter_mut().zip(sums).zip(bias) {
            *to = sum + bias;
        }
    }
}

/// out [M, N] += x W^T for W [N, K], each row by itself.
pub(super) fn add_product(out: &mut [f32], m: usize, x: &[f32], weight: &Elements, n: usize, k: usize) {
    let out = Shared::new(out);
    packed::products(x, k, m, &[(*weight, n)], &|_, row, col, sums: &mut [f32]| {
        // SAFETY: `products` hands out each element once.
        let to = unsafe { out.slice(row * n + col, sums.len()) };
        to.iter_mut().zip(sums).for_each(|(to, sum)| *to += *sum);
    });
}

/// Rows and columns of a matrix of `width` columns, as a dense f32 matrix.
fn widen(weight: &Elements, width: usize, rows: Range<usize>, cols: Range<usize>) -> Vec<f32> {
    let mut wide = vec![0.0; rows.len() * cols.len()];
    for (row, to) in rows.zip(wide.chunks_exact_mut(cols.len())) {
        weight.widen(row * width + cols.start, to);
    }
    wide
}

/// dx [M, K] = dy W, or += with `accumulate`. On a GPU dy and weight have one type and dx has it too or is f32.
pub fn backward_input(dx: &mut Tensor, dy: &Tensor, weight: &Tensor, accumulate: bool) -> Result<()> {
    let (m, n, k) = sizes("linear backward_input", dy, weight, dx)?;
    if let Some(gpu) = dy.gpu() {
        return launch::backward_input(gpu, dx, dy, weight, accumulate);
    }
    let (dx, dy) = (dx.f32s_mut()?, dy.f32s()?);
    let narrow = match weight.elements()? {
        Elements::F32(w) => {
            let (a, b) = (View { data: dy, rs: n, cs: 1 }, View { data: w, rs: k, cs: 1 });
            matmul(m, k, n, dx, k, 1.0, a, b, accumulate);
            return Ok(());
        }
        narrow => narrow,
    };
    if !accumulate {
        dx.fill(0.0);
    }
    if m == 0 || k == 0 {
        return Ok(());
    }
    let dx = Shared::new(dx);
    for_pieces(m, k, n, |rows, cols| {
        for start in (0..n).step_by(DEPTH) {
            let depth = DEPTH.min(n - start);
            let wide = widen(&narrow, k, start..start + depth, cols.clone());
            let a = View { data: &dy[rows.start * n + start..], rs: n, cs: 1 };
            let b = View { data: &wide, rs: cols.len(), cs: 1 };
            // SAFETY: pieces lie within M x K and are disjoint; A and B have `depth` columns and rows.
            unsafe {
                let c = dx.at(rows.start * k + cols.start);
                block(rows.len(), cols.len(), depth, c, k, 1.0, a, b, true);
            }
        }
    });
    Ok(())
}

/// dweight [N, K] += dy^T x. dweight is f32; on a GPU dy and x have one type.
pub fn backward_weight(dweight: &mut Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    let (m, n, k) = sizes("linear backward_weight", dy, dweight, x)?;
    if let Some(gpu) = dy.gpu() {
        return launch::backward_weight(gpu, dweight, dy, x);
    }
    let a = View { data: dy.f32s()?, rs: 1, cs: n };
    let b = View { data: x.f32s()?, rs: k, cs: 1 };
    matmul(n, k, m, dweight.f32s_mut()?, k, 1.0, a, b, true);
    Ok(())
}

/// dbias [N] += column sums of dy. dbias is f32.
pub fn backward_bias(dbias: &mut Tensor, dy: &Tensor) -> Result<()> {
    /// Columns that a thread sums at a time.
    const STRIPE: usize = 64;
    let n = dy.cols();
    expect_shape("linear backward_bias", "dbias", dbias, &[n])?;
    if let Some(gpu) = dy.gpu() {
        return launch::backward_bias(gpu, dbias, dy);
    }
    let (dbias, dy) = (dbias.f32s_mut()?, dy.f32s()?);
    let sum = |(i, stripe): (usize, &mut [f32])| {
        for row in dy.chunks_exact(n) {
            for (sum, &d) in stripe.iter_mut().zip(&row[i * STRIPE..]) {
                *sum += d;
            }
        }
    };
    if dy.len() < 1 << 16 {
        dbias.chunks_mut(STRIPE).enumerate().for_each(sum);
    } else {
        dbias.par_chunks_mut(STRIPE).enumerate().for_each(sum);
    }
    Ok(())
}
