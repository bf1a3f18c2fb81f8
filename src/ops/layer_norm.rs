//! Layer norm (Ba et al. 2016): y = (x - mean) / sqrt(var + eps) * w + b over the last dimension.
use crate::error::Result;
use crate::tensor::Tensor;

/// out, x [T, C]; weight, bias [C].
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<()> {
    todo!()
}

/// dx is overwritten; dweight and dbias (both or neither) are added to. Mean and variance are computed again from x.
pub fn backward(
    dx: &mut Tensor,
    dparams: Option<(&mut Tensor, &mut Tensor)>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    todo!()
}
