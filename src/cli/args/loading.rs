//! Where models run, and how they are loaded.
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::models::image::PixelBounds;
use crate::models::int8::Parts;
use crate::mpa::engine;
use crate::ops::kv_cache::PageType;
use crate::tensor::Backend;

/// Where models run.
#[derive(Args)]
pub struct Compute {
    /// Where models answer and are trained
    #[arg(long, global = true, value_enum, default_value_t = Backend::Auto, display_order = 97)]
    pub backend: Backend,
    /// Which GPU, from 0
    #[arg(long, global = true, value_name = "N", default_value_t = 0, display_order = 98)]
    pub device: usize,
    /// What weights, and on a GPU activations, are stored as: bf16 on a GPU, on a CPU as the checkpoint has them, if not given. (A CPU adds up in f32,
    /// and rounds what it multiplies by bf16 weights to bf16)
    #[arg(long, global = true, value_enum, display_order = 99)]
    pub dtype: Option<FloatType>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    Bf16,
    F32,
}

/// How a model is loaded.
#[derive(Args)]
pub struct Loading {
    /// Compute in int8, quantising the model while it is loaded: text (the blocks of the text tower), text+head, or all (the vision tower too). A
    /// folder of `mpa quantize` needs no such option
    #[arg(long, value_name = "PARTS", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    pub int8: Option<Parts>,
    #[command(flatten)]
    pub pixels: Pixels,
    /// How the cache keeps keys and values: as the activations are, or in int8, half of bf16's bytes
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = PageType::Float)]
    pub kv_cache: PageType,
}

impl Loading {
    pub fn get(&self) -> engine::Loading {
        engine::Loading { int8: self.int8, pixels: self.pixels.bounds(), kv_cache: self.kv_cache }
    }
}

/// How large pictures are made where the family leaves them whole (Qwen2-VL).
#[derive(Args)]
pub struct Pixels {
    /// Make pictures have at least so many pixels (Qwen2-VL; as the checkpoint says, if not given)
    #[arg(long, value_name = "N")]
    pub min_pixels: Option<usize>,
    /// Make pictures have at most so many pixels (Qwen2-VL; the paper: 401408, which is 512 tokens)
    #[arg(long, value_name = "N")]
    pub max_pixels: Option<usize>,
}

impl Pixels {
    pub fn bounds(&self) -> PixelBounds {
        PixelBounds { min_pixels: self.min_pixels, max_pixels: self.max_pixels }
    }
}
