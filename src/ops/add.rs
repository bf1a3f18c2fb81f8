//! out += x, the residual connection (its own backward).
use super::pieces::{self, PIECE};
use super::vector_math::vectorised;
use super::{expect_shape, launch_elementwise};
use crate::error::Result;
use crate::tensor::Tensor;

/// out, x of one shape.
pub fn forward(out: &mut Tensor, x: &Tensor) -> Result<()> {
    expect_shape("add", "out", out, x.shape())?;
    if let Some(gpu) = x.gpu() {
        return launch_elementwise(gpu, "add", out, &[x]);
    }
    let x = x.f32s()?;
    pieces::each(out.f32s_mut()?, PIECE, |start, out| add_to(out, &x[start..start + out.len()]));
    Ok(())
}

vectorised! {
    /// out += x
    pub(super) fn add_to(out: &mut [f32], x: &[f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }
}
