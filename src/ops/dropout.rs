//! Inverted dropout: out = x * keep / (1 - p). The mask is a function of (seed, element index) alone, so the backward and a resumed run see the same.
use crate::error::Result;
use crate::tensor::Tensor;

/// out = mask(x); calling it on dy with the same p and seed is the backward. 0 <= p < 1.
pub fn forward(out: &mut Tensor, x: &Tensor, p: f32, seed: u64) -> Result<()> {
    todo!()
}
