//! Low-rank update (Hu et al. 2021, as peft): y += s (x A^T) B^T, of one adapter or of a group whose adapters share x.
//! The CPU takes a group's adapters one after the other, a GPU together (kernels/lora.cu): x and dx are then read and written once.
use super::expect_shape;
use super::linear::add_product;
use super::matmul::{View, matmul};
use crate::error::{Error, Result};
use crate::tensor::{Elements, Tensor};

mod launch;

/// An adapter in the forward; all types are one on a GPU.
pub struct Forward<'a> {
    /// y [M, N], added to.
    pub out: &'a mut Tensor,
    /// [M, R], overwritten with x A^T and kept for the backward.
    pub xa: &'a mut Tensor,
    pub a: &'a Tensor, // [R, K]
    pub b: &'a Tensor, // [N, R]
    pub scale: f32,
}

/// An adapter in the backward; all types but the gradients' are one on a GPU.
pub struct Backward<'a> {
    /// dA [R, K] and dB [N, R] in f32, added to; `None` if the adapter is not trained.
    pub grads: Option<(&'a mut Tensor, &'a mut Tensor)>,
    pub dy: &'a Tensor, // [M, N]
    pub xa: &'a Tensor, // [M, R]
    pub a: &'a Tensor,  // [R, K]
    pub b: &'a Tensor,  // [N, R]
    pub scale: f32,
}

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

/// out [M, N] is added to; xa [M, R] is overwritten with x A^T and kept for the backward; x [M, K], a [R, K], b [N, R].
pub fn forward(
    out: &mut Tensor,
    xa: &mut Tensor,
    x: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scale: f32,
) -> Result<()> {
    forward_group(&mut [Forward { out, xa, a, b, scale }], x)
}

/// The same for all adapters that read x [M, K].
pub fn forward_group(adapters: &mut [Forward], x: &Tensor) -> Result<()> {
    const OP: &str = "lora forward";
    for Forward { out, xa, a, b, .. } in &*adapters {
        sizes(OP, out, xa, x, a, b)?;
    }
    if let Some(gpu) = x.gpu() {
        return adapters.chunks_mut(launch::MOST).try_for_each(|some| launch::forward(gpu, OP, some, x));
    }
    for Forward { out, xa, a, b, scale } in adapters {
        let Sizes { m, n, k, r } = sizes(OP, out, xa, x, a, b)?;
        let (out, xa, x, a, b) = (out.f32s_mut()?, xa.f32s_mut()?, x.f32s()?, a.f32s()?, b.f32s()?);
        xa.fill(0.0);
        add_product(xa, m, x, &Elements::F32(a), r, k);
        matmul(m, n, r, out, n, *scale, rows(xa, r), columns(b, r), true);
    }
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
    backward_group(dx, &mut [Backward { grads: Some((da, db)), dy, xa, a, b, scale }], x)
}

/// The same for all adapters that have read x [M, K].
pub fn backward_group(mut dx: Option<&mut Tensor>, adapters: &mut [Backward], x: &Tensor) -> Result<()> {
    const OP: &str = "lora backward";
    for Backward { grads, dy, xa, a, b, .. } in &*adapters {
        let Sizes { n, k, r, .. } = sizes(OP, dy, xa, x, a, b)?;
        if let Some((da, db)) = grads {
            expect_shape(OP, "da", da, &[r, k])?;
            expect_shape(OP, "db", db, &[n, r])?;
        }
    }
    if let Some(dx) = &dx {
        expect_shape(OP, "dx", dx, x.shape())?;
    }
    if let Some(gpu) = x.gpu() {
        return adapters
            .chunks_mut(launch::MOST)
            .try_for_each(|some| launch::backward(gpu, OP, dx.as_deref_mut(), some, x));
    }
    for adapter in adapters {
        backward_here(dx.as_deref_mut(), adapter, x)?;
    }
    Ok(())
}

/// On the CPU; shapes have been checked.
fn backward_here(dx: Option<&mut Tensor>, adapter: &mut Backward, x: &Tensor) -> Result<()> {
    let Backward { grads, dy, xa, a, b, scale } = adapter;
    let (m, n, k, r) = (x.rows(), dy.cols(), x.cols(), xa.cols());
    let (dy, x, xa, a, b) = (dy.f32s()?, x.f32s()?, xa.f32s()?, a.f32s()?, b.f32s()?);
    if let Some((_, db)) = grads {
        matmul(n, r, m, db.f32s_mut()?, r, *scale, columns(dy, n), rows(xa, r), true);
    }
    let mut dxa = vec![0.0; m * r];
    matmul(m, r, n, &mut dxa, r, *scale, rows(dy, n), rows(b, r), false);
    if let Some((da, _)) = grads {
        matmul(r, k, m, da.f32s_mut()?, k, 1.0, columns(&dxa, r), rows(x, k), true);
    }
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
