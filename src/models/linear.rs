//! A linear layer: dense weights of any dtype, an optional bias, an optional LoRA adapter.

use crate::error::Result;
use crate::models::param::{Grads, Param, VisitParam};
use crate::models::weights::Weights;
use crate::ops::{add, dropout, linear, lora};
use crate::random;
use crate::tensor::Tensor;

pub struct Linear {
    pub weight: Param,       // [N, K]
    pub bias: Option<Param>, // [N]
    pub lora: Option<Lora>,
}

/// y += scale * (dropout(x) A^T) B^T
pub struct Lora {
    pub a: Param, // [R, K]
    pub b: Param, // [N, R]
    pub scale: f32,
    pub dropout: f32,
    /// Tells this adapter's dropout masks from the others'.
    pub key: u64,
}

/// Whether a pass trains.
#[derive(Clone, Copy, Debug)]
pub enum Pass {
    Infer,
    Train {
        /// Of the dropout masks.
        seed: u64,
        /// Blocks keep their input alone, and are run again in the backward (Chen et al. 2016).
        recompute: bool,
    },
}

impl Pass {
    pub(super) fn recomputes(self) -> bool {
        matches!(self, Pass::Train { recompute: true, .. })
    }
}

/// What the backward of a block goes by: all that its forward made, or its input.
pub(super) enum Kept<T> {
    All(T),
    Input(Tensor),
}

/// What the backward pass of a `Linear` needs besides its input.
pub struct LinearSaved {
    xa: Option<Tensor>,
    mask_seed: Option<u64>,
}

/// Called with the module's name and the layer.
pub type VisitLinear<'a> = &'a mut dyn FnMut(&str, &mut Linear);

impl Linear {
    /// `name.weight` [n, k] and, with `bias`, `name.bias` [n].
    pub fn take(weights: &mut Weights, name: &str, n: usize, k: usize, bias: bool) -> Self {
        Linear {
            weight: Param::take(weights, &format!("{name}.weight"), &[n, k]),
            bias: bias.then(|| Param::take(weights, &format!("{name}.bias"), &[n])),
            lora: None,
        }
    }

    pub fn outputs(&self) -> usize {
        self.weight.get().rows()
    }

    pub fn inputs(&self) -> usize {
        self.weight.get().cols()
    }

    /// x [M, K] -> [M, N]
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Result<(Tensor, LinearSaved)> {
        self.forward_into(x.like(&[x.rows(), self.outputs()])?, x, pass)
    }

    /// The same into `out`, which may be f32 where x is narrower.
    pub fn forward_into(&self, mut out: Tensor, x: &Tensor, pass: Pass) -> Result<(Tensor, LinearSaved)> {
        linear::forward(&mut out, x, self.weight.get(), self.bias.as_ref().map(Param::get))?;
        let mut saved = LinearSaved { xa: None, mask_seed: None };
        if let Some(adapter) = &self.lora {
            saved.mask_seed = adapter.mask_seed(pass);
            let dropped = adapter.dropped(x, saved.mask_seed)?;
            let mut xa = x.like(&[x.rows(), adapter.a.get().rows()])?;
            let input = dropped.as_ref().unwrap_or(x);
            lora::forward(&mut out, &mut xa, input, adapter.a.get(), adapter.b.get(), adapter.scale)?;
            saved.xa = Some(xa);
        }
        Ok((out, saved))
    }

    /// Adds to the gradients of what is trained here; `dx` [M, K] is overwritten, or added to with `accumulate`.
    pub fn backward(
        &self,
        grads: &mut Grads,
        mut dx: Option<&mut Tensor>,
        accumulate: bool,
        dy: &Tensor,
        x: &Tensor,
        saved: &LinearSaved,
    ) -> Result<()> {
        if let Some(dx) = dx.as_deref_mut() {
            linear::backward_input(dx, dy, self.weight.get(), accumulate)?;
        }
        if let Some(dweight) = grads.of(&self.weight) {
            linear::backward_weight(dweight, dy, x)?;
        }
        if let Some(dbias) = self.bias.as_ref().and_then(|b| grads.of(b)) {
            linear::backward_bias(dbias, dy)?;
        }
        if let (Some(adapter), Some(xa)) = (&self.lora, &saved.xa) {
            adapter.backward(grads, dx, dy, x, xa, saved.mask_seed)?;
        }
        Ok(())
    }

    /// Its own weights, without the adapter's.
    pub fn visit(&mut self, name: &str, f: VisitParam) {
        f(&format!("{name}.weight"), &mut self.weight);
        if let Some(bias) = &mut self.bias {
            f(&format!("{name}.bias"), bias);
        }
    }

    pub fn is_trained(&self) -> bool {
        self.weight.slot.is_some()
            || self.bias.as_ref().is_some_and(|b| b.slot.is_some())
            || self.lora.as_ref().is_some_and(|l| l.a.slot.is_some())
    }
}

impl Lora {
    fn mask_seed(&self, pass: Pass) -> Option<u64> {
        match pass {
            Pass::Train { seed, .. } if self.dropout > 0.0 => Some(random::mix(seed, &[self.key])),
            _ => None,
        }
    }

    /// x under this pass's dropout mask; `None` without one.
    fn dropped(&self, x: &Tensor, mask_seed: Option<u64>) -> Result<Option<Tensor>> {
        let Some(seed) = mask_seed else { return Ok(None) };
        let mut out = x.like(x.shape())?;
        dropout::forward(&mut out, x, self.dropout, seed)?;
        Ok(Some(out))
    }

    fn backward(
        &self,
        grads: &mut Grads,
        dx: Option<&mut Tensor>,
        dy: &Tensor,
        x: &Tensor,
        xa: &Tensor,
        mask_seed: Option<u64>,
    ) -> Result<()> {
        let (a, b) = (self.a.get(), self.b.get());
        let mut unused; // a loaded adapter that is not trained still passes the gradient on
        let (da, db) = match grads.pair(&self.a, &self.b) {
            Some(pair) => pair,
            None if dx.is_none() => return Ok(()),
            None => {
                unused = (a.like(a.shape())?, b.like(b.shape())?);
                (&mut unused.0, &mut unused.1)
            }
        };
        let Some(seed) = mask_seed else {
            return lora::backward(da, db, dx, dy, x, xa, a, b, self.scale);
        };
        let dropped = self.dropped(x, mask_seed)?;
        let input = dropped.as_ref().unwrap_or(x);
        let mut ddropped = x.like(x.shape())?;
        lora::backward(da, db, dx.is_some().then_some(&mut ddropped), dy, input, xa, a, b, self.scale)?;
        if let Some(dx) = dx {
            let mut masked = x.like(x.shape())?;
            dropout::forward(&mut masked, &ddropped, self.dropout, seed)?;
            add::forward(dx, &masked)?;
        }
        Ok(())
    }
}
