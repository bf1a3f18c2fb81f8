//! One encoder block: layer norm, attention within each picture, layer norm, MLP, each half with a residual.

use super::Names;
use crate::error::Result;
use crate::models::config::VisionConfig;
use crate::models::linear::{Linear, LinearSaved, Pass, VisitLinear};
use crate::models::norm::LayerNorm;
use crate::models::param::{Grads, VisitParam};
use crate::models::rope::Rope;
use crate::models::weights::Weights;
use crate::ops::attention::Spans;
use crate::ops::{attention, gelu, rope};
use crate::quant::Group;
use crate::tensor::Tensor;

#[derive(Clone)]
pub(super) struct Block {
    norm1: LayerNorm,
    qkv: Qkv,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: gelu::Kind,
    attention: attention::Config,
}

/// The layers that make queries, keys and values.
#[allow(clippy::large_enum_variant)] // There is one in a block.
#[derive(Clone)]
enum Qkv {
    Apart([Linear; 3]),
    Fused(Linear), // [3*C, C]
}

pub(super) struct BlockSaved {
    pub(super) x: Tensor, // [T, C], as all but lse [T, NH] and up, act [T, I]
    h1: Tensor,
    q: Tensor, // rotated, as k
    k: Tensor,
    v: Tensor,
    attn: Tensor,
    lse: Tensor,
    pub(super) x2: Tensor,
    h2: Tensor,
    up: Tensor,
    act: Tensor,
    qkv: QkvSaved,
    linears: [LinearSaved; 3], // out, fc1, fc2
}

enum QkvSaved {
    Apart([LinearSaved; 3]),
    Fused(LinearSaved),
}

impl Block {
    pub(super) fn take(weights: &mut Weights, name: &str, names: &Names, c: &VisionConfig) -> Self {
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        let head_size = width / c.heads;
        let mut linear = |part: &str, n, k| Linear::take(weights, &format!("{name}.{part}"), n, k, true);
        let qkv = match names.qkv {
            QkvNames::Apart(parts) => Qkv::Apart(parts.map(|part| linear(part, width, width))),
            QkvNames::Fused(part) => Qkv::Fused(linear(part, 3 * width, width)),
        };
        let out = linear(names.out, width, width);
        let (fc1, fc2) = (linear("mlp.fc1", inner, width), linear("mlp.fc2", width, inner));
        let mut norm =
            |part: &str| LayerNorm::take(weights, &format!("{name}.{part}"), width, c.layer_norm_eps);
        Block {
            norm1: norm(names.norms[0]),
            qkv,
            out,
            norm2: norm(names.norms[1]),
            fc1,
            fc2,
            activation: c.activation,
            attention: attention::Config {
                heads: c.heads,
                kv_heads: c.heads,
                head_size,
                scale: (head_size as f32).powf(-0.5),
                causal: false,
            },
        }
    }

    /// The layers by what they read, and what makes that: the norms, and v where it is a layer of its own. Before fc2 is a curve.
    pub(super) fn groups(&self, name: &str, names: &Names) -> Vec<Group> {
        let group = |maker: &str, readers: &[&str]| Group {
            makers: ["weight", "bias"].map(|part| format!("{name}.{maker}.{part}")).to_vec(),
            readers: readers.iter().map(|part| format!("{name}.{part}")).collect(),
            shared: (1, 1),
        };
        let mut groups = match names.qkv {
            QkvNames::Apart(parts) => vec![group(names.norms[0], &parts), group(parts[2], &[names.out])],
            QkvNames::Fused(part) => vec![group(names.norms[0], &[part])],
        };
        groups.push(group(names.norms[1], &["mlp.fc1"]));
        groups
    }

    /// `residual`, where there is one, is first added to x: it is the last block's, whose result is the sum of what it returns and its x2.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        residual: Option<&Tensor>,
        rope: &Rope,
        spans: &Spans,
        pass: Pass,
    ) -> Result<(Tensor, BlockSaved)> {
        let h1 = match residual {
            Some(residual) => self.norm1.forward_residual(&mut x, residual)?,
            None => self.norm1.forward(&x)?,
        };
        let ([q, k, v], qkv) = self.project(&h1, rope, pass)?;
        let mut attn = x.like(q.shape())?;
        let mut lse = x.like_f32(&[x.rows(), self.attention.heads])?;
        let attend = match pass {
            Pass::Infer if self.out.weight.is_narrow() => attention::forward_rounded,
            _ => attention::forward,
        };
        attend(&mut attn, Some(&mut lse), &q, &k, &v, spans, self.attention)?;
        let (mut x2, out_saved) = self.out.forward(&attn, pass)?;
        let h2 = self.norm2.forward_residual(&mut x2, &x)?;

        let (up, fc1_saved) = self.fc1.forward(&h2, pass)?;
        let mut act = x.like(up.shape())?;
        gelu::forward(&mut act, &up, self.activation)?;
        let (y, fc2_saved) = self.fc2.forward(&act, pass)?;
        let linears = [out_saved, fc1_saved, fc2_saved];
        Ok((y, BlockSaved { x, h1, q, k, v, attn, lse, x2, h2, up, act, qkv, linears }))
    }

    /// Queries, keys and values of h, [T, C] each, rotated.
    fn project(&self, h: &Tensor, rope: &Rope, pass: Pass) -> Result<([Tensor; 3], QkvSaved)> {
        let heads = [self.attention.heads; 2];
        match &self.qkv {
            Qkv::Apart([q, k, v]) => {
                let [(mut q, q_saved), (mut k, k_saved), (v, v_saved)] =
                    Linear::forward_group([q, k, v], h, pass)?;
                rope::forward_pair(&mut q, &mut k, &rope.cos, &rope.sin, heads)?;
                Ok(([q, k, v], QkvSaved::Apart([q_saved, k_saved, v_saved])))
            }
            Qkv::Fused(layer) => {
                let (qkv, saved) = layer.forward(h, pass)?;
                let part = || h.like(&[h.rows(), layer.outputs() / 3]);
                let (mut q, mut k, mut v) = (part()?, part()?, part()?);
                rope::forward_split([&mut q, &mut k, &mut v], &qkv, &rope.cos, &rope.sin, heads)?;
                Ok(([q, k, v], QkvSaved::Fused(saved)))
            }
        }
    }

    /// The gradient of x, which is that of the residual as well.
    pub(super) fn backward(
        &self,
        grads: &mut Grads,
        dy: Tensor,
        s: BlockSaved,
        rope: &Rope,
        spans: &Spans,
    ) -> Result<Tensor> {
        let [out_saved, fc1_saved, fc2_saved] = &s.linears;
        let mut dact = dy.like(s.act.shape())?;
        self.fc2.backward(grads, Some(&mut dact), false, &dy, &s.act, fc2_saved)?;
        let mut dup = dy.like(s.up.shape())?;
        gelu::backward(&mut dup, &dact, &s.up, self.activation)?;
        let mut dh2 = dy.like(s.h2.shape())?;
        self.fc1.backward(grads, Some(&mut dh2), false, &dup, &s.h2, fc1_saved)?;
        let dx2 = self.norm2.backward_residual(grads, &dh2, &s.x2, &dy)?;

        let mut dattn = dy.like(s.attn.shape())?;
        self.out.backward(grads, Some(&mut dattn), false, &dx2, &s.attn, out_saved)?;
        let [mut dq, mut dk, mut dv] = [dy.like(s.q.shape())?, dy.like(s.k.shape())?, dy.like(s.v.shape())?];
        attention::backward(
            &mut dq,
            &mut dk,
            &mut dv,
            &dattn,
            &s.q,
            &s.k,
            &s.v,
            &s.attn,
            &s.lse,
            spans,
            self.attention,
        )?;
        let dh1 = self.project_backward(grads, [dq, dk, dv], &s.h1, &s.qkv, rope)?;
        self.norm1.backward_residual(grads, &dh1, &s.x, &dx2)
    }

    /// The gradient of h.
    fn project_backward(
        &self,
        grads: &mut Grads,
        [mut dq, mut dk, mut dv]: [Tensor; 3],
        h: &Tensor,
        saved: &QkvSaved,
        rope: &Rope,
    ) -> Result<Tensor> {
        let heads = [self.attention.heads; 2];
        let mut dh = h.like(h.shape())?;
        match (&self.qkv, saved) {
            (Qkv::Apart([q, k, v]), QkvSaved::Apart([q_saved, k_saved, v_saved])) => {
                rope::backward_pair(&mut dq, &mut dk, &rope.cos, &rope.sin, heads)?;
                let saved = [q_saved, k_saved, v_saved];
                Linear::backward_group([q, k, v], grads, Some(&mut dh), [&dq, &dk, &dv], h, saved)?;
            }
            (Qkv::Fused(layer), QkvSaved::Fused(saved)) => {
                let mut dqkv = h.like(&[h.rows(), layer.outputs()])?;
                rope::backward_split(&mut dqkv, [&mut dq, &mut dk, &mut dv], &rope.cos, &rope.sin, heads)?;
                layer.backward(grads, Some(&mut dh), false, &dqkv, h, saved)?;
            }
            _ => return Err(crate::error::Error::Failure("activations of another block".into())),
        }
        Ok(dh)
    }

    pub(super) fn is_trained(&self) -> bool {
        let qkv = match &self.qkv {
            Qkv::Apart(parts) => parts.iter().any(Linear::is_trained),
            Qkv::Fused(layer) => layer.is_trained(),
        };
        let linears = [&self.out, &self.fc1, &self.fc2];
        qkv || linears.iter().any(|l| l.is_trained()) || self.norm1.is_trained() || self.norm2.is_trained()
    }

    pub(super) fn visit_norms(&mut self, name: &str, names: &Names, f: VisitParam) {
        self.norm1.visit(&format!("{name}.{}", names.norms[0]), f);
        self.norm2.visit(&format!("{name}.{}", names.norms[1]), f);
    }

    pub(super) fn visit_linears(&mut self, name: &str, names: &Names, f: VisitLinear) {
        match (&mut self.qkv, names.qkv) {
            (Qkv::Apart(layers), QkvNames::Apart(parts)) => {
                layers.iter_mut().zip(parts).for_each(|(layer, part)| f(&format!("{name}.{part}"), layer));
            }
            (Qkv::Fused(layer), QkvNames::Fused(part)) => f(&format!("{name}.{part}"), layer),
            // `take` has made the one by the other.
            _ => {}
        }
        f(&format!("{name}.{}", names.out), &mut self.out);
        f(&format!("{name}.mlp.fc1"), &mut self.fc1);
        f(&format!("{name}.mlp.fc2"), &mut self.fc2);
    }
}

/// What the layers of `Qkv` are called.
#[derive(Clone, Copy)]
pub(super) enum QkvNames {
    Apart([&'static str; 3]),
    Fused(&'static str),
}
