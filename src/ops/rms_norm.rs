//! RMS norm (Zhang & Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * w over the last dimension.
use crate::error::Result;
use crate::tensor::Tensor;

/// out, x [T, C]; weight [C].
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
    todo!()
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
    todo!()
}
