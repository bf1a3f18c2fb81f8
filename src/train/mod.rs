//! Training: LoRA and full fine-tuning of a `Vlm` with hand-written backward passes.

pub mod fit;
