//! SwiGLU (Shazeer 2020): out = silu(gate) * up, silu(z) = z / (1 + exp(-z)).
use crate::error::Result;
use crate::tensor::Tensor;

pub fn forward(out: &mut Tensor, gate: &Tensor, up: &Tensor) -> Result<()> {
    todo!()
}

/// dgate and dup overwritten.
pub fn backward(
    dgate: &mut Tensor,
    dup: &mut Tensor,
    dout: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<()> {
    todo!()
}
