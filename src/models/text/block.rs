//! One decoder block: RMS norm, attention, RMS norm, SwiGLU MLP, each half with a residual.

use super::cache::Seen;
use crate::error::Result;
use crate::models::config::TextConfig;
use crate::models::linear::{Linear, LinearSaved, Pass, VisitLinear};
use crate::models::norm::RmsNorm;
use crate::models::param::{Grads, VisitParam};
use crate::models::rope::Rope;
use crate::models::weight::QuantizedInput;
use crate::models::weights::Weights;
use crate::ops::attention::Spans;
use crate::ops::{attention, kv_cache, rope, swiglu};
use crate::quant::Group;
use crate::tensor::Tensor;

#[derive(Clone)]
pub(super) struct Block {
    norm1: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    attention: attention::Config,
}

pub(super) struct BlockSaved {
    pub(super) x: Tensor, // [T, C]
    h1: Tensor,
    q: Tensor, // [T, NH*HS], rotated
    k: Tensor, // [T, NKV*HS], rotated
    v: Tensor,
    attn: Tensor,          // [T, NH*HS]
    lse: Tensor,           // [T, NH]
    pub(super) x2: Tensor, // [T, C]
    h2: Tensor,
    gate: Tensor, // [T, I]
    up: Tensor,
    act: Tensor,
    linears: [LinearSaved; 7], // q, k, v, o, gate, up, down
}

impl Block {
    pub(super) fn take(weights: &mut Weights, name: &str, c: &TextConfig) -> Self {
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        let (q_width, kv_width) = (c.heads * c.head_size, c.kv_heads * c.head_size);
        let mut linear =
            |part: &str, n, k, bias| Linear::take(weights, &format!("{name}.{part}"), n, k, bias);
        let q = linear("self_attn.q_proj", q_width, width, c.qkv_bias);
        let k = linear("self_attn.k_proj", kv_width, width, c.qkv_bias);
        let v = linear("self_attn.v_proj", kv_width, width, c.qkv_bias);
        let o = linear("self_attn.o_proj", width, q_width, false);
        let gate = linear("mlp.gate_proj", inner, width, false);
        let up = linear("mlp.up_proj", inner, width, false);
        let down = linear("mlp.down_proj", width, inner, false);
        Block {
            norm1: RmsNorm::take(weights, &format!("{name}.input_layernorm"), width, c.rms_norm_eps),
            q,
            k,
            v,
            o,
            norm2: RmsNorm::take(weights, &format!("{name}.post_attention_layernorm"), width, c.rms_norm_eps),
            gate,
            up,
            down,
            attention: attention::Config {
                heads: c.heads,
                kv_heads: c.kv_heads,
                head_size: c.head_size,
                scale: (c.head_size as f32).powf(-0.5),
                causal: true,
            },
        }
    }

    /// `residual`, where there is one, is first added to x: it is the last block's, whose result is the sum of what it returns and its x2.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        residual: Option<&Tensor>,
        rope: &Rope,
        seen: Seen,
        pass: Pass,
    ) -> Result<(Tensor, BlockSaved)> {
        if matches!(pass, Pass::Infer) && self.reads_int8() {
            return self.forward_int8(x, residual, rope, seen);
        }
        let h1 = match residual {
            Some(residual) => self.norm1.forward_residual(&mut x, residual)?,
            None => self.norm1.forward(&x)?,
        };
        let [(mut q, q_saved), (mut k, k_saved), (v, v_saved)] =
            Linear::forward_group([&self.q, &self.k, &self.v], &h1, pass)?;
        let (attn, lse) = self.attend(&mut q, &mut k, &v, rope, seen)?;
        let (mut x2, o_saved) = self.o.forward(&attn, pass)?;
        let h2 = self.norm2.forward_residual(&mut x2, &x)?;

        let [(gate, gate_saved), (up, up_saved)] = Linear::forward_group([&self.gate, &self.up], &h2, pass)?;
        let mut act = x.like(up.shape())?;
        swiglu::forward(&mut act, &gate, &up)?;
        let (y, down_saved) = self.down.forward(&act, pass)?;
        let linears = [q_saved, k_saved, v_saved, o_saved, gate_saved, up_saved, down_saved];
        Ok((y, BlockSaved { x, h1, q, k, v, attn, lse, x2, h2, gate, up, act, linears }))
    }

    /// Rotates queries and keys; attention, and its log-sum-exps, which are not made over a cache.
    fn attend(
        &self,
        q: &mut Tensor,
        k: &mut Tensor,
        v: &Tensor,
        rope: &Rope,
        seen: Seen,
    ) -> Result<(Tensor, Tensor)> {
        let heads = [self.attention.heads, self.attention.kv_heads];
        rope::forward_pair(q, k, &rope.cos, &rope.sin, heads)?;
        let mut attn = q.like(q.shape())?;
        let mut lse = q.like_f32(&[q.rows(), self.attention.heads])?;
        match seen {
            Seen::Pass(spans) => {
                attention::forward(&mut attn, Some(&mut lse), q, k, v, spans, self.attention)?;
            }
            Seen::Cached { kv: [keys, values], rows, spans } => {
                kv_cache::store(keys, k, rows)?;
                kv_cache::store(values, v, rows)?;
                attention::forward_paged(&mut attn, q, keys, values, spans, self.attention)?;
            }
        }
        Ok((attn, lse))
    }

    fn reads_int8(&self) -> bool {
        Linear::read_int8(&[&self.q, &self.k, &self.v, &self.gate, &self.up, &self.down])
    }

    /// `forward` for inference in int8: norms and the activation quantise what they make. The activations that the backward would need are empty.
    fn forward_int8(
        &self,
        mut x: Tensor,
        residual: Option<&Tensor>,
        rope: &Rope,
        seen: Seen,
    ) -> Result<(Tensor, BlockSaved)> {
        let h1 = self.norm1.forward_quantized(&mut x, residual, &self.q.weight)?;
        let [mut q, mut k, v] = Linear::forward_int8([&self.q, &self.k, &self.v], &h1, &x)?;
        let (attn, lse) = self.attend(&mut q, &mut k, &v, rope, seen)?;
        let (mut x2, _) = self.o.forward(&attn, Pass::Infer)?;
        let h2 = self.norm2.forward_quantized(&mut x2, Some(&x), &self.gate.weight)?;
        let act = QuantizedInput::swiglu(&h2, [&self.gate, &self.up, &self.down].map(|l| &l.weight), &x)?;
        let [y] = Linear::forward_int8([&self.down], &act, &x)?;
        let [h1, h2, gate, up, act] = [(); 5].map(|()| Tensor::zeros(&[0]));
        let linears = [(); 7].map(|()| LinearSaved::default());
        Ok((y, BlockSaved { x, h1, q, k, v, attn, lse, x2, h2, gate, up, act, linears }))
    }

    /// The gradient of x, which is that of the residual as well, if `need_dx`.
    pub(super) fn backward(
        &self,
        grads: &mut Grads,
        dy: Tensor,
        s: BlockSaved,
        rope: &Rope,
        spans: &Spans,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let [q_saved, k_saved, v_saved, o_saved, gate_saved, up_saved, down_saved] = &s.linears;
        let mut dact = dy.like(s.act.shape())?;
        self.down.backward(grads, Some(&mut dact), false, &dy, &s.act, down_saved)?;
        let (mut dgate, mut dup) = (dy.like(s.gate.shape())?, dy.like(s.up.shape())?);
        swiglu::backward(&mut dgate, &mut dup, &dact, &s.gate, &s.up)?;
        let mut dh2 = dy.like(s.h2.shape())?;
        Linear::backward_group(
            [&self.gate, &self.up],
            grads,
            Some(&mut dh2),
            [&dgate, &dup],
            &s.h2,
            [gate_saved, up_saved],
        )?;
        let dx2 = self.norm2.backward_residual(grads, &dh2, &s.x2, &dy)?;

        let mut dattn = dy.like(s.attn.shape())?;
        self.o.backward(grads, Some(&mut dattn), false, &dx2, &s.attn, o_saved)?;
        let (mut dq, mut dk, mut dv) = (dy.like(s.q.shape())?, dy.like(s.k.shape())?, dy.like(s.v.shape())?);
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
        let heads = [self.attention.heads, self.attention.kv_heads];
        rope::backward_pair(&mut dq, &mut dk, &rope.cos, &rope.sin, heads)?;
        let mut dh1 = (need_dx || self.norm1.is_trained()).then(|| dy.like(s.h1.shape())).transpose()?;
        Linear::backward_group(
            [&self.q, &self.k, &self.v],
            grads,
            dh1.as_mut(),
            [&dq, &dk, &dv],
            &s.h1,
            [q_saved, k_saved, v_saved],
        )?;
        let Some(dh1) = dh1 else { return Ok(None) };
        let dx = self.norm1.backward_residual(grads, &dh1, &s.x, &dx2)?;
        Ok(need_dx.then_some(dx))
    }

    pub(super) fn is_trained(&self) -> bool {
        let linears = [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down];
        linears.iter().any(|l| l.is_trained()) || self.norm1.is_trained() || self.norm2.is_trained()
    }

    /// The layers by what they read, and what makes that: the norms; v's rows, of which grouped heads share one; up's, by which gate is multiplied.
    pub(super) fn groups(&self, name: &str) -> Vec<Group> {
        let group = |makers: &[&str], readers: &[&str], shared| {
            let [makers, readers] =
                [makers, readers].map(|parts| parts.iter().map(|part| format!("{name}.{part}")).collect());
            Group { makers, readers, shared }
        };
        let v: &[&str] = match self.v.bias {
            Some(_) => &["self_attn.v_proj.weight", "self_attn.v_proj.bias"],
            None => &["self_attn.v_proj.weight"],
        };
        let shared = (self.attention.heads / self.attention.kv_heads, self.attention.head_size);
        vec![
            group(
                &["input_layernorm.weight"],
                &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                (1, 1),
            ),
            group(v, &["self_attn.o_proj"], shared),
            group(&["post_attention_layernorm.weight"], &["mlp.gate_proj", "mlp.up_proj"], (1, 1)),
            group(&["mlp.up_proj.weight"], &["mlp.down_proj"], (1, 1)),
        ]
    }

    pub(super) fn visit_norms(&mut self, name: &str, f: VisitParam) {
        self.norm1.visit(&format!("{name}.input_layernorm"), f);
        self.norm2.visit(&format!("{name}.post_attention_layernorm"), f);
    }

    pub(super) fn visit_linears(&mut self, name: &str, f: VisitLinear) {
        f(&format!("{name}.self_attn.q_proj"), &mut self.q);
        f(&format!("{name}.self_attn.k_proj"), &mut self.k);
        f(&format!("{name}.self_attn.v_proj"), &mut self.v);
        f(&format!("{name}.self_attn.o_proj"), &mut self.o);
        f(&format!("{name}.mlp.gate_proj"), &mut self.gate);
        f(&format!("{name}.mlp.up_proj"), &mut self.up);
        f(&format!("{name}.mlp.down_proj"), &mut self.down);
    }
}
