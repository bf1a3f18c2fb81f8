//! The text tower, a Llama decoder: embeddings in, logits out.
//! Each forward returns what its backward needs; inference drops it and keeps keys and values in a cache.

use crate::error::Result;
use crate::models::config::TextConfig;
use crate::models::linear::{Linear, LinearSaved, Pass, VisitLinear};
use crate::models::norm::RmsNorm;
use crate::models::param::{Grads, Param, VisitParam};
use crate::models::weights::Weights;
use crate::ops::attention::Span;
use crate::ops::{add, attention, embedding, linear, rope, swiglu};
use crate::tensor::Tensor;

const NAME: &str = "model.text_model";
const EMBED: &str = "model.text_model.embed_tokens.weight";
const HEAD: &str = "lm_head";

pub struct Text {
    embed: Param, // [V, C]
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// `None`: the embedding is the head.
    head: Option<Linear>,
    rope_theta: f32,
    head_size: usize,
}

struct Block {
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

/// Rotation of each token of a pass, [T, HS/2].
struct Rope {
    cos: Tensor,
    sin: Tensor,
}

/// Activations of one pass over a ragged batch.
pub struct TextSaved {
    blocks: Vec<BlockSaved>,
    rope: Rope,
    spans: Vec<Span>,
}

struct BlockSaved {
    x: Tensor, // [T, C]
    h1: Tensor,
    q: Tensor, // [T, NH*HS], rotated
    k: Tensor, // [T, NKV*HS], rotated
    v: Tensor,
    attn: Tensor, // [T, NH*HS]
    lse: Tensor,  // [T, NH]
    x2: Tensor,   // [T, C]
    h2: Tensor,
    gate: Tensor, // [T, I]
    up: Tensor,
    act: Tensor,
    linears: [LinearSaved; 7], // q, k, v, o, gate, up, down
}

/// Activations of `logits`.
pub struct HeadSaved {
    x: Tensor,
    normed: Tensor,
    linear: Option<LinearSaved>,
}

/// Keys and values of all layers, [rows, NKV*HS] each; who owns which rows is the caller's business.
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    /// Copies `len` rows from `from` to `to` in every layer.
    pub fn copy_rows(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        for (k, v) in &mut self.layers {
            for t in [k, v] {
                let width = t.cols();
                t.f32s_mut()?.copy_within(from * width..(from + len) * width, to * width);
            }
        }
        Ok(())
    }
}

impl Text {
    pub fn take(weights: &mut Weights, c: &TextConfig) -> Self {
        let shape = [c.vocab_size, c.hidden_size];
        let embed = Param::take(weights, EMBED, &shape);
        let blocks = (0..c.layers).map(|i| Block::take(weights, &block_name(i), c)).collect();
        let norm = RmsNorm::take(weights, &format!("{NAME}.norm"), c.hidden_size, c.rms_norm_eps);
        let head_name = format!("{HEAD}.weight");
        let head = if c.tie_word_embeddings {
            // Some tied checkpoints store the head as well; the embedding is what counts.
            if weights.contains(&head_name) {
                weights.take(&head_name, &shape);
            }
            None
        } else {
            Some(Linear::take(weights, HEAD, c.vocab_size, c.hidden_size, false))
        };
        Text { embed, blocks, norm, head, rope_theta: c.rope_theta, head_size: c.head_size }
    }

    /// ids -> [T, C]
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let mut out = self.embed.value.like(&[ids.len(), self.embed.value.cols()]);
        embedding::forward(&mut out, ids, &self.embed.value)?;
        Ok(out)
    }

    /// Adds to the embedding's gradient, if it is trained.
    pub fn embed_backward(&self, grads: &mut Grads, ids: &[u32], dx: &Tensor) -> Result<()> {
        match grads.of(&self.embed) {
            Some(dtable) => embedding::backward(dtable, ids, dx),
            None => Ok(()),
        }
    }

    /// x [T, C] (embeddings) -> [T, C] before the final norm; spans say which rows form a sequence.
    pub fn forward(
        &self,
        x: Tensor,
        positions: &[u32],
        spans: &[Span],
        pass: Pass,
    ) -> Result<(Tensor, TextSaved)> {
        let rope = self.rope(positions)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let mut x = x;
        for block in &self.blocks {
            let (y, saved) = block.forward(x, &rope, spans, pass, None)?;
            x = y;
            blocks.push(saved);
        }
        Ok((x, TextSaved { blocks, rope, spans: spans.to_vec() }))
    }

    /// The same with keys and values appended to a cache: token t's go to cache row `rows[t]`; spans' k_start and k_len are cache rows.
    pub fn forward_cached(
        &self,
        x: Tensor,
        positions: &[u32],
        rows: &[u32],
        spans: &[Span],
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let rope = self.rope(positions)?;
        let mut x = x;
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            let target = CacheTarget { k: &mut layer.0, v: &mut layer.1, rows };
            (x, _) = block.forward(x, &rope, spans, Pass::Infer, Some(target))?;
        }
        Ok(x)
    }

    pub fn cache(&self, rows: usize) -> KvCache {
        let zeros = |b: &Block| self.embed.value.like(&[rows, b.k.outputs()]);
        KvCache { layers: self.blocks.iter().map(|b| (zeros(b), zeros(b))).collect() }
    }

    /// x [M, C] (rows of `forward`'s result) -> logits [M, V]
    pub fn logits(&self, x: Tensor, pass: Pass) -> Result<(Tensor, HeadSaved)> {
        let normed = self.norm.forward(&x)?;
        let (logits, linear) = match &self.head {
            Some(head) => {
                let (logits, saved) = head.forward(&normed, pass)?;
                (logits, Some(saved))
            }
            None => {
                let mut logits = normed.like(&[normed.rows(), self.embed.value.rows()]);
                linear::forward(&mut logits, &normed, &self.embed.value, None)?;
                (logits, None)
            }
        };
        Ok((logits, HeadSaved { x, normed, linear }))
    }

    /// The gradient of `logits`' input.
    pub fn logits_backward(&self, grads: &mut Grads, dlogits: &Tensor, saved: &HeadSaved) -> Result<Tensor> {
        let mut dnormed = dlogits.like(saved.normed.shape());
        match (&self.head, &saved.linear) {
            (Some(head), Some(s)) => {
                head.backward(grads, Some(&mut dnormed), false, dlogits, &saved.normed, s)?;
            }
            _ => {
                linear::backward_input(&mut dnormed, dlogits, &self.embed.value, false)?;
                if let Some(dtable) = grads.of(&self.embed) {
                    linear::backward_weight(dtable, dlogits, &saved.normed)?;
                }
            }
        }
        self.norm.backward(grads, &dnormed, &saved.x)
    }

    /// The gradient of the embeddings if `need_dx`; stops below the lowest trained block otherwise.
    pub fn backward(
        &self,
        grads: &mut Grads,
        dy: Tensor,
        saved: TextSaved,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let need_dx = need_dx || self.embed.slot.is_some();
        let mut dx = dy;
        for (i, s) in saved.blocks.into_iter().enumerate().rev() {
            let need_below = need_dx || self.blocks[..i].iter().any(Block::is_trained);
            if !need_below && !self.blocks[i].is_trained() {
                return Ok(None);
            }
            match self.blocks[i].backward(grads, dx, s, &saved.rope, &saved.spans, need_below)? {
                Some(d) => dx = d,
                None => return Ok(None),
            }
        }
        Ok(need_dx.then_some(dx))
    }

    pub fn visit(&mut self, f: VisitParam) {
        f(EMBED, &mut self.embed);
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let name = block_name(i);
            block.norm1.visit(&format!("{name}.input_layernorm"), f);
            block.norm2.visit(&format!("{name}.post_attention_layernorm"), f);
        }
        self.norm.visit(&format!("{NAME}.norm"), f);
        self.visit_linears(&mut |name, linear| linear.visit(name, f));
    }

    pub fn visit_linears(&mut self, f: VisitLinear) {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let name = block_name(i);
            f(&format!("{name}.self_attn.q_proj"), &mut block.q);
            f(&format!("{name}.self_attn.k_proj"), &mut block.k);
            f(&format!("{name}.self_attn.v_proj"), &mut block.v);
            f(&format!("{name}.self_attn.o_proj"), &mut block.o);
            f(&format!("{name}.mlp.gate_proj"), &mut block.gate);
            f(&format!("{name}.mlp.up_proj"), &mut block.up);
            f(&format!("{name}.mlp.down_proj"), &mut block.down);
        }
        if let Some(head) = &mut self.head {
            f(HEAD, head);
        }
    }

    fn rope(&self, positions: &[u32]) -> Result<Rope> {
        let (cos, sin) = rope::table(positions, self.rope_theta, self.head_size)?;
        Ok(Rope { cos, sin })
    }
}

fn block_name(i: usize) -> String {
    format!("{NAME}.layers.{i}")
}

/// Where a block puts its keys and values when there is a cache.
struct CacheTarget<'a> {
    k: &'a mut Tensor,
    v: &'a mut Tensor,
    rows: &'a [u32],
}

impl Block {
    fn take(weights: &mut Weights, name: &str, c: &TextConfig) -> Self {
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        let (q_width, kv_width) = (c.heads * c.head_size, c.kv_heads * c.head_size);
        let mut linear = |part: &str, n, k| Linear::take(weights, &format!("{name}.{part}"), n, k, false);
        let q = linear("self_attn.q_proj", q_width, width);
        let k = linear("self_attn.k_proj", kv_width, width);
        let v = linear("self_attn.v_proj", kv_width, width);
        let o = linear("self_attn.o_proj", width, q_width);
        let gate = linear("mlp.gate_proj", inner, width);
        let up = linear("mlp.up_proj", inner, width);
        let down = linear("mlp.down_proj", width, inner);
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

    fn forward(
        &self,
        x: Tensor,
        rope: &Rope,
        spans: &[Span],
        pass: Pass,
        cache: Option<CacheTarget>,
    ) -> Result<(Tensor, BlockSaved)> {
        let h1 = self.norm1.forward(&x)?;
        let (mut q, q_saved) = self.q.forward(&h1, pass)?;
        let (mut k, k_saved) = self.k.forward(&h1, pass)?;
        let (v, v_saved) = self.v.forward(&h1, pass)?;
        rope::forward(&mut q, &rope.cos, &rope.sin, self.attention.heads)?;
        rope::forward(&mut k, &rope.cos, &rope.sin, self.attention.kv_heads)?;
        let mut attn = x.like(q.shape());
        let mut lse = x.like(&[x.rows(), self.attention.heads]);
        match cache {
            None => attention::forward(&mut attn, Some(&mut lse), &q, &k, &v, spans, self.attention)?,
            Some(target) => {
                let sources: Vec<u32> = (0..target.rows.len() as u32).collect();
                embedding::splice(target.k, &k, target.rows, &sources)?;
                embedding::splice(target.v, &v, target.rows, &sources)?;
                attention::forward(&mut attn, None, &q, target.k, target.v, spans, self.attention)?;
            }
        }
        let (mut x2, o_saved) = self.o.forward(&attn, pass)?;
        add::forward(&mut x2, &x)?;

        let h2 = self.norm2.forward(&x2)?;
        let (gate, gate_saved) = self.gate.forward(&h2, pass)?;
        let (up, up_saved) = self.up.forward(&h2, pass)?;
        let mut act = x.like(up.shape());
        swiglu::forward(&mut act, &gate, &up)?;
        let (mut y, down_saved) = self.down.forward(&act, pass)?;
        add::forward(&mut y, &x2)?;
        let linears = [q_saved, k_saved, v_saved, o_saved, gate_saved, up_saved, down_saved];
        Ok((y, BlockSaved { x, h1, q, k, v, attn, lse, x2, h2, gate, up, act, linears }))
    }

    /// The gradient of x if `need_dx`.
    fn backward(
        &self,
        grads: &mut Grads,
        dy: Tensor,
        s: BlockSaved,
        rope: &Rope,
        spans: &[Span],
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let [q_saved, k_saved, v_saved, o_saved, gate_saved, up_saved, down_saved] = &s.linears;
        let mut dact = dy.like(s.act.shape());
        self.down.backward(grads, Some(&mut dact), false, &dy, &s.act, down_saved)?;
        let (mut dgate, mut dup) = (dy.like(s.gate.shape()), dy.like(s.up.shape()));
        swiglu::backward(&mut dgate, &mut dup, &dact, &s.gate, &s.up)?;
        let mut dh2 = dy.like(s.h2.shape());
        self.gate.backward(grads, Some(&mut dh2), false, &dgate, &s.h2, gate_saved)?;
        self.up.backward(grads, Some(&mut dh2), true, &dup, &s.h2, up_saved)?;
        let mut dx2 = self.norm2.backward(grads, &dh2, &s.x2)?;
        add::forward(&mut dx2, &dy)?;

        let mut dattn = dy.like(s.attn.shape());
        self.o.backward(grads, Some(&mut dattn), false, &dx2, &s.attn, o_saved)?;
        let (mut dq, mut dk, mut dv) = (dy.like(s.q.shape()), dy.like(s.k.shape()), dy.like(s.v.shape()));
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
        rope::backward(&mut dq, &rope.cos, &rope.sin, self.attention.heads)?;
        rope::backward(&mut dk, &rope.cos, &rope.sin, self.attention.kv_heads)?;
        let mut dh1 = (need_dx || self.norm1.is_trained()).then(|| dy.like(s.h1.shape()));
        self.q.backward(grads, dh1.as_mut(), false, &dq, &s.h1, q_saved)?;
        self.k.backward(grads, dh1.as_mut(), true, &dk, &s.h1, k_saved)?;
        self.v.backward(grads, dh1.as_mut(), true, &dv, &s.h1, v_saved)?;
        let Some(dh1) = dh1 else { return Ok(None) };
        let mut dx = self.norm1.backward(grads, &dh1, &s.x)?;
        add::forward(&mut dx, &dx2)?;
        Ok(need_dx.then_some(dx))
    }

    fn is_trained(&self) -> bool {
        let linears = [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down];
        linears.iter().any(|l| l.is_trained()) || self.norm1.is_trained() || self.norm2.is_trained()
    }
}

impl TextSaved {
    /// The residual stream that enters each block, [T, C]: transformers' hidden_states without the last.
    pub fn hidden_states(&self) -> impl Iterator<Item = &Tensor> {
        self.blocks.iter().map(|b| &b.x)
    }
}

impl HeadSaved {
    /// After the final norm: the last of transformers' hidden_states.
    pub fn normed(&self) -> &Tensor {
        &self.normed
    }
}
