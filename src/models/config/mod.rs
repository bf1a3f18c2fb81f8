//! config.json and generation_config.json of a checkpoint folder.
//! A missing key has the default of transformers' configuration of that family; an unknown key is ignored;
//! a key that asks for something this code does not compute is an error.

mod section;
mod text;
mod vision;

use std::path::Path;

use serde_json::{Map, Value};

use section::Section;
pub use text::TextConfig;
pub use vision::VisionConfig;

use crate::error::{Error, Result};
use crate::models::family::Family;

/// Far above any published model, and low enough that no product of two sizes overflows.
const MAX_WIDTH: usize = 1 << 18;
const MAX_LAYERS: usize = 1 << 10;
const MAX_VOCAB: usize = 1 << 22;
const MAX_SIDE: usize = 1 << 13;
const MAX_POSITIONS: usize = 1 << 24;

/// Bytes of the largest JSON configuration that is read; published ones have a few kilobytes.
pub(super) const MAX_JSON: u64 = 4 << 20;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub family: Family,
    pub text: TextConfig,
    /// `None`: the model takes no pictures.
    pub vision: Option<VisionConfig>,
    /// Tokens that end a generation (generation_config.json's eos_token_id, else config.json's).
    pub eos_token_ids: Vec<u32>,
}

impl Config {
    /// Reads `folder/config.json` and, if present, `folder/generation_config.json`.
    pub fn read(folder: &Path) -> Result<Config> {
        let path = folder.join("config.json");
        let root = read_json(&path)?;
        let top = Section { path: &path, prefix: String::new(), keys: Some(&root) };
        let model_type = top.get("model_type").and_then(Value::as_str);
        let Some((_, family)) = Family::TYPES.into_iter().find(|(name, _)| Some(*name) == model_type) else {
            let known: Vec<&str> = Family::TYPES.iter().map(|(name, _)| *name).collect();
            return Err(
                top.wrong("model_type", format!("a family that this binary knows ({})", known.join(", ")))
            );
        };
        // Published Qwen2-VL and Llama have the text tower's keys at the top.
        let nested = family == Family::Idefics3 || top.get("text_config").is_some();
        let text_section = if nested { top.section("text_config")? } else { top.whole() };
        let vision = match family {
            Family::Llama => None,
            _ => Some(top.section("vision_config")?),
        };
        // Its own keys are looked at first: what is wrong with a picture's tile is told before what is wrong with a text's layers.
        let vision = vision.map(|section| VisionConfig::read(&section, &top, family)).transpose()?;
        let text = TextConfig::read(&text_section, &top, family)?;
        if let Some(vision) = &vision {
            vision.check_token(&top, text.vocab_size)?;
        }
        let eos_token_ids = eos_token_ids(folder, &top, &text_section, text.vocab_size)?;
        Ok(Config { family, text, vision, eos_token_ids })
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
