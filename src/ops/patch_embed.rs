//! Vision patching: a convolution whose stride is its kernel, as a matrix product, plus bias and position embedding (ViT, Dosovitskiy 2020).
use crate::error::Result;
use crate::tensor::Tensor;

/// out [N, P, C] ; pixels [N, 3, H, W]; weight [C, 3, S, S]; bias [C]; position [P, C], P = (H/S)*(W/S) in row-major order.
/// patches [N*P, 3*S*S] is scratch, kept for the backward.
pub fn forward(
    out: &mut Tensor,
    patches: &mut Tensor,
    pixels: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    position: &Tensor,
) -> Result<()> {
    todo!()
}

/// dweight, dbias and dposition are added to (pixels need no gradient). dy [N, P, C].
pub fn backward(
    dweight: &mut Tensor,
    dbias: &mut Tensor,
    dposition: &mut Tensor,
    dy: &Tensor,
    patches: &Tensor,
) -> Result<()> {
    todo!()
}
