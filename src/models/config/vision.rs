//! The vision tower's part of config.json. Defaults are those of transformers' Idefics3Config, Idefics3VisionConfig, Qwen2VLConfig and
//! Qwen2VLVisionConfig.

use super::section::Section;
use super::{MAX_LAYERS, MAX_SIDE, MAX_WIDTH};
use crate::error::Result;
use crate::models::family::Family;
use crate::ops::gelu::Kind;

#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    /// Side of a tile in pixels (`image_size`); `None`: every picture has a size of its own.
    pub tile: Option<usize>,
    pub patch_size: usize,
    /// Pictures that a patch takes one after the other, as of a film; a still one is taken so many times.
    pub frames: usize,
    /// Patches along a side of the square that becomes a token.
    pub merge: usize,
    pub activation: Kind,
    pub layer_norm_eps: f32,
    pub image_token_id: u32,
}

impl VisionConfig {
    pub(super) fn read(vision: &Section, top: &Section, family: Family) -> Result<VisionConfig> {
        match family {
            Family::Qwen2Vl => VisionConfig::qwen2_vl(vision, top),
            Family::Idefics3 | Family::Llama => VisionConfig::idefics3(vision, top),
        }
    }

    fn idefics3(vision: &Section, top: &Section) -> Result<VisionConfig> {
        vision.only("hidden_act", &["gelu_pytorch_tanh"])?;
        vision.size("num_channels", Some(3), 3..=3)?;
        let hidden_size = vision.size("hidden_size", Some(1152), 1..=MAX_WIDTH)?;
        let heads = vision.size("num_attention_heads", Some(16), 1..=MAX_WIDTH)?;
        vision.share("hidden_size", hidden_size, heads)?;
        let tile = vision.size("image_size", Some(224), 1..=MAX_SIDE)?;
        let patch_size = vision.size("patch_size", Some(32), 1..=tile)?;
        let merge = top.size("scale_factor", Some(2), 1..=MAX_SIDE)?;
        // Pixels beyond the last whole patch are not seen (SmolVLM-2.2B: 384 = 27 * 14 + 6).
        let side = tile / patch_size;
        if !side.is_multiple_of(merge) {
            return Err(
                top.wrong("scale_factor", format!("a divisor of the {side} patches of a tile's side"))
            );
        }
        Ok(VisionConfig {
            hidden_size,
            intermediate_size: vision.size("intermediate_size", Some(3072), 1..=MAX_WIDTH)?,
            layers: vision.size("num_hidden_layers", Some(12), 1..=MAX_LAYERS)?,
            heads,
            tile: Some(tile),
            patch_size,
            frames: 1,
            merge,
            activation: Kind::Tanh,
            layer_norm_eps: vision.positive("layer_norm_eps", 1e-6)?,
            image_token_id: token(top, 128_257)?,
        })
    }

    fn qwen2_vl(vision: &Section, top: &Section) -> Result<VisionConfig> {
        vision.only("hidden_act", &["quick_gelu"])?;
        for key in ["in_channels", "in_chans"] {
            vision.size(key, Some(3), 3..=3)?;
        }
        let hidden_size = vision.size("embed_dim", Some(1280), 1..=MAX_WIDTH)?;
        let heads = vision.size("num_heads", Some(16), 1..=MAX_WIDTH)?;
        let head_size = vision.share("embed_dim", hidden_size, heads)?;
        if !head_size.is_multiple_of(4) {
            let expected = format!("heads of a size that 4 divides (they are {head_size})");
            return Err(vision.wrong("num_heads", expected));
        }
        let ratio = vision.size("mlp_ratio", Some(4), 1..=MAX_WIDTH / hidden_size)?;
        Ok(VisionConfig {
            hidden_size,
            intermediate_size: ratio * hidden_size,
            layers: vision.size("depth", Some(32), 1..=MAX_LAYERS)?,
            heads,
            tile: None,
            patch_size: vision.size("patch_size", Some(14), 1..=MAX_SIDE)?,
            frames: vision.size("temporal_patch_size", Some(2), 1..=MAX_LAYERS)?,
            merge: vision.size("spatial_merge_size", Some(2), 1..=MAX_SIDE)?,
            activation: Kind::Quick,
            layer_norm_eps: 1e-6,
            image_token_id: token(top, 151_655)?,
        })
    }

    /// Patches of a tile; none where pictures have any size.
    pub fn tile_patches(&self) -> usize {
        self.tile.map_or(0, |tile| (tile / self.patch_size).pow(2))
    }

    /// Tokens of a tile.
    pub fn tile_tokens(&self) -> usize {
        self.tile_patches() / self.merge.pow(2)
    }

    /// The picture's token is one of the vocabulary.
    pub(super) fn check_token(&self, top: &Section, vocab_size: usize) -> Result<()> {
        top.size("image_token_id", Some(self.image_token_id as usize), 0..=vocab_size - 1).map(drop)
    }
}

fn token(top: &Section, default: usize) -> Result<u32> {
    Ok(top.size("image_token_id", Some(default), 0..=u32::MAX as usize)? as u32)
}
