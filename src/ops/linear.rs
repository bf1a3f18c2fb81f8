//! y = x W^T + b.
use rayon::prelude::*;

use super::expect_shape;
use super::matmul::{View, matmul};
use crate::error::{Error, Result};
use crate::tensor::{Elements, Tensor};

/// Rows of W that are widened at a time.
const BLOCK: usize = 128;

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

/// out [M, N], x [M, K] f32; weight [N, K] and bias [N] of any dtype (widened piece by piece, never as a whole).
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    const OP: &str = "linear forward";
    let (m, n, k) = sizes(OP, out, weight, x)?;
    if let Some(bias) = bias {
        expect_shape(OP, "bias", bias, &[n])?;
    }
    let (out, x) = (out.f32s_mut()?, x.f32s()?);
    let a = View { data: x, rs: k, cs: 1 };
    if let Some(bias) = bias {
        let mut first = vec![0.0; n];
        bias.elements().widen(0, &mut first);
        out.chunks_exact_mut(n.max(1)).for_each(|row| row.copy_from_slice(&first));
    }
    let accumulate = bias.is_some();
    match weight.elements() {
        Elements::F32(w) => matmul(m, n, k, out, n, 1.0, a, View { data: w, rs: 1, cs: k }, accumulate),
        narrow => {
            let mut block = vec![0.0; BLOCK.min(n) * k];
            for start in (0..n).step_by(BLOCK) {
                let rows = BLOCK.min(n - start);
                narrow.widen(start * k, &mut block[..rows * k]);
                let b = View { data: &block, rs: 1, cs: k };
                if m > 0 {
                    matmul(m, rows, k, &mut out[start..], n, 1.0, a, b, accumulate);
                }
            }
        }
    }
    Ok(())
}

/// dx [M, K] = dy W, or += with `accumulate`.
pub fn backward_input(dx: &mut Tensor, dy: &Tensor, weight: &Tensor, accumulate: bool) -> Result<()> {
    let (m, n, k) = sizes("linear backward_input", dy, weight, dx)?;
    let (dx, dy) = (dx.f32s_mut()?, dy.f32s()?);
    match weight.elements() {
        Elements::F32(w) => {
            let a = View { data: dy, rs: n, cs: 1 };
            matmul(m, k, n, dx, k, 1.0, a, View { data: w, rs: k, cs: 1 }, accumulate);
        }
        narrow => {
            if !accumulate {
                dx.fill(0.0);
            }
            let mut block = vec![0.0; BLOCK.min(n) * k];
            for start in (0..n).step_by(BLOCK) {
                let rows = BLOCK.min(n - start);
                narrow.widen(start * k, &mut block[..rows * k]);
                if m > 0 {
                    let a = View { data: &dy[start..], rs: n, cs: 1 };
                    matmul(m, k, rows, dx, k, 1.0, a, View { data: &block, rs: k, cs: 1 }, true);
                }
            }
        }
    }
    Ok(())
}

/// dweight [N, K] += dy^T x.
pub fn backward_weight(dweight: &mut Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    let (m, n, k) = sizes("linear backward_weight", dy, dweight, x)?;
    let a = View { data: dy.f32s()?, rs: 1, cs: n };
    let b = View { data: x.f32s()?, rs: k, cs: 1 };
    matmul(n, k, m, dweight.f32s_mut()?, k, 1.0, a, b, true);
    Ok(())
}

/// dbias [N] += column sums of dy.
pub fn backward_bias(dbias: &mut Tensor, dy: &Tensor) -> Result<()> {
    let n = dy.cols();
    expect_shape("linear backward_bias", "dbias", dbias, &[n])?;
    let (dbias, dy) = (dbias.f32s_mut()?, dy.f32s()?);
    const STRIPE: usize = 64;
    dbias.par_chunks_mut(STRIPE).enumerate().for_each(|(i, stripe)| {
        let start = i * STRIPE;
        for row in dy.chunks_exact(n) {
            for (sum, &d) in stripe.iter_mut().zip(&row[start..]) {
                *sum += d;
            }
        }
    });
    Ok(())
}
