//! y = x W^T + b.
use crate::error::Result;
use crate::tensor::Tensor;

/// out [M, N], x [M, K] f32; weight [N, K] and bias [N] of any dtype (widened piece by piece, never as a whole).
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    todo!()
}

/// dx [M, K] = dy W, or += with `accumulate`.
pub fn backward_input(dx: &mut Tensor, dy: &Tensor, weight: &Tensor, accumulate: bool) -> Result<()> {
    todo!()
}

/// dweight [N, K] += dy^T x.
pub fn backward_weight(dweight: &mut Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    todo!()
}

/// dbias [N] += column sums of dy.
pub fn backward_bias(dbias: &mut Tensor, dy: &Tensor) -> Result<()> {
    todo!()
}
