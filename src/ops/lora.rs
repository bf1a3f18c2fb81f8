//! Low-rank update (Hu et al. 2021, as peft): y += s (x A^T) B^T.
use super::linear::{self, Scale, add_product};
use super::matmul::{View, matmul};
use super::{expect_shape, kernel_dtype};
use crate::error::{Error, Result};
use crate::tensor::{Elements, Tensor};

struct Sizes {
    m: usize,
    n: usize,
    k: usize,
    r: usize,
}

/// Sizes of x [M, K], A [R, K], B [N, R], y [M, N] and xa [M, R], all checked.
fn sizes(op: &'static str, y: &Tensor, xa: &Tensor, x: &Tensor, a: &Tensor, b: &Tensor) -> Result<Sizes> {
    let (m, n, k, r) = (x.rows(), y.cols(), x.cols(), xa.cols());
    expect_shape(op, "a", a, &[r, k])?;
    expect_shape(op, "b", b, &[n, r])?;
    if y.rows() != m {
        return Err(Error::op(op, format!("y [{m}, {n}]"), format!("{:?}", y.shape())));
    }
    if xa.rows() != m {
        return Err(Error::op(op, format!("xa [{m}, {r}]"), format!("{:?}", xa.shape())));
    }
    Ok(Sizes { m, n, k, r })
}

/// On a GPU all have one type.
/// out [M, N] is added to; xa [M, R] is overwritten with x A^T and kept for the backward; x [M, K], a [R, K], b [N, R].
pub fn forward(
    out: &mut Tensor,
    xa: &mut Tensor,
    x: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scale: f32,
) -> Result<()> {
    const OP: &str = "lora forward";
    let Sizes { m, n, k, r } = sizes(OP, out, xa, x, a, b)?;
    if let Some(gpu) = x.gpu() {
        kernel_dtype(OP, &[out, xa, x, a, b])?;
        linear::launch(gpu, OP, xa, x, a, None, Scale { alpha: 1.0, accumulate: false })?;
        return linear::launch(gpu, OP, out, xa, b, None, Scale { alpha: scale, accumulate: true });
    }
    let (out, xa, x, a, b) = (out.f32s_mut()?, xa.f32s_mut()?, x.f32s()?, a.f32s()?, b.f32s()?);
    xa.fill(0.0);
    add_product(xa, m, x, &Elements::F32(a), r, k);
    matmul(m, n, r, out, n, scale, rows(xa, r), columns(b, r), true);
    Ok(())
}

/// da [R, K], db [N, R] and dx [M, K] (if given) are added to.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    da: &mut Tensor,
    db: &mut Tensor,
    dx: Option<&mut Tensor>,
    dy: &Tensor,
    x: &Tensor,
    xa: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scale: f32,
) -> Result<()> {
    const OP: &str = "lora backward";
    let Sizes { m, n, k, r } = sizes(OP, dy, xa, x, a, b)?;
    expect_shape(OP, "da", da, &[r, k])?;
    expect_shape(OP, "db", db, &[n, r])?;
    if let Some(dx) = &dx {
        expect_shape(OP, "dx", dx, x.shape())?;
    }
    let (dy, x, xa, a, b) = (dy.f32s()?, x.f32s()?, xa.f32s()?, a.f32s()?, b.f32s()?);
    matmul(n, r, m, db.f32s_mut()?, r, scale, columns(dy, n), rows(xa, r), true);
    let mut dxa = vec![0.0; m * r];
    matmul(m, r, n, &mut dxa, r, scale, rows(dy, n), rows(b, r), false);
    matmul(r, k, m, da.f32s_mut()?, k, 1.0, columns(&dxa, r), rows(x, k), true);
    if let Some(dx) = dx {
        matmul(m, k, r, dx.f32s_mut()?, k, 1.0, rows(&dxa, r), rows(a, k), true);
    }
    Ok(())
}

/// A row-major matrix of `width` columns as it lies.
fn rows(data: &[f32], width: usize) -> View<'_> {
    View { data, rs: width, cs: 1 }
}

/// Its transpose.
fn columns(data: &[f32], width: usize) -> View<'_> {
    View { data, rs: 1, cs: width }
}
