//! The text tower, a Llama or Qwen2 decoder: embeddings in, logits out.
//! Each forward returns what its backward needs; inference drops it and keeps keys and values in a cache.

mod block;
mod cache;

use std::sync::Arc;

use block::{Block, BlockSaved};
use cache::Seen;
pub use cache::{KvCache, Table, row};

use crate::error::Result;
use crate::models::config::TextConfig;
use crate::models::linear::{Kept, Linear, LinearSaved, Pass, VisitLinear};
use crate::models::norm::RmsNorm;
use crate::models::param::{Grads, Param, VisitParam};
use crate::models::rope::{Position, Rope};
use crate::models::weights::Weights;
use crate::ops::attention::{PagedSpans, Spans};
use crate::ops::{add, embedding, linear, rope};
use crate::quant::Group;
use crate::tensor::{DType, Device, Gpu, Indices, Tensor};

pub(super) const HEAD: &str = "lm_head";

#[derive(Clone)]
pub struct Text {
    /// The module's name.
    name: &'static str,
    embed: Param, // [V, C]
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// `None`: the embedding is the head.
    head: Option<Linear>,
    rope_theta: f32,
    mrope: Option<[usize; 3]>,
    /// Key/value heads, and the size of a head.
    kv_heads: [usize; 2],
}

/// Activations of one pass over a ragged batch.
pub struct TextSaved {
    blocks: Vec<Kept<BlockSaved>>,
    rope: Rope,
    spans: Arc<Spans>,
    pass: Pass,
}

/// Activations of `logits`.
pub struct HeadSaved {
    x: Tensor,
    normed: Tensor,
    linear: Option<LinearSaved>,
}

impl Text {
    pub fn take(weights: &mut Weights, c: &TextConfig, name: &'static str) -> Self {
        let (shape, head_name) = ([c.vocab_size, c.hidden_size], format!("{HEAD}.weight"));
        let embed_name = embed_name(name);
        // As transformers 5: of two that are tied either may be missing, and a head that is another matrix is not tied.
        if c.tie_word_embeddings && !weights.contains(&embed_name) {
            weights.call(&head_name, &embed_name);
        }
        let tied = c.tie_word_embeddings && !weights.differ(&head_name, &embed_name);
        let embed = Param::take(weights, &embed_name, &shape);
        let blocks = (0..c.layers).map(|i| Block::take(weights, &block_name(name, i), c)).collect();
        let norm = RmsNorm::take(weights, &format!("{name}.norm"), c.hidden_size, c.rms_norm_eps);
        let head = if tied {
            if weights.contains(&head_name) {
                weights.take(&head_name, &shape);
            }
            None
        } else {
            Some(Linear::take(weights, HEAD, c.vocab_size, c.hidden_size, false))
        };
        let (rope_theta, mrope, kv_heads) = (c.rope_theta, c.mrope, [c.kv_heads, c.head_size]);
        Text { name, embed, blocks, norm, head, rope_theta, mrope, kv_heads }
    }

    /// ids -> [T, C]
    pub fn embed(&self, ids: &Indices) -> Result<Tensor> {
        let mut out = self.embed.get().like(&[ids.len(), self.embed.get().cols()])?;
        embedding::forward(&mut out, ids, self.embed.get())?;
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
        positions: &[Position],
        spans: &Arc<Spans>,
        pass: Pass,
    ) -> Result<(Tensor, TextSaved)> {
        let rope = self.rope(positions)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let mut x = x;
        // A block's result is the sum of x and the block's x2, added up in the next one's norm.
        let mut last: Option<BlockSaved> = None;
        for block in &self.blocks {
            let (y, saved) =
                block.forward(x, last.as_ref().map(|s| &s.x2), &rope, Seen::Pass(spans), pass)?;
            x = y;
            blocks.extend(last.replace(saved).map(|s| kept(s, pass)));
        }
        if let Some(saved) = last {
            add::forward(&mut x, &saved.x2)?;
            blocks.push(kept(saved, pass));
        }
        Ok((x, TextSaved { blocks, rope, spans: Arc::clone(spans), pass }))
    }

    /// The same with a cache: the keys and values of token t go to its row `rows[t]`, and the spans are over its pages.
    pub fn forward_cached(
        &self,
        x: Tensor,
        positions: &[Position],
        rows: &Indices,
        spans: &PagedSpans,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        self.blocks_cached(x, &self.rope(positions)?, rows, spans, cache)
    }

    /// The same with the rotation of each token at hand.
    pub(super) fn blocks_cached(
        &self,
        mut x: Tensor,
        rope: &Rope,
        rows: &Indices,
        spans: &PagedSpans,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let mut residual: Option<Tensor> = None;
        for (block, kv) in self.blocks.iter().zip(&mut cache.layers) {
            let seen = Seen::Cached { kv, rows, spans };
            let (y, saved) = block.forward(x, residual.as_ref(), rope, seen, Pass::Infer)?;
            (x, residual) = (y, Some(saved.x2));
        }
        if let Some(residual) = residual {
            add::forward(&mut x, &residual)?;
        }
        Ok(x)
    }

    /// x [M, C] (rows of `forward`'s result) -> logits [M, V]
    pub fn logits(&self, x: Tensor, pass: Pass) -> Result<(Tensor, HeadSaved)> {
        let normed = self.norm.forward(&x)?;
        let (logits, linear) = match &self.head {
            Some(head) => {
                let logits = normed.like_f32(&[normed.rows(), head.outputs()])?;
                let (logits, saved) = head.forward_into(logits, &normed, pass)?;
                (logits, Some(saved))
            }
            None => {
                let mut logits = normed.like_f32(&[normed.rows(), self.embed.get().rows()])?;
                linear::forward(&mut logits, &normed, self.embed.get(), None)?;
                (logits, None)
            }
        };
        Ok((logits, HeadSaved { x, normed, linear }))
    }

    /// The gradient of `logits`' input.
    pub fn logits_backward(&self, grads: &mut Grads, dlogits: &Tensor, saved: &HeadSaved) -> Result<Tensor> {
        let mut dnormed = saved.normed.like(saved.normed.shape())?;
        match (&self.head, &saved.linear) {
            (Some(head), Some(s)) => {
                head.backward(grads, Some(&mut dnormed), false, dlogits, &saved.normed, s)?;
            }
            _ => {
                linear::backward_input(&mut dnormed, dlogits, self.embed.get(), false)?;
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
        let TextSaved { blocks, rope, spans, pass } = saved;
        for (i, kept) in blocks.into_iter().enumerate().rev() {
            let need_below = need_dx || self.blocks[..i].iter().any(Block::is_trained);
            if !need_below && !self.blocks[i].is_trained() {
                return Ok(None);
            }
            let s = match kept {
                Kept::All(s) => s,
                Kept::Input(x) => self.blocks[i].forward(x, None, &rope, Seen::Pass(&spans), pass)?.1,
            };
            match self.blocks[i].backward(grads, dx, s, &rope, &spans, need_below)? {
                Some(d) => dx = d,
                None => return Ok(None),
            }
        }
        Ok(need_dx.then_some(dx))
    }

    pub fn visit(&mut self, f: VisitParam) {
        let name = self.name;
        f(&embed_name(name), &mut self.embed);
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.visit_norms(&block_name(name, i), f);
        }
        self.norm.visit(&format!("{name}.norm"), f);
        self.visit_linears(&mut |name, linear| linear.visit(name, f));
    }

    pub fn visit_linears(&mut self, f: VisitLinear) {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.visit_linears(&block_name(self.name, i), f);
        }
        if let Some(head) = &mut self.head {
            f(HEAD, head);
        }
    }

    /// Whether the embedding is the head.
    pub fn is_tied(&self) -> bool {
        self.head.is_none()
    }

    /// Gives an embedding that is the head a copy to be the head instead.
    pub fn untie(&mut self) {
        let embed = &self.embed;
        self.head.get_or_insert_with(|| Linear::new(embed.value.clone()));
    }

    pub fn is_head(&self, name: &str) -> bool {
        name == HEAD
    }

    pub fn embedding_name(&self) -> String {
        embed_name(self.name)
    }

    /// What can be smoothed: the layers by what they read.
    pub fn groups(&self) -> Vec<Group> {
        let block = |(i, block): (usize, &Block)| block.groups(&block_name(self.name, i));
        let mut groups: Vec<Group> = self.blocks.iter().enumerate().flat_map(block).collect();
        if self.head.is_some() {
            let makers = vec![format!("{}.norm.weight", self.name)];
            groups.push(Group { makers, readers: vec![HEAD.to_string()], shared: (1, 1) });
        }
        groups
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.embed.get().device()
    }

    /// The GPU that holds the weights; `None` for main memory.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.embed.get().gpu()
    }

    pub fn dtype(&self) -> DType {
        self.embed.get().dtype()
    }

    /// The rotation of each token, where the weights are.
    pub(super) fn rope(&self, positions: &[Position]) -> Result<Rope> {
        Rope::new(self.angles(positions)?, &self.device())
    }

    /// Other positions, as many as before, in the same place.
    pub(super) fn set_rope(&self, rope: &mut Rope, positions: &[Position]) -> Result<()> {
        let (cos, sin) = self.angles(positions)?;
        rope.cos.write(&cos)?;
        rope.sin.write(&sin)
    }

    fn angles(&self, positions: &[Position]) -> Result<(Tensor, Tensor)> {
        match self.mrope {
            Some(sections) => rope::table_mrope(positions, sections, self.rope_theta, self.kv_heads[1]),
            None => {
                let line: Vec<u32> = positions.iter().map(|p| p[0]).collect();
                rope::table(&line, self.rope_theta, self.kv_heads[1])
            }
        }
    }
}

fn embed_name(text: &str) -> String {
    format!("{text}.embed_tokens.weight")
}

fn block_name(text: &str, i: usize) -> String {
    format!("{text}.layers.{i}")
}

/// What the backward goes by.
fn kept(saved: BlockSaved, pass: Pass) -> Kept<BlockSaved> {
    if pass.recomputes() { Kept::Input(saved.x) } else { Kept::All(saved) }
}

impl TextSaved {
    /// The residual stream that enters each block, [T, C]: transformers' hidden_states without the last.
    pub fn hidden_states(&self) -> impl Iterator<Item = &Tensor> {
        self.blocks.iter().map(|kept| match kept {
            Kept::All(saved) => &saved.x,
            Kept::Input(x) => x,
        })
    }
}

impl HeadSaved {
    /// After the final norm: the last of transformers' hidden_states.
    pub fn normed(&self) -> &Tensor {
        &self.normed
    }
}
