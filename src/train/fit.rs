//! The training loop.
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::models::image::Rgb;

/// One supervised turn: the loss is on the answer and the end of the turn.
#[derive(Clone)]
pub struct Sample {
    pub images: Vec<Arc<Rgb>>,
    pub prompt: String,
    pub answer: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    Linear,
    Cosine,
}

/// Hyperparameters of a run; `LoraOptions` beside it say where adapters go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    pub lr: f32,
    pub schedule: Schedule,
    /// Fraction of all steps in which lr rises linearly from 0.
    pub warmup: f32,
    pub weight_decay: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// 0: no clipping.
    pub max_grad_norm: f32,
    pub epochs: f32,
    /// Overrides epochs if set.
    pub steps: Option<usize>,
    /// Samples per optimizer step, spread over `accumulate` micro-batches.
    pub batch: usize,
    pub accumulate: usize,
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: usize,
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions {
            lr: 2e-4,
            schedule: Schedule::Cosine,
            warmup: 0.03,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            max_grad_norm: 1.0,
            epochs: 1.0,
            steps: None,
            batch: 16,
            accumulate: 1,
            seed: 0,
            checkpoint_every: 200,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraOptions {
    pub rank: usize,
    pub alpha: f32,
    pub dropout: f32,
    pub rslora: bool,
    /// Module names matched as suffixes at a dot (`q_proj`), or, if it is the only one and has regex characters, a regex over the whole name (as peft).
    pub targets: Vec<String>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        LoraOptions {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            targets: vec![r".*text_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj".to_string()],
        }
    }
}

/// What a finished run says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FitReport {
    pub steps: usize,
    pub first_loss: f64,
    pub last_loss: f64,
}

/// Called after each optimizer step: (step from 1, steps, loss, lr).
pub type OnStep<'a> = &'a mut dyn FnMut(usize, usize, f64, f64);

/// Levels the model at `model` on `samples` with LoRA; writes `out/adapter_config.json`, `out/adapter_model.safetensors`, `out/loss.jsonl`
/// ({"step", "loss", "lr", "grad_norm"} a line) and, while running, `out/checkpoint/`. Started again on the same `out`, it goes on from the
/// checkpoint and ends with the same bytes; finished already, it returns at once.
pub fn level(
    model: &Path,
    samples: &[Sample],
    lora: &LoraOptions,
    options: &TrainOptions,
    out: &Path,
    on_step: OnStep<'_>,
) -> Result<FitReport> {
    todo!()
}
