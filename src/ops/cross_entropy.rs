//! Cross-entropy over answer tokens only: the caller gathers their rows, so logits of other positions never exist.
use crate::error::Result;
use crate::tensor::Tensor;

/// Sum over rows of -log softmax(logits)[target], summed in f64 in row order.
/// With `dlogits` ([M, V], overwritten): (softmax - onehot) * scale, the gradient of scale * sum. logits [M, V], targets M ids.
pub fn forward(dlogits: Option<&mut Tensor>, logits: &Tensor, targets: &[u32], scale: f32) -> Result<f64> {
    todo!()
}
