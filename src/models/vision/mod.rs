//! The vision tower, a ViT encoder: pictures in, one feature row per patch out. SigLIP's for Idefics3 and SmolVLM (tiles of one size, learned
//! positions), Qwen2-VL's (pictures of any size, 2-D rotary positions, patches in squares that are merged afterwards).
//! Each forward returns what its backward needs; inference drops it.

mod block;

use block::{Block, BlockSaved, QkvNames};

use crate::error::{Error, Result};
use crate::models::config::VisionConfig;
use crate::models::family::Family;
use crate::models::linear::{Kept, Pass, VisitLinear};
use crate::models::norm::LayerNorm;
use crate::models::param::{Grads, Param, VisitParam};
use crate::models::rope::Rope;
use crate::models::weights::Weights;
use crate::ops::attention::{Span, Spans};
use crate::ops::patch_embed::{Pixels, Projection};
use crate::ops::{add, patch_embed, rope};
use crate::quant::Group;
use crate::tensor::{Device, Tensor};

/// Base of the 2-D rotary's frequencies.
const ROPE_THETA: f32 = 10_000.0;

#[derive(Clone)]
pub struct Vision {
    names: &'static Names,
    patch_weight: Param,             // [C, 3, S, S]; without tiles [C, 3, frames, S, S]
    learned: Option<(Param, Param)>, // the patch embedding's bias [C], positions [P, C] of a tile
    blocks: Vec<Block>,
    post_norm: Option<LayerNorm>,
    patch_size: usize, // S
    /// Side of the squares in whose order patches come: 1 where they come row by row.
    square: usize,
    /// Of a head that is rotated; 0 where positions are learned.
    rotated: usize,
}

/// What a family calls the modules.
pub(super) struct Names {
    root: &'static str,
    patch: &'static str,
    position: &'static str,
    blocks: &'static str,
    norms: [&'static str; 2],
    qkv: QkvNames,
    out: &'static str,
    post_norm: &'static str,
}

const SIGLIP: Names = Names {
    root: "model.vision_model",
    patch: "embeddings.patch_embedding",
    position: "embeddings.position_embedding",
    blocks: "encoder.layers",
    norms: ["layer_norm1", "layer_norm2"],
    qkv: QkvNames::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    out: "self_attn.out_proj",
    post_norm: "post_layernorm",
};

const QWEN2_VL: Names = Names {
    root: "model.visual",
    patch: "patch_embed.proj",
    position: "",
    blocks: "blocks",
    norms: ["norm1", "norm2"],
    qkv: QkvNames::Fused("attn.qkv"),
    out: "attn.proj",
    post_norm: "",
};

/// Activations of one pass over T patches.
pub struct VisionSaved {
    patches: Option<Tensor>, // [T, 3*frames*S*S], where the embedding is trained
    /// Patch and position embedding, [T, C].
    pub embeddings: Tensor,
    blocks: Vec<Kept<BlockSaved>>,
    last: Tensor, // input of the post norm
    rope: Rope,
    spans: Spans,
    pass: Pass,
}

impl Vision {
    pub fn take(weights: &mut Weights, c: &VisionConfig, family: Family) -> Self {
        let names = if family == Family::Qwen2Vl { &QWEN2_VL } else { &SIGLIP };
        let (width, side) = (c.hidden_size, c.patch_size);
        let patch = format!("{}.{}", names.root, names.patch);
        let mut shape = vec![width, 3, side, side];
        if c.tile.is_none() {
            shape.insert(2, c.frames);
        }
        let patch_weight = Param::take(weights, &format!("{patch}.weight"), &shape);
        let learned = c.tile.map(|tile| {
            let position = format!("{}.{}.weight", names.root, names.position);
            let bias = Param::take(weights, &format!("{patch}.bias"), &[width]);
            (bias, Param::take(weights, &position, &[(tile / side).pow(2), width]))
        });
        let block = |i| format!("{}.{}.{i}", names.root, names.blocks);
        Vision {
            names,
            patch_weight,
            blocks: (0..c.layers).map(|i| Block::take(weights, &block(i), names, c)).collect(),
            post_norm: learned.as_ref().map(|_| {
                let name = format!("{}.{}", names.root, names.post_norm);
                LayerNorm::take(weights, &name, width, c.layer_norm_eps)
            }),
            patch_size: side,
            square: if learned.is_some() { 1 } else { c.merge },
            rotated: if learned.is_some() { 0 } else { width / c.heads },
            learned,
        }
    }

    /// Patches of each picture, or tile, of these.
    fn grid(&self, pixels: &Pixels) -> Result<[usize; 2]> {
        match *pixels.values.shape() {
            [_, height, width, 3] => Ok([height / self.patch_size, width / self.patch_size]),
            ref other => Err(Error::op("vision", "pixels [N, H, W, 3]", format!("{other:?}"))),
        }
    }

    /// Side of a patch in pixels.
    pub fn patch_size(&self) -> usize {
        self.patch_size
    }

    /// Patches of all of them.
    pub fn patches(&self, pixels: &Pixels) -> Result<usize> {
        let [rows, cols] = self.grid(pixels)?;
        Ok(pixels.count() * rows * cols)
    }

    /// Pictures, wherever they are -> [T, C], the patches of one after those of the other.
    pub fn forward(&self, pictures: &[&Pixels], pass: Pass) -> Result<(Tensor, VisionSaved)> {
        let (embeddings, patches) = self.embed(pictures, pass)?;
        let mut spans = Vec::new();
        let mut places = Vec::new();
        for pixels in pictures {
            let [rows, cols] = self.grid(pixels)?;
            for _ in 0..pixels.count() {
                let (start, len) = (places.len(), rows * cols);
                spans.push(Span { q_start: start, q_len: len, k_start: start, k_len: len });
                places.extend((0..len).map(|i| self.place(i, cols)));
            }
        }
        let spans = Spans::from(spans);
        let rope = Rope::new(rope::table_2d(&places, ROPE_THETA, self.rotated)?, &self.device())?;
        let mut x = embeddings.clone();
        let mut blocks = Vec::with_capacity(self.blocks.len());
        // A block's result is the sum of x and the block's x2, added up in the next one's norm.
        let mut last: Option<BlockSaved> = None;
        for block in &self.blocks {
            let (y, saved) = block.forward(x, last.as_ref().map(|s| &s.x2), &rope, &spans, pass)?;
            x = y;
            blocks.extend(last.replace(saved).and_then(|s| kept(s, pass)));
        }
        if let Some(saved) = last {
            add::forward(&mut x, &saved.x2)?;
            blocks.extend(kept(saved, pass));
        }
        let out = match &self.post_norm {
            Some(norm) => norm.forward(&x)?,
            None => x.clone(),
        };
        Ok((out, VisionSaved { patches, embeddings, blocks, last: x, rope, spans, pass }))
    }

    /// Row and column of a picture's i-th patch.
    fn place(&self, i: usize, cols: usize) -> [u32; 2] {
        let (square, within) = (i / self.square.pow(2), i % self.square.pow(2));
        let across = cols / self.square;
        let row = square / across * self.square + within / self.square;
        let col = square % across * self.square + within % self.square;
        [row as u32, col as u32]
    }

    /// Embeddings [T, C] and, where they are trained, the patches themselves. Pictures of one size that follow one another go together.
    fn embed(&self, pictures: &[&Pixels], pass: Pass) -> Result<(Tensor, Option<Tensor>)> {
        let weight = self.patch_weight.get();
        let (c, device) = (weight.shape()[0], self.device());
        let keep = matches!(pass, Pass::Train { .. }) && self.patch_weight.slot.is_some();
        let (mut embeddings, mut patches) = (Vec::new(), Vec::new());
        for group in pictures.chunk_by(|a, b| a.values.shape()[1..] == b.values.shape()[1..]) {
            let pixels = Pixels::concat(group)?;
            let pixels = pixels.on(&device)?;
            let [rows, cols] = self.grid(&pixels)?;
            let (n, p) = (pixels.count(), rows * cols);
            let mut cut = keep.then(|| weight.like(&[n * p, weight.len() / c])).transpose()?;
            let mut out = weight.like(&[n, p, c])?;
            let projection = Projection {
                weight,
                bias: self.learned.as_ref().map(|(bias, _)| bias.get()),
                position: self.learned.as_ref().map(|(_, position)| position.get()),
                merge: self.square,
            };
            patch_embed::forward(&mut out, cut.as_mut(), &pixels, projection)?;
            embeddings.push(out.reshape(&[n * p, c])?);
            patches.extend(cut);
        }
        let patches = keep.then(|| joined(patches)).transpose()?;
        Ok((joined(embeddings)?, patches))
    }

    pub fn backward(&self, grads: &mut Grads, dy: &Tensor, saved: VisionSaved) -> Result<()> {
        let embed_trained = self.patch_weight.slot.is_some();
        let mut dx = match &self.post_norm {
            Some(norm) => norm.backward(grads, dy, &saved.last)?,
            None => dy.clone(),
        };
        let VisionSaved { patches, blocks, rope, spans, pass, .. } = saved;
        for (i, kept) in blocks.into_iter().enumerate().rev() {
            let below = embed_trained || self.blocks[..i].iter().any(Block::is_trained);
            if !below && !self.blocks[i].is_trained() {
                return Ok(());
            }
            let s = match kept {
                Kept::All(s) => s,
                Kept::Input(x) => self.blocks[i].forward(x, None, &rope, &spans, pass)?.1,
            };
            dx = self.blocks[i].backward(grads, dx, s, &rope, &spans)?;
        }
        match patches {
            Some(patches) => self.embed_backward(grads, dx, &patches),
            None => Ok(()),
        }
    }

    fn embed_backward(&self, grads: &mut Grads, dx: Tensor, patches: &Tensor) -> Result<()> {
        let (rows, c) = (dx.rows(), dx.cols());
        let Some((bias, position)) = &self.learned else {
            let Some(dweight) = grads.of(&self.patch_weight) else { return Ok(()) };
            return patch_embed::backward(dweight, None, &dx.reshape(&[1, rows, c])?, patches);
        };
        let p = position.get().rows();
        let slots = [self.patch_weight.slot, bias.slot, position.slot];
        if let [Some(w), Some(b), Some(p_slot)] = slots
            && let Ok([dw, db, dp]) = grads.tensors.get_disjoint_mut([w, b, p_slot])
        {
            patch_embed::backward(dw, Some((db, dp)), &dx.reshape(&[rows / p, p, c])?, patches)?;
        }
        Ok(())
    }

    pub fn is_trained(&self) -> bool {
        self.patch_weight.slot.is_some()
            || self.post_norm.as_ref().is_some_and(LayerNorm::is_trained)
            || self.blocks.iter().any(Block::is_trained)
    }

    fn device(&self) -> Device {
        self.patch_weight.get().device()
    }

    fn block_name(&self, i: usize) -> String {
        format!("{}.{}.{i}", self.names.root, self.names.blocks)
    }

    /// What can be smoothed: the layers by what they read.
    pub fn groups(&self) -> Vec<Group> {
        let block = |(i, block): (usize, &Block)| {
            block.groups(&format!("{}.{}.{i}", self.names.root, self.names.blocks), self.names)
        };
        self.blocks.iter().enumerate().flat_map(block).collect()
    }

    pub fn visit(&mut self, f: VisitParam) {
        let names = self.names;
        let patch = format!("{}.{}", names.root, names.patch);
        f(&format!("{patch}.weight"), &mut self.patch_weight);
        if let Some((bias, position)) = &mut self.learned {
            f(&format!("{patch}.bias"), bias);
            f(&format!("{}.{}.weight", names.root, names.position), position);
        }
        for i in 0..self.blocks.len() {
            let name = self.block_name(i);
            self.blocks[i].visit_norms(&name, names, f);
        }
        if let Some(norm) = &mut self.post_norm {
            norm.visit(&format!("{}.{}", names.root, names.post_norm), f);
        }
        self.visit_linears(&mut |name, linear| linear.visit(name, f));
    }

    pub fn visit_linears(&mut self, f: VisitLinear) {
        for i in 0..self.blocks.len() {
            let name = self.block_name(i);
            self.blocks[i].visit_linears(&name, self.names, f);
        }
    }
}

/// What the backward goes by; nothing in inference, which needs one block's activations at a time.
fn kept(saved: BlockSaved, pass: Pass) -> Option<Kept<BlockSaved>> {
    match pass {
        Pass::Infer => None,
        Pass::Train { recompute: true, .. } => Some(Kept::Input(saved.x)),
        Pass::Train { .. } => Some(Kept::All(saved)),
    }
}

/// One after the other; the only one as it is.
fn joined(mut parts: Vec<Tensor>) -> Result<Tensor> {
    match (parts.len(), parts.pop()) {
        (1, Some(only)) => Ok(only),
        (_, last) => {
            parts.extend(last);
            Tensor::concat(&parts.iter().collect::<Vec<_>>())
        }
    }
}
