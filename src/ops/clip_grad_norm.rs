//! Global-norm clipping (as torch.nn.utils.clip_grad_norm_): if the L2 norm over all gradients exceeds max_norm, all are scaled by max_norm / (norm + 1e-6).
use crate::error::Result;
use crate::tensor::Tensor;

/// L2 norm over all gradients, summed in f64.
pub fn norm(grads: &[&Tensor]) -> Result<f64> {
    todo!()
}

/// Scales in place where the norm exceeds `max_norm`; gives the norm before. A norm that is not finite is an error.
pub fn clip(grads: &mut [&mut Tensor], max_norm: f32) -> Result<f64> {
    todo!()
}
