//! Idefics3's pixel shuffle: s x s neighbouring patches become one token of s*s*C features
//! (transformers, models/idefics3/modeling_idefics3.py, Idefics3Connector.pixel_shuffle).
use crate::error::Result;
use crate::tensor::Tensor;

/// out [N, P/(s*s), C*s*s], x [N, P, C], P a square number whose root `factor` (= s) divides.
pub fn forward(out: &mut Tensor, x: &Tensor, factor: usize) -> Result<()> {
    todo!()
}

/// dx [N, P, C] overwritten.
pub fn backward(dx: &mut Tensor, dy: &Tensor, factor: usize) -> Result<()> {
    todo!()
}
