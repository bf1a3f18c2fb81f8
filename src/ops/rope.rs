//! Rotary position embedding (Su et al. 2021), the half-split form of Llama: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the two halves of the rotated part.
use crate::error::Result;
use crate::tensor::Tensor;

/// cos and sin [T, D/2] for the given positions and inverse frequencies theta^(-2i/D), computed as transformers does (f32 product, then cos/sin).
pub fn table(positions: &[u32], theta: f32, rotated: usize) -> Result<(Tensor, Tensor)> {
    todo!()
}

/// In place on x [T, heads*HS]; the first 2 * cos.cols() elements of each head are rotated, the rest stay.
pub fn forward(x: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize) -> Result<()> {
    todo!()
}

/// The inverse rotation, in place on the gradient.
pub fn backward(dx: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize) -> Result<()> {
    todo!()
}
