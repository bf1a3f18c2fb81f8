//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019; arithmetic as torch.optim.AdamW).
//! m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w -= lr wd w;  w -= lr / (1-b1^t) * m / (sqrt(v) / sqrt(1-b2^t) + eps)
use std::f64::consts::PI;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::clip_grad_norm::{self, Part, Table};
use super::pieces::PIECE;
use super::vector_math::vectorised;
use super::{expect_f32, expect_shape};
use crate::error::{Error, Result};
use crate::tensor::{Arg, Buffer, DType, Gpu, Launch, Ptr, Tensor};

const OP: &str = "adamw";

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
        return Err(Error::op(OP, "a step counted from 1", "step 0"));
    }
    expect_shape(OP, "m", m, w.shape())?;
    expect_shape(OP, "v", v, w.shape())?;
    expect_shape(OP, "grad", grad, w.shape())?;
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

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    Linear,
    Cosine,
}

impl Schedule {
    /// Factor of the peak rate in step `step` (from 1) of `steps`: linear warm-up over the first `warmup` fraction, then flat, or down to 0.
    pub fn factor(self, step: usize, steps: usize, warmup: f64) -> f64 {
        let warm = warm_up(steps, warmup);
        if step <= warm {
            return step as f64 / warm as f64;
        }
        let progress = (step - warm) as f64 / (steps - warm + 1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        }
    }
}

/// Steps in which the rate rises.
fn warm_up(steps: usize, warmup: f64) -> usize {
    (warmup * steps as f64).ceil() as usize
}

/// The learning rate of each step, and how far gradients may go.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub schedule: Schedule,
    /// What the schedule's factor multiplies; `hyper.lr` is not read.
    pub peak: f64,
    /// Of the whole run.
    pub steps: usize,
    /// Fraction of them in which the rate rises.
    pub warmup: f64,
    /// Infinite: no clipping.
    pub max_norm: f32,
    pub hyper: Hyper,
}

impl Plan {
    /// The rate of a step, counted from 1.
    pub fn lr(&self, step: u64) -> f64 {
        self.peak * self.schedule.factor(step as usize, self.steps, self.warmup)
    }
}

/// A weight with what a step reads and writes; all f32 and of one shape.
pub struct Trained<'a> {
    pub w: &'a mut Tensor,
    pub m: &'a mut Tensor,
    pub v: &'a mut Tensor,
    /// Scaled by clipping in main memory, left as it is on a GPU.
    pub grad: &'a mut Tensor,
    /// A bf16 copy of w to renew, on a GPU.
    pub rounded: Option<&'a mut Tensor>,
}

/// Steps over all weights at once, with clipping (clip_grad_norm) and schedule. On a GPU a step is four launches, whatever the number of tensors, and
/// nothing is waited for.
pub struct Group {
    pub plan: Plan,
    /// Steps taken, in main memory.
    step: u64,
    /// The last step's.
    norm: f64,
    device: Option<OnDevice>,
}

/// What stays on a GPU from step to step.
struct OnDevice {
    gpu: Arc<Gpu>,
    table: Table,
    /// u64: steps taken.
    step: Buffer,
    /// f64
    norm: Buffer,
    /// struct Factors of kernels/adamw.cu
    factors: Buffer,
}

impl Group {
    /// After `taken` steps.
    pub fn new(plan: Plan, taken: u64) -> Group {
        Group { plan, step: taken, norm: 0.0, device: None }
    }

    /// One step of all weights: the same tensors in every call. Where the norm is not finite nothing is changed, which is an error here in main memory and in
    /// `norm` on a GPU.
    pub fn step(&mut self, tensors: &mut [Trained]) -> Result<()> {
        let max_norm = self.plan.max_norm;
        if max_norm.is_nan() || max_norm < 0.0 {
            return Err(Error::op(OP, "max_norm of at least 0", max_norm.to_string()));
        }
        for t in &mut *tensors {
            let shape = t.w.shape();
            expect_shape(OP, "m", t.m, shape)?;
            expect_shape(OP, "v", t.v, shape)?;
            expect_shape(OP, "grad", t.grad, shape)?;
            if let Some(rounded) = &t.rounded {
                expect_shape(OP, "rounded", rounded, shape)?;
            }
        }
        if let Some(gpu) = tensors.first().and_then(|t| t.w.gpu().cloned()) {
            return self.step_on(&gpu, tensors);
        }
        let mut grads: Vec<&mut Tensor> = tensors.iter_mut().map(|t| &mut *t.grad).collect();
        self.norm = clip_grad_norm::clip(&mut grads, max_norm)?;
        self.step += 1;
        let hyper = Hyper { lr: self.plan.lr(self.step) as f32, ..self.plan.hyper };
        for t in tensors {
            if t.rounded.is_some() {
                return Err(Error::op(OP, "no rounded copy in main memory", "one"));
            }
            step(t.w, t.m, t.v, t.grad, hyper, self.step)?;
        }
        Ok(())
    }

    /// The norm of the last step's gradients before clipping; waits for a GPU. An error if it is not finite: then the step did nothing.
    pub fn norm(&self) -> Result<f64> {
        match &self.device {
            None => Ok(self.norm),
            Some(on) => clip_grad_norm::expect_finite(clip_grad_norm::read_norm(&on.gpu, &on.norm)?),
        }
    }

    /// kernels/clip_grad_norm.cu, then kernels/adamw.cu
    fn step_on(&mut self, gpu: &Arc<Gpu>, tensors: &mut [Trained]) -> Result<()> {
        let parts = tensors.iter_mut().map(|t| part(gpu, t)).collect::<Result<Vec<Part>>>()?;
        let on = match self.device.take() {
            Some(on) if on.table.is_of(&parts) => on,
            // Tensors may move: one that another handle shares is copied before it is written.
            Some(on) => OnDevice { table: Table::new(parts)?, ..on },
            None => OnDevice {
                gpu: Arc::clone(gpu),
                table: Table::new(parts)?,
                step: gpu.upload(&self.step.to_ne_bytes())?,
                norm: gpu.alloc(size_of::<f64>())?,
                factors: gpu.alloc(FACTORS_BYTES)?,
            },
        };
        let on = self.device.insert(on);
        on.table.norm(gpu, &on.norm)?;
        let at = Launch { grid: [1, 1, 1], block: 32, shared: 0 };
        let first = [on.factors.ptr().into(), on.step.ptr().into(), on.norm.ptr().into()];
        gpu.launch("adamw_prepare_forward_f32", at, &[&first[..], &self.plan.args()].concat())?;
        let (at, [parts, owners]) = on.table.blocks(gpu, 0)?;
        gpu.launch("adamw_forward_f32", at, &[parts.into(), owners.into(), on.factors.ptr().into()])
    }
}

/// sizeof(Factors) of kernels/adamw.cu
const FACTORS_BYTES: usize = 36;

impl Plan {
    /// As adamw_prepare_forward_f32 takes it.
    fn args(&self) -> [Arg; 9] {
        let Hyper { beta1, beta2, eps, weight_decay, .. } = self.hyper;
        let schedule = match self.schedule {
            Schedule::Constant => 0,
            Schedule::Linear => 1,
            Schedule::Cosine => 2,
        };
        [
            // A double, by its bits.
            self.peak.to_bits().into(),
            (self.steps as u64).into(),
            (warm_up(self.steps, self.warmup) as u64).into(),
            schedule.into(),
            beta1.into(),
            beta2.into(),
            eps.into(),
            weight_decay.into(),
            self.max_norm.into(),
        ]
    }
}

/// Where a weight lies.
fn part(gpu: &Arc<Gpu>, t: &mut Trained) -> Result<Part> {
    let all = [("w", &*t.w), ("m", &*t.m), ("v", &*t.v), ("grad", &*t.grad)];
    all.into_iter().try_for_each(|(name, tensor)| expect_f32(OP, name, tensor))?;
    if let Some(rounded) = &t.rounded
        && rounded.dtype() != DType::Bf16
    {
        return Err(Error::op(OP, "rounded in bf16", rounded.dtype().to_string()));
    }
    Ok(Part {
        w: t.w.ptr_mut(gpu)?,
        m: t.m.ptr_mut(gpu)?,
        v: t.v.ptr_mut(gpu)?,
        grad: t.grad.ptr(gpu)?,
        rounded: t.rounded.as_mut().map_or(Ok(Ptr::NULL), |r| r.ptr_mut(gpu))?,
        len: t.w.len(),
        ..Part::default()
    })
}
