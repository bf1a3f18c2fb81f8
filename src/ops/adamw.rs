//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019; arithmetic as torch.optim.AdamW).
//! m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w -= lr wd w;  w -= lr / (1-b1^t) * m / (sqrt(v) / sqrt(1-b2^t) + eps)
use rayon::prelude::*;

use super::expect_shape;
use super::pieces::PIECE;
use super::vector_math::vectorised;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

#[derive(Clone, Copy, Debug)]
pub struct Hyper {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

/// What a step multiplies with, computed in f64 and rounded once.
#[derive(Clone, Copy)]
struct Factors {
    decay: f32,
    m_new: f32,
    v_old: f32,
    v_new: f32,
    v_correction: f32,
    step_size: f32,
    eps: f32,
}

impl Factors {
    fn new(hyper: Hyper, step: u64) -> Self {
        let (lr, beta1, beta2) = (f64::from(hyper.lr), f64::from(hyper.beta1), f64::from(hyper.beta2));
        let t = step as f64;
        Factors {
            decay: (1.0 - lr * f64::from(hyper.weight_decay)) as f32,
            m_new: (1.0 - beta1) as f32,
            v_old: hyper.beta2,
            v_new: (1.0 - beta2) as f32,
            v_correction: (1.0 - beta2.powf(t)).sqrt() as f32,
            step_size: (lr / (1.0 - beta1.powf(t))) as f32,
            eps: hyper.eps,
        }
    }
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
    if step == 0 {
        return Err(Error::op("adamw", "a step counted from 1", "step 0"));
    }
    expect_shape("adamw", "m", m, w.shape())?;
    expect_shape("adamw", "v", v, w.shape())?;
    expect_shape("adamw", "grad", grad, w.shape())?;
    let factors = Factors::new(hyper, step);
    let (w, m, v, grad) = (w.f32s_mut()?, m.f32s_mut()?, v.f32s_mut()?, grad.f32s()?);
    if w.len() <= PIECE {
        update(w, m, v, grad, factors);
    } else {
        w.par_chunks_mut(PIECE)
            .zip(m.par_chunks_mut(PIECE))
            .zip(v.par_chunks_mut(PIECE))
            .zip(grad.par_chunks(PIECE))
            .for_each(|(((w, m), v), grad)| update(w, m, v, grad, factors));
    }
    Ok(())
}

vectorised! {
    fn update(w: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], f: Factors) {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(grad) {
            *m += f.m_new * (g - *m);
            *v = *v * f.v_old + f.v_new * g * g;
            let denominator = v.sqrt() / f.v_correction + f.eps;
            *w = *w * f.decay - f.step_size * *m / denominator;
        }
    }
}
