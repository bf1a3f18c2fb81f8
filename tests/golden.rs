//! Every golden model against what transformers and peft computed from it (tests/golden/README.md), and every further set named by
//! MPA_GOLDEN (colon-separated folders laid out the same). Tolerances are the README's.

#[path = "golden/check.rs"]
mod check;
mod common;
#[path = "golden/geometry.rs"]
mod geometry;
#[path = "golden/lora.rs"]
mod lora;
#[path = "golden/set.rs"]
mod set;

use check::*;
use set::*;

#[test]
fn tokenizer_cases() {
    for_each_model(tokenizer);
}

#[test]
fn prompts_and_pixels_of_all_cases() {
    for_each_model(prompts_and_pixels);
}

#[test]
fn gray_and_alpha_pictures() {
    for_each_model(image_modes);
}

#[test]
fn geometry_of_many_sizes() {
    geometry::check();
}

#[test]
fn vision_tower_and_connector() {
    for_each_model(vision);
}

#[test]
fn logits_and_hidden_states() {
    for_each_model(text);
}

#[test]
fn greedy_tokens_alone_and_in_a_batch() {
    for_each_model(generation);
}

#[test]
fn lora_losses_gradients_and_final_adapter() {
    for_each_model(lora::training);
}

/// The same through the CUDA kernels, run on this CPU.
#[cfg(feature = "host-kernels")]
mod kernels {
    use mpa::tensor::{Device, Gpu};

    use super::*;

    fn device() -> Device {
        Device::Cuda(Gpu::host(1).unwrap())
    }

    #[test]
    fn vision_tower_and_connector() {
        for_each_model_on(&device(), vision);
    }

    #[test]
    fn logits_and_hidden_states() {
        for_each_model_on(&device(), text);
    }

    #[test]
    fn greedy_tokens_alone_and_in_a_batch() {
        for_each_model_on(&device(), generation);
    }

    #[test]
    fn lora_losses_gradients_and_final_adapter() {
        for_each_model_on(&device(), lora::training);
    }

    #[test]
    fn lora_in_bf16() {
        let device = device();
        for_each_model_on(&Device::Cpu, |golden| lora::training_in_bf16(golden, &device));
    }

    #[test]
    fn logits_in_bf16() {
        let device = device();
        for_each_model_on(&Device::Cpu, |golden| bf16(golden, &device));
    }
}
