//! Low-rank update (Hu et al. 2021, as peft): y += s (x A^T) B^T.
use crate::error::Result;
use crate::tensor::Tensor;

/// out [M, N] is added to; xa [M, R] is overwritten with x A^T and kept for the backward; x [M, K], a [R, K], b [N, R].
pub fn forward(
    out: &mut Tensor,
    xa: &mut Tensor,
    x: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scale: f32,
) -> Result<()> {
    todo!()
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
    todo!()
}
