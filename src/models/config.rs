//! config.json and generation_config.json of a checkpoint folder.
use std::path::Path;

use crate::error::Result;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub text: TextConfig,
    pub vision: VisionConfig,
    pub image_token_id: u32,
    /// Side of the pixel shuffle between vision and text.
    pub scale_factor: usize,
    /// Tokens that end a generation (generation_config.json's eos_token_id, else config.json's).
    pub eos_token_ids: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_size: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    pub max_positions: usize,
    pub vocab_size: usize,
    pub tie_word_embeddings: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub layer_norm_eps: f32,
}

impl Config {
    /// Reads `folder/config.json` (SmolVLM / Idefics3) and, if present, `folder/generation_config.json`.
    pub fn read(folder: &Path) -> Result<Config> {
        todo!()
    }
}
