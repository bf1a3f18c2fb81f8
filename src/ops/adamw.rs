//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019; arithmetic as torch.optim.AdamW).
//! m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w -= lr wd w;  w -= lr / (1-b1^t) * m / (sqrt(v) / sqrt(1-b2^t) + eps)
use crate::error::Result;
use crate::tensor::Tensor;

#[derive(Clone, Copy, Debug)]
pub struct Hyper {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

/// One update of `w` and its moments; `step` counts from 1. All f32, one shape.
pub fn step(
    w: &mut Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    grad: &Tensor,
    hyper: Hyper,
    step: u64,
) -> Result<()> {
    todo!()
}
