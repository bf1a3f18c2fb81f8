//! config.json and generation_config.json of a checkpoint folder.
//! A missing key has the default of transformers' Idefics3Config, Idefics3VisionConfig and LlamaConfig; an unknown key is ignored;
//! a key that asks for something this code does not compute is an error.
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Values of model_type that are read.
const FAMILIES: [&str; 2] = ["idefics3", "smolvlm"];

/// Far above any published model, and low enough that no product of two sizes overflows.
const MAX_WIDTH: usize = 1 << 18;
const MAX_LAYERS: usize = 1 << 10;
const MAX_VOCAB: usize = 1 << 22;
const MAX_SIDE: usize = 1 << 13;
const MAX_POSITIONS: usize = 1 << 24;

/// Bytes of the largest JSON configuration that is read; published ones have a few kilobytes.
const MAX_JSON: u64 = 4 << 20;

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

impl VisionConfig {
    /// Patches along a side of a tile. Pixels beyond the last whole patch are not seen (SmolVLM-2.2B: 384 = 27 * 14 + 6).
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

impl Config {
    /// Reads `folder/config.json` (SmolVLM / Idefics3) and, if present, `folder/generation_config.json`.
    pub fn read(folder: &Path) -> Result<Config> {
        let path = folder.join("config.json");
        let root = read_json(&path)?;
        let top = Section { path: &path, prefix: String::new(), keys: Some(&root) };
        match top.get("model_type").and_then(Value::as_str) {
            Some(family) if FAMILIES.contains(&family) => {}
            _ => return Err(top.wrong("model_type", format!("one of {}", FAMILIES.join(", ")))),
        }
        let text_section = top.section("text_config")?;
        let vision = VisionConfig::from_section(&top.section("vision_config")?)?;
        let text = TextConfig::from_section(&text_section, &top)?;
        let scale_factor = top.size("scale_factor", Some(2), 1..=MAX_SIDE)?;
        if !vision.patches_per_side().is_multiple_of(scale_factor) {
            let expected = format!("a divisor of the {} patches of a tile's side", vision.patches_per_side());
            return Err(top.wrong("scale_factor", expected));
        }
        let image_token_id = top.size("image_token_id", Some(128_257), 0..=text.vocab_size - 1)? as u32;
        let eos_token_ids = eos_token_ids(folder, &top, &text_section, text.vocab_size)?;
        Ok(Config { text, vision, image_token_id, scale_factor, eos_token_ids })
    }

    /// Picture tokens of one tile.
    pub fn tile_tokens(&self) -> usize {
        (self.vision.patches_per_side() / self.scale_factor).pow(2)
    }
}

impl TextConfig {
    fn from_section(text: &Section, top: &Section) -> Result<TextConfig> {
        text.only("model_type", &["llama"])?;
        text.only("hidden_act", &["silu"])?;
        for key in ["attention_bias", "mlp_bias", "qk_layer_norms"] {
            if text.flag(key)?.unwrap_or(false) {
                return Err(text.wrong(key, "false"));
            }
        }
        if text.get("rope_scaling").is_some() {
            return Err(text.wrong("rope_scaling", "null"));
        }
        let rope = text.section("rope_parameters")?;
        rope.only("rope_type", &["default"])?;
        let rope_theta = match rope.get("rope_theta") {
            Some(_) => rope.positive("rope_theta", 10_000.0)?,
            None => text.positive("rope_theta", 10_000.0)?,
        };
        let hidden_size = text.size("hidden_size", Some(4096), 1..=MAX_WIDTH)?;
        let heads = text.size("num_attention_heads", Some(32), 1..=MAX_WIDTH)?;
        let kv_heads = text.size("num_key_value_heads", Some(heads), 1..=heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(
                text.wrong("num_key_value_heads", format!("a divisor of num_attention_heads = {heads}"))
            );
        }
        let head_size = match text.get("head_dim") {
            Some(_) => text.size("head_dim", None, 1..=MAX_WIDTH)?,
            None => text.share("hidden_size", hidden_size, heads)?,
        };
        if !head_size.is_multiple_of(2) || head_size * heads > MAX_WIDTH {
            let expected =
                format!("an even head size of at most {MAX_WIDTH} / {heads} heads (it is {head_size})");
            return Err(text.wrong("head_dim", expected));
        }
        let tie_word_embeddings = match top.flag("tie_word_embeddings")? {
            Some(tied) => tied,
            None => text.flag("tie_word_embeddings")?.unwrap_or(false),
        };
        Ok(TextConfig {
            hidden_size,
            intermediate_size: text.size("intermediate_size", Some(11_008), 1..=MAX_WIDTH)?,
            layers: text.size("num_hidden_layers", Some(32), 1..=MAX_LAYERS)?,
            heads,
            kv_heads,
            head_size,
            // Idefics3Config's own default for the whole section differs from LlamaConfig's.
            rms_norm_eps: text.positive("rms_norm_eps", if text.keys.is_none() { 1e-5 } else { 1e-6 })?,
            rope_theta,
            max_positions: text.size("max_position_embeddings", Some(2048), 1..=MAX_POSITIONS)?,
            vocab_size: text.size("vocab_size", Some(32_000), 1..=MAX_VOCAB)?,
            tie_word_embeddings,
        })
    }
}

impl VisionConfig {
    fn from_section(vision: &Section) -> Result<VisionConfig> {
        vision.only("hidden_act", &["gelu_pytorch_tanh"])?;
        vision.size("num_channels", Some(3), 3..=3)?;
        let hidden_size = vision.size("hidden_size", Some(1152), 1..=MAX_WIDTH)?;
        let heads = vision.size("num_attention_heads", Some(16), 1..=MAX_WIDTH)?;
        vision.share("hidden_size", hidden_size, heads)?;
        let image_size = vision.size("image_size", Some(224), 1..=MAX_SIDE)?;
        Ok(VisionConfig {
            hidden_size,
            intermediate_size: vision.size("intermediate_size", Some(3072), 1..=MAX_WIDTH)?,
            layers: vision.size("num_hidden_layers", Some(12), 1..=MAX_LAYERS)?,
            heads,
            image_size,
            patch_size: vision.size("patch_size", Some(32), 1..=image_size)?,
            layer_norm_eps: vision.positive("layer_norm_eps", 1e-6)?,
        })
    }
}

/// The first of generation_config.json, config.json, its text_config that names end tokens; else LlamaConfig's default, 2.
fn eos_token_ids(folder: &Path, top: &Section, text: &Section, vocab_size: usize) -> Result<Vec<u32>> {
    let path = folder.join("generation_config.json");
    let generation = if path.exists() { read_json(&path)? } else { Map::new() };
    let generation = Section { path: &path, prefix: String::new(), keys: Some(&generation) };
    for section in [&generation, top, text] {
        if let Some(value) = section.get("eos_token_id") {
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let ids: Option<Vec<u32>> = values
                .iter()
                .map(|v| v.as_u64().filter(|&id| id < vocab_size as u64).map(|id| id as u32))
                .collect();
            let expected = || format!("a token id or a list of them, each below vocab_size = {vocab_size}");
            return ids.ok_or_else(|| section.wrong("eos_token_id", expected()));
        }
    }
    Ok(vec![2])
}

/// The object in a JSON file.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let text = read_text(path, MAX_JSON)?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(keys)) => Ok(keys),
        Ok(_) => Err(Error::input(path, "expected a JSON object")),
        Err(e) => Err(Error::input(path, format!("not valid JSON: {e}"))),
    }
}

/// A text file of at most `limit` bytes.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        return Err(Error::input(path, "expected a file"));
    }
    if meta.len() > limit {
        return Err(Error::input(path, format!("expected at most {limit} bytes, got {}", meta.len())));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes)
        .map_err(|e| Error::input(path, format!("expected UTF-8 text: {}", e.utf8_error())))
}

/// An object inside a configuration file, and how to speak of its keys.
struct Section<'a> {
    path: &'a Path,
    /// "text_config." before the keys of that section.
    prefix: String,
    /// None: there is no such object in the file.
    keys: Option<&'a Map<String, Value>>,
}

impl<'a> Section<'a> {
    /// The value of a key that is present and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys?.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, expected: impl Display) -> Error {
        let got = match self.keys.and_then(|keys| keys.get(key)) {
            Some(value) => shortened(value),
            None => "nothing".to_string(),
        };
        Error::input(self.path, format!("{}{key}: expected {expected}, got {got}", self.prefix))
    }

    fn section(&self, key: &str) -> Result<Section<'a>> {
        let keys = match self.get(key) {
            None => None,
            Some(Value::Object(keys)) => Some(keys),
            Some(_) => return Err(self.wrong(key, "an object")),
        };
        Ok(Section { path: self.path, prefix: format!("{}{key}.", self.prefix), keys })
    }

    fn size(&self, key: &str, default: Option<usize>, range: RangeInclusive<usize>) -> Result<usize> {
        let value = match self.get(key) {
            None => default,
            Some(value) => value.as_u64().and_then(|v| usize::try_from(v).ok()),
        };
        value.filter(|v| range.contains(v)).ok_or_else(|| {
            let expected = format!("a whole number from {} to {}", range.start(), range.end());
            match (self.get(key), default) {
                (None, Some(default)) => self.wrong(key, format!("{expected} (the default is {default})")),
                _ => self.wrong(key, expected),
            }
        })
    }

    fn positive(&self, key: &str, default: f64) -> Result<f32> {
        let value = self.get(key).map_or(Some(default), Value::as_f64).map(|v| v as f32);
        value.filter(|v| v.is_finite() && *v > 0.0).ok_or_else(|| self.wrong(key, "a positive number"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A missing key, or one of the values that are supported.
    fn only(&self, key: &str, supported: &[&str]) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(value) if value.as_str().is_some_and(|v| supported.contains(&v)) => Ok(()),
            Some(_) => Err(self.wrong(key, supported.join(" or "))),
        }
    }

    /// `width / heads`, if it is whole.
    fn share(&self, key: &str, width: usize, heads: usize) -> Result<usize> {
        if width.is_multiple_of(heads) {
            Ok(width / heads)
        } else {
            Err(self.wrong(key, format!("a multiple of num_attention_heads = {heads}")))
        }
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
