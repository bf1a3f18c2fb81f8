//! The weight of a linear layer: dense in any float type, or int8 with a scale for each output channel.

use crate::error::{Error, Result};
use crate::models::param::{Param, VisitParam};
use crate::models::weights::Weights;
use crate::ops::gemm_int8::{self, Quantized};
use crate::ops::{linear, quantize};
use crate::quant::{self, Fold};
use crate::tensor::{DType, Tensor};

/// What stands behind a layer's name in a checkpoint, for the scales of its weight.
pub(super) const SCALE: &str = "weight_scale";

#[derive(Clone)]
pub enum Weight {
    Dense(Param), // [N, K]
    Int8 {
        q: Param,     // i8 [N, K]
        scale: Param, // f32 [N]
        /// Of the rows of its input (ops::quantize), as its own are.
        rotation: usize,
    },
}

/// An input with each of its rows in int8: made once for all the layers that read it.
pub struct QuantizedInput {
    q: Tensor,     // i8 [M, K]
    scale: Tensor, // f32 [M]
}

impl QuantizedInput {
    pub fn new(x: &Tensor, rotation: usize) -> Result<Self> {
        let mut made = QuantizedInput::room(x, x.shape())?;
        quantize::forward(&mut made.q, &mut made.scale, x, rotation)?;
        Ok(made)
    }

    /// Room for rows of this shape beside x.
    pub(super) fn room(x: &Tensor, shape: &[usize]) -> Result<Self> {
        let rows = shape.iter().rev().skip(1).product();
        Ok(QuantizedInput { q: x.like_i8(shape)?, scale: x.like_f32(&[rows])? })
    }

    /// Where an op puts them.
    pub(super) fn parts(&mut self) -> (&mut Tensor, &mut Tensor) {
        (&mut self.q, &mut self.scale)
    }

    /// silu(x G^T) * (x U^T): what `down` reads. `beside` is any tensor of the pass.
    pub(super) fn swiglu(
        x: &QuantizedInput,
        [gate, up, down]: [&Weight; 3],
        beside: &Tensor,
    ) -> Result<Self> {
        let mut act = QuantizedInput::room(beside, &[x.q.rows(), gate.matrix().rows()])?;
        let (gate, up) = (gate.need_int8()?, up.need_int8()?);
        gemm_int8::forward_swiglu(&mut act.q, &mut act.scale, x.get(), gate, up, down.rotation())?;
        Ok(act)
    }

    pub fn get(&self) -> Quantized<'_> {
        Quantized { q: &self.q, scale: &self.scale }
    }
}

/// What a layer makes of its input, without an adapter.
pub(super) struct Product<'a> {
    pub out: &'a mut Tensor, // [M, N]
    pub weight: &'a Weight,
    pub bias: Option<&'a Tensor>, // [N]
}

/// out = x W^T + b of each; x [M, K] is quantised once for all that are int8.
pub(super) fn products(products: &mut [Product], x: &Tensor) -> Result<()> {
    let (mut dense, mut int8) = (Vec::new(), Vec::new());
    // The same for all: it goes by the width of x.
    let rotation = products.iter().map(|p| p.weight.rotation()).max().unwrap_or(1);
    for Product { out, weight, bias } in products {
        match &**weight {
            Weight::Dense(weight) => dense.push(linear::Layer { out, weight: weight.get(), bias: *bias }),
            int8_weight => {
                let weight = int8_weight.need_int8()?;
                int8.push(gemm_int8::Layer { out, weight, bias: *bias, residual: None });
            }
        }
    }
    if !int8.is_empty() {
        gemm_int8::forward_group(&mut int8, QuantizedInput::new(x, rotation)?.get())?;
    }
    if !dense.is_empty() {
        linear::forward_group(&mut dense, x)?;
    }
    Ok(())
}

impl Weight {
    /// `name.weight` [n, k], and `name.weight_scale` [n] where the checkpoint has this layer in int8.
    pub fn take(weights: &mut Weights, name: &str, n: usize, k: usize) -> Self {
        if !weights.is_int8(name) {
            return Weight::Dense(Param::take(weights, &format!("{name}.weight"), &[n, k]));
        }
        let q = weights.take_i8(&format!("{name}.weight"), &[n, k]);
        let scale = weights.take_scale(&format!("{name}.{SCALE}"), n);
        Weight::Int8 { q: Param::exact(q), scale: Param::exact(scale), rotation: weights.rotation(k) }
    }

    /// The matrix, whose elements count only together with the scales where it is int8.
    pub fn matrix(&self) -> &Tensor {
        match self {
            Weight::Dense(weight) => weight.get(),
            Weight::Int8 { q, .. } => q.get(),
        }
    }

    /// Whether its products are of bf16 or int8 numbers.
    pub(super) fn is_narrow(&self) -> bool {
        matches!(self.matrix().dtype(), DType::Bf16 | DType::I8)
    }

    pub fn is_int8(&self) -> bool {
        matches!(self, Weight::Int8 { .. })
    }

    /// Of the rows of its input, before they are quantised.
    pub(super) fn rotation(&self) -> usize {
        match self {
            Weight::Dense(_) => 1,
            Weight::Int8 { rotation, .. } => *rotation,
        }
    }

    pub fn slot(&self) -> Option<usize> {
        self.dense().and_then(|weight| weight.slot)
    }

    pub fn dense(&self) -> Option<&Param> {
        match self {
            Weight::Dense(weight) => Some(weight),
            Weight::Int8 { .. } => None,
        }
    }

    /// The dense weight for `what`, which int8 has no way to do.
    pub fn need_dense(&self, what: &str) -> Result<&Param> {
        let error = || {
            Error::Usage(format!(
                "{what} needs weights in floating point, and this model's are int8: take the one they were made from"
            ))
        };
        self.dense().ok_or_else(error)
    }

    pub(super) fn need_int8(&self) -> Result<Quantized<'_>> {
        match self {
            Weight::Int8 { q, scale, .. } => Ok(Quantized { q: q.get(), scale: scale.get() }),
            Weight::Dense(_) => Err(Error::Failure("a dense weight where an int8 one is expected".into())),
        }
    }

    /// Makes it int8 after `fold` is multiplied into it; `rotation` is the largest that its input may get.
    pub fn quantize(&mut self, fold: Option<&Fold>, rotation: usize) -> Result<()> {
        let weight = &self.need_dense("quantising")?.value;
        let rotation = quantize::rotation(weight.cols(), rotation);
        let (q, scale) = quant::matrix(weight, fold, rotation)?;
        *self = Weight::Int8 { q: Param::exact(q), scale: Param::exact(scale), rotation };
        Ok(())
    }

    pub fn visit(&mut self, name: &str, f: VisitParam) {
        match self {
            Weight::Dense(weight) => f(&format!("{name}.weight"), weight),
            Weight::Int8 { q, scale, .. } => {
                f(&format!("{name}.weight"), q);
                f(&format!("{name}.{SCALE}"), scale);
            }
        }
    }

    pub fn dtype(&self) -> DType {
        self.matrix().dtype()
    }
}
