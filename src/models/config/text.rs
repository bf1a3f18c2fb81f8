//! The text tower's part of config.json. Defaults are those of transformers' LlamaConfig and Qwen2VLTextConfig.

use serde_json::Value;

use super::section::Section;
use super::{MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH};
use crate::error::Result;
use crate::models::family::Family;

#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_size: usize,
    /// Queries, keys and values have a bias.
    pub qkv_bias: bool,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    /// M-RoPE: how many frequencies turn by a token's time, height and width.
    pub mrope: Option<[usize; 3]>,
    pub max_positions: usize,
    pub vocab_size: usize,
    pub tie_word_embeddings: bool,
}

/// What is not said.
struct Defaults {
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    /// `None`: as many as heads.
    kv_heads: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: f64,
    max_positions: usize,
    vocab_size: usize,
}

const LLAMA: Defaults = Defaults {
    hidden_size: 4096,
    intermediate_size: 11_008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    max_positions: 2048,
    vocab_size: 32_000,
};

const QWEN2_VL: Defaults = Defaults {
    hidden_size: 8192,
    intermediate_size: 29_568,
    layers: 80,
    heads: 64,
    kv_heads: Some(8),
    rms_norm_eps: 1e-5,
    rope_theta: 1_000_000.0,
    max_positions: 32_768,
    vocab_size: 152_064,
};

impl TextConfig {
    pub(super) fn read(text: &Section, top: &Section, family: Family) -> Result<TextConfig> {
        text.only("hidden_act", &["silu"])?;
        let (qkv_bias, mut default) = match family {
            Family::Qwen2Vl => (true, QWEN2_VL),
            Family::Idefics3 | Family::Llama => (false, LLAMA),
        };
        if family == Family::Qwen2Vl {
            text.only("model_type", &["qwen2_vl", "qwen2_vl_text"])?;
            text.off("use_sliding_window")?;
        } else {
            text.only("model_type", &["llama"])?;
            for key in ["attention_bias", "mlp_bias", "qk_layer_norms"] {
                text.off(key)?;
            }
            if text.keys.is_none() {
                // Idefics3Config's own default for the whole section differs from LlamaConfig's.
                default.rms_norm_eps = 1e-5;
            }
        }
        let hidden_size = text.size("hidden_size", Some(default.hidden_size), 1..=MAX_WIDTH)?;
        let heads = text.size("num_attention_heads", Some(default.heads), 1..=MAX_WIDTH)?;
        let kv_heads =
            text.size("num_key_value_heads", Some(default.kv_heads.unwrap_or(heads)), 1..=heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(
                text.wrong("num_key_value_heads", format!("a divisor of num_attention_heads = {heads}"))
            );
        }
        let head_size = head_size(text, hidden_size, heads)?;
        let tie_word_embeddings = match top.flag("tie_word_embeddings")? {
            // Each of the two ties them (configuration_qwen2_vl.py).
            Some(false) if family == Family::Qwen2Vl => text.flag("tie_word_embeddings")?.unwrap_or(false),
            Some(tied) => tied,
            None => text.flag("tie_word_embeddings")?.unwrap_or(false),
        };
        Ok(TextConfig {
            hidden_size,
            intermediate_size: text.size(
                "intermediate_size",
                Some(default.intermediate_size),
                1..=MAX_WIDTH,
            )?,
            layers: text.size("num_hidden_layers", Some(default.layers), 1..=MAX_LAYERS)?,
            heads,
            kv_heads,
            head_size,
            qkv_bias,
            rms_norm_eps: text.positive("rms_norm_eps", default.rms_norm_eps)?,
            rope_theta: rope_theta(text, default.rope_theta)?,
            mrope: mrope(text, family, head_size)?,
            max_positions: text.size(
                "max_position_embeddings",
                Some(default.max_positions),
                1..=MAX_POSITIONS,
            )?,
            vocab_size: text.size("vocab_size", Some(default.vocab_size), 1..=MAX_VOCAB)?,
            tie_word_embeddings,
        })
    }
}

fn head_size(text: &Section, hidden_size: usize, heads: usize) -> Result<usize> {
    let head_size = match text.get("head_dim") {
        Some(_) => text.size("head_dim", None, 1..=MAX_WIDTH)?,
        None => text.share("hidden_size", hidden_size, heads)?,
    };
    if head_size.is_multiple_of(2) && head_size * heads <= MAX_WIDTH {
        return Ok(head_size);
    }
    let expected = format!("an even head size of at most {MAX_WIDTH} / {heads} heads (it is {head_size})");
    Err(text.wrong("head_dim", expected))
}

/// transformers 5 has it in rope_parameters.
fn rope_theta(text: &Section, default: f64) -> Result<f32> {
    let rope = text.section("rope_parameters")?;
    rope.only("rope_type", &["default"])?;
    match rope.get("rope_theta") {
        Some(_) => rope.positive("rope_theta", default),
        None => text.positive("rope_theta", default),
    }
}

/// `mrope_section` in rope_scaling, or, from transformers 5 on, in rope_parameters.
fn mrope(text: &Section, family: Family, head_size: usize) -> Result<Option<[usize; 3]>> {
    if family != Family::Qwen2Vl {
        return match text.get("rope_scaling") {
            None => Ok(None),
            Some(_) => Err(text.wrong("rope_scaling", "null")),
        };
    }
    let (scaling, parameters) = (text.section("rope_scaling")?, text.section("rope_parameters")?);
    scaling.only("type", &["mrope", "default"])?;
    scaling.only("rope_type", &["mrope", "default"])?;
    let section = if scaling.get("mrope_section").is_some() { scaling } else { parameters };
    let lengths = section.get("mrope_section").and_then(Value::as_array).and_then(|list| {
        let numbers: Option<Vec<usize>> = list.iter().map(|v| Some(v.as_u64()? as usize)).collect();
        <[usize; 3]>::try_from(numbers?).ok()
    });
    match lengths.filter(|l| l.iter().try_fold(0usize, |n, &x| n.checked_add(x)) == Some(head_size / 2)) {
        Some(lengths) => Ok(Some(lengths)),
        None => {
            let expected = format!("3 lengths that add up to half the head size, {}", head_size / 2);
            Err(section.wrong("mrope_section", expected))
        }
    }
}
