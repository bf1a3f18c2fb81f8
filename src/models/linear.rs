//! A linear layer: weights of any dtype or int8, an optional bias, an optional LoRA adapter.

use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::models::param::{Grads, Param, VisitParam};
use crate::models::weight::{self, Product, QuantizedInput, Weight};
use crate::models::weights::Weights;
use crate::ops::{add, dropout, gemm_int8, linear, lora};
use crate::quant;
use crate::random;
use crate::tensor::Tensor;

pub struct Linear {
    pub weight: Weight,      // [N, K]
    pub bias: Option<Param>, // [N]
    pub lora: Option<Lora>,
    /// Largest |x| of each input channel so far, while a calibration runs.
    pub seen: Option<Mutex<Vec<f32>>>,
}

/// y += scale * (dropout(x) A^T) B^T
#[derive(Clone)]
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
#[derive(Default)]
pub struct LinearSaved {
    xa: Option<Tensor>,
    mask_seed: Option<u64>,
}

/// Called with the module's name and the layer.
pub type VisitLinear<'a> = &'a mut dyn FnMut(&str, &mut Linear);

/// Not what a calibration has seen so far.
impl Clone for Linear {
    fn clone(&self) -> Self {
        let Linear { weight, bias, lora, seen: _ } = self;
        Linear { weight: weight.clone(), bias: bias.clone(), lora: lora.clone(), seen: None }
    }
}

impl Linear {
    /// `name.weight` [n, k] and, with `bias`, `name.bias` [n].
    pub fn take(weights: &mut Weights, name: &str, n: usize, k: usize, bias: bool) -> Self {
        Linear {
            weight: Weight::take(weights, name, n, k),
            bias: bias.then(|| Param::take(weights, &format!("{name}.bias"), &[n])),
            lora: None,
            seen: None,
        }
    }

    /// A dense weight [N, K] without a bias.
    pub fn new(weight: Tensor) -> Self {
        Linear { weight: Weight::Dense(Param::new(weight)), bias: None, lora: None, seen: None }
    }

    pub fn outputs(&self) -> usize {
        self.weight.matrix().rows()
    }

    pub fn inputs(&self) -> usize {
        self.weight.matrix().cols()
    }

    /// x [M, K] -> [M, N]
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Result<(Tensor, LinearSaved)> {
        self.forward_into(x.like(&[x.rows(), self.outputs()])?, x, pass)
    }

    /// The same into `out`, which may be f32 where x is narrower.
    pub fn forward_into(&self, mut out: Tensor, x: &Tensor, pass: Pass) -> Result<(Tensor, LinearSaved)> {
        weight::products(&mut [self.product(&mut out, x)?], x)?;
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

    /// Without the adapter.
    fn product<'a>(&'a self, out: &'a mut Tensor, x: &Tensor) -> Result<Product<'a>> {
        if let Some(seen) = &self.seen {
            quant::see(seen, x)?;
        }
        Ok(Product { out, weight: &self.weight, bias: self.bias.as_ref().map(Param::get) })
    }

    /// What `forward` gives for each layer, all of which read x: their adapters are applied together.
    pub fn forward_group<const N: usize>(
        layers: [&Linear; N],
        x: &Tensor,
        pass: Pass,
    ) -> Result<[(Tensor, LinearSaved); N]> {
        // With dropout each adapter reads x under a mask of its own.
        if layers.iter().any(|l| l.lora.as_ref().is_some_and(|a| a.mask_seed(pass).is_some())) {
            return all(layers.map(|layer| layer.forward(x, pass)));
        }
        let mut outputs = all(layers.map(|layer| {
            let xa = layer.lora.as_ref().map(|adapter| x.like(&[x.rows(), adapter.a.get().rows()]));
            let saved = LinearSaved { xa: xa.transpose()?, mask_seed: None };
            Ok((x.like(&[x.rows(), layer.outputs()])?, saved))
        }))?;
        let products = layers.iter().zip(&mut outputs).map(|(layer, (out, _))| layer.product(out, x));
        weight::products(&mut products.collect::<Result<Vec<_>>>()?, x)?;
        let mut adapters = Vec::new();
        for (layer, (out, saved)) in layers.iter().zip(&mut outputs) {
            if let (Some(Lora { a, b, scale, .. }), Some(xa)) = (&layer.lora, &mut saved.xa) {
                adapters.push(lora::Forward { out, xa, a: a.get(), b: b.get(), scale: *scale });
            }
        }
        lora::forward_group(&mut adapters, x)?;
        Ok(outputs)
    }

    /// Whether int8 is all that these layers read.
    pub(super) fn read_int8(layers: &[&Linear]) -> bool {
        layers.iter().all(|l| l.weight.is_int8() && l.lora.is_none() && l.seen.is_none())
    }

    /// What `forward_group` gives for layers of which that is so. `beside` is any tensor of the pass.
    pub(super) fn forward_int8<const N: usize>(
        layers: [&Linear; N],
        x: &QuantizedInput,
        beside: &Tensor,
    ) -> Result<[Tensor; N]> {
        all(layers.map(|layer| {
            let mut out = beside.like(&[x.get().q.rows(), layer.outputs()])?;
            let bias = layer.bias.as_ref().map(Param::get);
            gemm_int8::forward(&mut out, x.get(), layer.weight.need_int8()?, bias, None)?;
            Ok(out)
        }))
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
        self.backward_product(grads, dx.as_deref_mut(), accumulate, dy, x)?;
        if let (Some(adapter), Some(xa)) = (&self.lora, &saved.xa) {
            adapter.backward(grads, dx, dy, x, xa, saved.mask_seed)?;
        }
        Ok(())
    }

    /// Without the adapter.
    fn backward_product(
        &self,
        grads: &mut Grads,
        dx: Option<&mut Tensor>,
        accumulate: bool,
        dy: &Tensor,
        x: &Tensor,
    ) -> Result<()> {
        let weight = self.weight.need_dense("training")?;
        if let Some(dx) = dx {
            linear::backward_input(dx, dy, weight.get(), accumulate)?;
        }
        if let Some(dweight) = grads.of(weight) {
            linear::backward_weight(dweight, dy, x)?;
        }
        if let Some(dbias) = self.bias.as_ref().and_then(|b| grads.of(b)) {
            linear::backward_bias(dbias, dy)?;
        }
        Ok(())
    }

    /// The backward of `forward_group`; `dx` [M, K] is overwritten with the sum.
    pub fn backward_group<const N: usize>(
        layers: [&Linear; N],
        grads: &mut Grads,
        mut dx: Option<&mut Tensor>,
        dy: [&Tensor; N],
        x: &Tensor,
        saved: [&LinearSaved; N],
    ) -> Result<()> {
        // The order of dx's sum is that of one layer after the other in main memory, where nothing is gained by another.
        let together = x.gpu().is_some() && saved.iter().all(|s| s.mask_seed.is_none());
        for (i, layer) in layers.into_iter().enumerate() {
            let dx = dx.as_deref_mut();
            if together {
                layer.backward_product(grads, dx, i > 0, dy[i], x)?;
            } else {
                layer.backward(grads, dx, i > 0, dy[i], x, saved[i])?;
            }
        }
        if !together {
            return Ok(());
        }
        let adapter = |i: usize| Some((layers[i].lora.as_ref()?, saved[i].xa.as_ref()?, dy[i]));
        let adapters: Vec<_> = (0..N).filter_map(adapter).collect();
        let params: Vec<_> = adapters.iter().map(|(adapter, ..)| (&adapter.a, &adapter.b)).collect();
        let mut jobs = Vec::new();
        for ((adapter, xa, dy), grads) in adapters.iter().zip(grads.pairs(&params)) {
            let (a, b) = (adapter.a.get(), adapter.b.get());
            jobs.push(lora::Backward { grads, dy, xa, a, b, scale: adapter.scale });
        }
        lora::backward_group(dx, &mut jobs, x)
    }

    /// Its own weights, without the adapter's.
    pub fn visit(&mut self, name: &str, f: VisitParam) {
        self.weight.visit(name, f);
        if let Some(bias) = &mut self.bias {
            f(&format!("{name}.bias"), bias);
        }
    }

    pub fn is_trained(&self) -> bool {
        self.weight.slot().is_some()
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
        // A loaded adapter that is not trained still passes the gradient on.
        let grads = grads.pair(&self.a, &self.b);
        if grads.is_none() && dx.is_none() {
            return Ok(());
        }
        let (a, b) = (self.a.get(), self.b.get());
        let mut adapter = [lora::Backward { grads, dy, xa, a, b, scale: self.scale }];
        let Some(seed) = mask_seed else {
            return lora::backward_group(dx, &mut adapter, x);
        };
        let dropped = self.dropped(x, mask_seed)?;
        let input = dropped.as_ref().unwrap_or(x);
        let mut ddropped = dx.is_some().then(|| x.like(x.shape())).transpose()?;
        if let Some(ddropped) = &mut ddropped {
            ddropped.clear()?;
        }
        lora::backward_group(ddropped.as_mut(), &mut adapter, input)?;
        if let (Some(dx), Some(ddropped)) = (dx, &ddropped) {
            let mut masked = x.like(x.shape())?;
            dropout::forward(&mut masked, ddropped, self.dropout, seed)?;
            add::forward(dx, &masked)?;
        }
        Ok(())
    }
}

/// All of them, or the first error.
fn all<T, const N: usize>(results: [Result<T>; N]) -> Result<[T; N]> {
    let values = results.into_iter().collect::<Result<Vec<T>>>()?;
    values.try_into().map_err(|_| Error::Failure(format!("a group of layers that are not {N}")))
}
