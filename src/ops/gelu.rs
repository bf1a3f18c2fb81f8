//! GELU (Hendrycks & Gimpel 2016), the tanh approximation: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
use crate::error::Result;
use crate::tensor::Tensor;

pub fn forward(out: &mut Tensor, x: &Tensor) -> Result<()> {
    todo!()
}

/// dx = dy * gelu'(x), overwritten.
pub fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    todo!()
}
