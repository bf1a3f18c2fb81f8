//! Qwen2-VL's merger: a layer norm of each patch, then an MLP over the patches of a square, which lie next to one another.

use crate::error::Result;
use crate::models::config::VisionConfig;
use crate::models::linear::{Linear, LinearSaved, Pass, VisitLinear};
use crate::models::norm::LayerNorm;
use crate::models::param::{Grads, VisitParam};
use crate::models::weights::Weights;
use crate::ops::gelu;
use crate::tensor::Tensor;

const NORM: &str = "model.visual.merger.ln_q";
const FC: [&str; 2] = ["model.visual.merger.mlp.0", "model.visual.merger.mlp.2"];

#[derive(Clone)]
pub(super) struct Merger {
    norm: LayerNorm,
    fc1: Linear, // [C_vision * s * s, C_vision * s * s]
    fc2: Linear, // [C, C_vision * s * s]
}

pub struct MergerSaved {
    x: Tensor,       // [T, C_vision]
    squares: Tensor, // normed, [T/(s*s), C_vision * s * s], as up and act
    up: Tensor,
    act: Tensor,
    fc1: LinearSaved,
    fc2: LinearSaved,
}

impl Merger {
    pub(super) fn take(weights: &mut Weights, c: &VisionConfig, outputs: usize) -> Self {
        let inner = c.hidden_size * c.merge.pow(2);
        Merger {
            norm: LayerNorm::take(weights, NORM, c.hidden_size, c.layer_norm_eps),
            fc1: Linear::take(weights, FC[0], inner, inner, true),
            fc2: Linear::take(weights, FC[1], outputs, inner, true),
        }
    }

    /// x [T, C_vision] -> [T/(s*s), C]
    pub(super) fn forward(&self, x: &Tensor, pass: Pass) -> Result<(Tensor, MergerSaved)> {
        let inner = self.fc1.inputs();
        let squares = self.norm.forward(x)?.reshape(&[x.len() / inner, inner])?;
        let (up, fc1) = self.fc1.forward(&squares, pass)?;
        let mut act = up.like(up.shape())?;
        gelu::forward(&mut act, &up, gelu::Kind::Exact)?;
        let (out, fc2) = self.fc2.forward(&act, pass)?;
        Ok((out, MergerSaved { x: x.clone(), squares, up, act, fc1, fc2 }))
    }

    /// The gradient of x if `need_dx`.
    pub(super) fn backward(
        &self,
        grads: &mut Grads,
        dy: &Tensor,
        s: &MergerSaved,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let mut dact = dy.like(s.act.shape())?;
        self.fc2.backward(grads, Some(&mut dact), false, dy, &s.act, &s.fc2)?;
        let mut dup = dy.like(s.up.shape())?;
        gelu::backward(&mut dup, &dact, &s.up, gelu::Kind::Exact)?;
        let below = need_dx || self.norm.is_trained();
        let mut dsquares = below.then(|| dy.like(s.squares.shape())).transpose()?;
        self.fc1.backward(grads, dsquares.as_mut(), false, &dup, &s.squares, &s.fc1)?;
        let Some(dsquares) = dsquares else { return Ok(None) };
        let dx = self.norm.backward(grads, &dsquares.reshape(s.x.shape())?, &s.x)?;
        Ok(need_dx.then_some(dx))
    }

    pub(super) fn is_trained(&self) -> bool {
        self.norm.is_trained() || self.fc1.is_trained() || self.fc2.is_trained()
    }

    pub(super) fn visit_norm(&mut self, f: VisitParam) {
        self.norm.visit(NORM, f);
    }

    pub(super) fn visit_linears(&mut self, f: VisitLinear) {
        f(FC[0], &mut self.fc1);
        f(FC[1], &mut self.fc2);
    }
}
