//! The vision tower of Idefics3 / SmolVLM, a SigLIP encoder: tiles in, one feature row per patch out.
//! Each forward returns what its backward needs; inference drops it.

use crate::error::Result;
use crate::models::config::VisionConfig;
use crate::models::linear::{Kept, Linear, LinearSaved, Pass, VisitLinear};
use crate::models::norm::LayerNorm;
use crate::models::param::{Grads, Param, VisitParam};
use crate::models::weights::Weights;
use crate::ops::attention::{Span, Spans};
use crate::ops::patch_embed::{Pixels, Projection};
use crate::ops::{add, attention, gelu, patch_embed};
use crate::tensor::Tensor;

const NAME: &str = "model.vision_model";

pub struct Vision {
    patch_weight: Param, // [C, 3, S, S]
    patch_bias: Param,   // [C]
    position: Param,     // [P, C]
    blocks: Vec<Block>,
    post_norm: LayerNorm,
    patches: usize, // P of one tile
}

struct Block {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    attention: attention::Config,
}

/// Activations of one pass over N tiles.
pub struct VisionSaved {
    patches: Option<Tensor>, // [N*P, 3*S*S], where the embedding is trained
    /// Patch and position embedding, [N*P, C].
    pub embeddings: Tensor,
    blocks: Vec<Kept<BlockSaved>>,
    last: Tensor, // input of the post norm
    spans: Spans,
    pass: Pass,
}

struct BlockSaved {
    x: Tensor, // [N*P, C], as all but lse [N*P, NH] and up, act [N*P, I]
    h1: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn: Tensor,
    lse: Tensor,
    x2: Tensor,
    h2: Tensor,
    up: Tensor,
    act: Tensor,
    linears: [LinearSaved; 6], // q, k, v, out, fc1, fc2
}

impl Vision {
    pub fn take(weights: &mut Weights, c: &VisionConfig) -> Self {
        let (width, side) = (c.hidden_size, c.patch_size);
        let patches = (c.image_size / side).pow(2);
        let embeddings = format!("{NAME}.embeddings");
        Vision {
            patch_weight: Param::take(
                weights,
                &format!("{embeddings}.patch_embedding.weight"),
                &[width, 3, side, side],
            ),
            patch_bias: Param::take(weights, &format!("{embeddings}.patch_embedding.bias"), &[width]),
            position: Param::take(
                weights,
                &format!("{embeddings}.position_embedding.weight"),
                &[patches, width],
            ),
            blocks: (0..c.layers).map(|i| Block::take(weights, &block_name(i), c)).collect(),
            post_norm: LayerNorm::take(weights, &format!("{NAME}.post_layernorm"), width, c.layer_norm_eps),
            patches,
        }
    }

    /// Tiles, wherever they are -> [N*P, C]
    pub fn forward(&self, pixels: &Pixels, pass: Pass) -> Result<(Tensor, VisionSaved)> {
        let weight = self.patch_weight.get();
        let pixels = pixels.on(&weight.device())?;
        let (tiles, p, c) = (pixels.count(), self.patches, weight.shape()[0]);
        let keep = matches!(pass, Pass::Train { .. }) && self.patch_weight.slot.is_some();
        let mut patches = keep.then(|| weight.like(&[tiles * p, weight.len() / c])).transpose()?;
        let mut embeddings = weight.like(&[tiles, p, c])?;
        let projection = Projection {
            weight,
            bias: Some(self.patch_bias.get()),
            position: Some(self.position.get()),
            merge: 1,
        };
        patch_embed::forward(&mut embeddings, patches.as_mut(), &pixels, projection)?;
        let embeddings = embeddings.reshape(&[tiles * p, c])?;
        let spans: Spans =
            (0..tiles).map(|i| Span { q_start: i * p, q_len: p, k_start: i * p, k_len: p }).collect();
        let mut x = embeddings.clone();
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, saved) = block.forward(x, &spans, pass)?;
            x = y;
            // Inference needs no backward: keep one block's activations at a time.
            if matches!(pass, Pass::Train { .. }) {
                blocks.push(if pass.recomputes() { Kept::Input(saved.x) } else { Kept::All(saved) });
            }
        }
        let out = self.post_norm.forward(&x)?;
        Ok((out, VisionSaved { patches, embeddings, blocks, last: x, spans, pass }))
    }

    pub fn backward(&self, grads: &mut Grads, dy: &Tensor, saved: VisionSaved) -> Result<()> {
        let embed_trained = self.patch_weight.slot.is_some();
        let mut dx = self.post_norm.backward(grads, dy, &saved.last)?;
        for (i, kept) in saved.blocks.into_iter().enumerate().rev() {
            let below = embed_trained || self.blocks[..i].iter().any(Block::is_trained);
            if !below && !self.blocks[i].is_trained() {
                return Ok(());
            }
            let s = match kept {
                Kept::All(s) => s,
                Kept::Input(x) => self.blocks[i].forward(x, &saved.spans, saved.pass)?.1,
            };
            dx = self.blocks[i].backward(grads, dx, s, &saved.spans)?;
        }
        let slots = [self.patch_weight.slot, self.patch_bias.slot, self.position.slot];
        if let ([Some(w), Some(b), Some(p)], Some(patches)) = (slots, &saved.patches)
            && let Ok([dw, db, dp]) = grads.tensors.get_disjoint_mut([w, b, p])
        {
            let dy = dx.reshape(&[saved.spans.len(), self.patches, self.position.get().cols()])?;
            patch_embed::backward(dw, db, dp, &dy, patches)?;
        }
        Ok(())
    }

    pub fn is_trained(&self) -> bool {
        self.patch_weight.slot.is_some()
            || self.post_norm.is_trained()
            || self.blocks.iter().any(Block::is_trained)
    }

    pub fn visit(&mut self, f: VisitParam) {
        f(&format!("{NAME}.embeddings.patch_embedding.weight"), &mut self.patch_weight);
        f(&format!("{NAME}.embeddings.patch_embedding.bias"), &mut self.patch_bias);
        f(&format!("{NAME}.embeddings.position_embedding.weight"), &mut self.position);
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let name = block_name(i);
            block.norm1.visit(&format!("{name}.layer_norm1"), f);
            block.norm2.visit(&format!("{name}.layer_norm2"), f);
        }
        self.post_norm.visit(&format!("{NAME}.post_layernorm"), f);
        self.visit_linears(&mut |name, linear| linear.visit(name, f));
    }

    pub fn visit_linears(&mut self, f: VisitLinear) {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let name = block_name(i);
            f(&format!("{name}.self_attn.q_proj"), &mut block.q);
            f(&format!("{name}.self_attn.k_proj"), &mut block.k);
            f(&format!("{name}.self_attn.v_proj"), &mut block.v);
            f(&format!("{name}.self_attn.out_proj"), &mut block.out);
            f(&format!("{name}.mlp.fc1"), &mut block.fc1);
            f(&format!("{name}.mlp.fc2"), &mut block.fc2);
        }
    }
}

fn block_name(i: usize) -> String {
    format!("{NAME}.encoder.layers.{i}")
}

impl Block {
    fn take(weights: &mut Weights, name: &str, c: &VisionConfig) -> Self {
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        let head_size = width / c.heads;
        let mut linear = |part: &str, n, k| Linear::take(weights, &format!("{name}.{part}"), n, k, true);
        let [q, k, v, out] = ["q_proj", "k_proj", "v_proj", "out_proj"]
            .map(|part| linear(&format!("self_attn.{part}"), width, width));
        let (fc1, fc2) = (linear("mlp.fc1", inner, width), linear("mlp.fc2", width, inner));
        Block {
            norm1: LayerNorm::take(weights, &format!("{name}.layer_norm1"), width, c.layer_norm_eps),
            q,
            k,
            v,
            out,
            norm2: LayerNorm::take(weights, &format!("{name}.layer_norm2"), width, c.layer_norm_eps),
            fc1,
            fc2,
            attention: attention::Config {
                heads: c.heads,
                kv_heads: c.heads,
                head_size,
                scale: (head_size as f32).powf(-0.5),
                causal: false,
            },
        }
    }

    fn forward(&self, x: Tensor, spans: &Spans, pass: Pass) -> Result<(Tensor, BlockSaved)> {
        let h1 = self.norm1.forward(&x)?;
        let [(q, q_saved), (k, k_saved), (v, v_saved)] =
            Linear::forward_group([&self.q, &self.k, &self.v], &h1, pass)?;
        let mut attn = x.like(q.shape())?;
        let mut lse = x.like_f32(&[x.rows(), self.attention.heads])?;
        attention::forward(&mut attn, Some(&mut lse), &q, &k, &v, spans, self.attention)?;
        let (mut x2, out_saved) = self.out.forward(&attn, pass)?;
        let h2 = self.norm2.forward_residual(&mut x2, &x)?;

        let (up, fc1_saved) = self.fc1.forward(&h2, pass)?;
        let mut act = x.like(up.shape())?;
        gelu::forward(&mut act, &up, gelu::Kind::Tanh)?;
        let (mut y, fc2_saved) = self.fc2.forward(&act, pass)?;
        add::forward(&mut y, &x2)?;
        let linears = [q_saved, k_saved, v_saved, out_saved, fc1_saved, fc2_saved];
        Ok((y, BlockSaved { x, h1, q, k, v, attn, lse, x2, h2, up, act, linears }))
    }

    fn backward(&self, grads: &mut Grads, dy: Tensor, s: BlockSaved, spans: &Spans) -> Result<Tensor> {
        let [q_saved, k_saved, v_saved, out_saved, fc1_saved, fc2_saved] = &s.linears;
        let mut dact = dy.like(s.act.shape())?;
        self.fc2.backward(grads, Some(&mut dact), false, &dy, &s.act, fc2_saved)?;
        let mut dup = dy.like(s.up.shape())?;
        gelu::backward(&mut dup, &dact, &s.up, gelu::Kind::Tanh)?;
        let mut dh2 = dy.like(s.h2.shape())?;
        self.fc1.backward(grads, Some(&mut dh2), false, &dup, &s.h2, fc1_saved)?;
        let dx2 = self.norm2.backward_residual(grads, &dh2, &s.x2, &dy)?;

        let mut dattn = dy.like(s.attn.shape())?;
        self.out.backward(grads, Some(&mut dattn), false, &dx2, &s.attn, out_saved)?;
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
        let mut dh1 = dy.like(s.h1.shape())?;
        Linear::backward_group(
            [&self.q, &self.k, &self.v],
            grads,
            Some(&mut dh1),
            [&dq, &dk, &dv],
            &s.h1,
            [q_saved, k_saved, v_saved],
        )?;
        self.norm1.backward_residual(grads, &dh1, &s.x, &dx2)
    }

    fn is_trained(&self) -> bool {
        let linears = [&self.q, &self.k, &self.v, &self.out, &self.fc1, &self.fc2];
        linears.iter().any(|l| l.is_trained()) || self.norm1.is_trained() || self.norm2.is_trained()
    }
}
