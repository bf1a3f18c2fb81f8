//! The two norms with their weights.

use crate::error::Result;
use crate::models::param::{Grads, Param, VisitParam};
use crate::models::weight::{QuantizedInput, Weight};
use crate::models::weights::Weights;
use crate::ops::{layer_norm, rms_norm};
use crate::tensor::Tensor;

#[derive(Clone)]
pub struct LayerNorm {
    weight: Param, // [C]
    bias: Param,   // [C]
    eps: f32,
}

impl LayerNorm {
    pub fn take(weights: &mut Weights, name: &str, c: usize, eps: f32) -> Self {
        LayerNorm {
            weight: Param::take(weights, &format!("{name}.weight"), &[c]),
            bias: Param::take(weights, &format!("{name}.bias"), &[c]),
            eps,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut out = x.like(x.shape())?;
        layer_norm::forward(&mut out, x, self.weight.get(), self.bias.get(), self.eps)?;
        Ok(out)
    }

    /// x += residual, then the norm of x.
    pub fn forward_residual(&self, x: &mut Tensor, residual: &Tensor) -> Result<Tensor> {
        let mut out = x.like(x.shape())?;
        let (weight, bias) = (self.weight.get(), self.bias.get());
        layer_norm::forward_residual(&mut out, x, residual, weight, bias, self.eps)?;
        Ok(out)
    }

    /// The gradient of x.
    pub fn backward(&self, grads: &mut Grads, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        let mut dx = x.like(x.shape())?;
        let dparams = grads.pair(&self.weight, &self.bias);
        layer_norm::backward(&mut dx, dparams, dy, x, self.weight.get(), self.eps)?;
        Ok(dx)
    }

    /// The gradient of x, plus `residual`: what the residual connection around brings.
    pub fn backward_residual(
        &self,
        grads: &mut Grads,
        dy: &Tensor,
        x: &Tensor,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let mut dx = x.like(x.shape())?;
        let dparams = grads.pair(&self.weight, &self.bias);
        layer_norm::backward_residual(&mut dx, dparams, dy, x, self.weight.get(), residual, self.eps)?;
        Ok(dx)
    }

    pub fn visit(&mut self, name: &str, f: VisitParam) {
        f(&format!("{name}.weight"), &mut self.weight);
        f(&format!("{name}.bias"), &mut self.bias);
    }

    pub fn is_trained(&self) -> bool {
        self.weight.slot.is_some()
    }
}

#[derive(Clone)]
pub struct RmsNorm {
    weight: Param, // [C]
    eps: f32,
}

impl RmsNorm {
    pub fn take(weights: &mut Weights, name: &str, c: usize, eps: f32) -> Self {
        RmsNorm { weight: Param::take(weights, &format!("{name}.weight"), &[c]), eps }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut out = x.like(x.shape())?;
        rms_norm::forward(&mut out, x, self.weight.get(), self.eps)?;
        Ok(out)
    }

    /// x += residual, then the norm of x.
    pub fn forward_residual(&self, x: &mut Tensor, residual: &Tensor) -> Result<Tensor> {
        let mut out = x.like(x.shape())?;
        rms_norm::forward_residual(&mut out, x, residual, self.weight.get(), self.eps)?;
        Ok(out)
    }

    /// x += residual where there is one, then the norm of x in int8, as `reader` takes it.
    pub(super) fn forward_quantized(
        &self,
        x: &mut Tensor,
        residual: Option<&Tensor>,
        reader: &Weight,
    ) -> Result<QuantizedInput> {
        let mut out = QuantizedInput::room(x, x.shape())?;
        let (q, scale) = out.parts();
        rms_norm::forward_quantized(q, scale, x, residual, self.weight.get(), self.eps, reader.rotation())?;
        Ok(out)
    }

    /// The gradient of x.
    pub fn backward(&self, grads: &mut Grads, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        let mut dx = x.like(x.shape())?;
        rms_norm::backward(&mut dx, grads.of(&self.weight), dy, x, self.weight.get(), self.eps)?;
        Ok(dx)
    }

    /// The gradient of x, plus `residual`: what the residual connection around brings.
    pub fn backward_residual(
        &self,
        grads: &mut Grads,
        dy: &Tensor,
        x: &Tensor,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let mut dx = x.like(x.shape())?;
        let (dweight, weight) = (grads.of(&self.weight), self.weight.get());
        rms_norm::backward_residual(&mut dx, dweight, dy, x, weight, residual, self.eps)?;
        Ok(dx)
    }

    pub fn visit(&mut self, name: &str, f: VisitParam) {
        f(&format!("{name}.weight"), &mut self.weight);
    }

    pub fn is_trained(&self) -> bool {
        self.weight.slot.is_some()
    }
}
