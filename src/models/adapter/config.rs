//! PEFT's adapter_config.json as it is read: rank and scale of every module; what is not supported is refused by its key.
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use regex::Regex;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::scale;
use crate::error::{Error, Result};
use crate::models::config::{MAX_JSON, read_text};

/// The keys of adapter_config.json that change what an adapter computes.
#[derive(Deserialize)]
pub(super) struct ConfigFile {
    peft_type: String,
    r: usize,
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    pub(super) lora_dropout: f32,
    #[serde(default)]
    rank_pattern: Patterns<usize>,
    #[serde(default)]
    alpha_pattern: Patterns<f32>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// In the order of the file: the first that fits counts.
struct Patterns<T>(Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Patterns(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of patterns")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Patterns<T>, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Patterns(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Ways to begin training that take something off the model's own weights, so that the adapter is right on top of what is left alone.
const CHANGING_STARTS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl ConfigFile {
    pub(super) fn read(path: &Path) -> Result<ConfigFile> {
        // Not by way of a map, which would sort the patterns.
        let text = read_text(path, MAX_JSON)?;
        let config: ConfigFile =
            serde_json::from_str(&text).map_err(|e| Error::input(path, e.to_string()))?;
        if config.peft_type != "LORA" {
            return Err(Error::input(
                path,
                format!("key peft_type: expected \"LORA\", got {:?}", config.peft_type),
            ));
        }
        for key in [
            "use_dora",
            "use_qalora",
            "use_bdlora",
            "fan_in_fan_out",
            "lora_bias",
            "modules_to_save",
            "target_parameters",
            "layer_replication",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "arrow_config",
        ] {
            let value = config.others.get(key).unwrap_or(&Value::Null);
            let off = matches!(value, Value::Null | Value::Bool(false))
                || value.as_array().is_some_and(Vec::is_empty);
            if !off {
                return Err(Error::input(
                    path,
                    format!("key {key}: not supported, expected null or false, got {value}"),
                ));
            }
        }
        if let Some(start) = config.others.get("init_lora_weights").and_then(Value::as_str)
            && CHANGING_STARTS.iter().any(|changing| start.to_lowercase().starts_with(changing))
        {
            let what = format!(
                "key init_lora_weights: {start:?} changes the model's own weights, which is not supported: save the adapter with peft's \
                 path_initial_model_for_weight_conversion"
            );
            return Err(Error::input(path, what));
        }
        match config.others.get("bias").and_then(Value::as_str) {
            None | Some("none") => Ok(config),
            Some(other) => Err(Error::input(path, format!("key bias: expected \"none\", got {other:?}"))),
        }
    }

    /// Scale and rank of one module; patterns are regexes matched at the end of the name, after a dot. `names`: the one that the adapter's file has,
    /// which its patterns were made for, then the other.
    pub(super) fn of(&self, path: &Path, names: [&str; 2]) -> Result<(f32, usize)> {
        let rank = pattern(path, &self.rank_pattern, names)?.unwrap_or(self.r);
        let alpha = pattern(path, &self.alpha_pattern, names)?.unwrap_or(self.lora_alpha);
        if rank == 0 {
            return Err(Error::input(path, "key r: expected 1 or more, got 0"));
        }
        Ok((scale(alpha, rank, self.use_rslora), rank))
    }
}

fn pattern<T: Copy>(path: &Path, patterns: &Patterns<T>, names: [&str; 2]) -> Result<Option<T>> {
    for name in names {
        for (pattern, value) in &patterns.0 {
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
                .map_err(|e| Error::input(path, format!("pattern {pattern:?}: {e}")))?;
            if regex.is_match(name) {
                return Ok(Some(*value));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_of_the_name_in_the_file() {
        let text = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": "x",
            "alpha_pattern": {"model.layers.0.q_proj": 16, "model.language_model.layers.0.q_proj": 24, "v_proj": 32}}"#;
        let config: ConfigFile = serde_json::from_str(text).unwrap();
        let scale = |names| config.of(Path::new("c"), names).unwrap().0;
        let (new, older) = ("model.language_model.layers.0.q_proj", "model.layers.0.q_proj");
        assert_eq!([scale([new, older]), scale([older, new])], [3.0, 2.0]);
        let other = ["model.language_model.layers.1.v_proj", "model.layers.1.v_proj"];
        assert_eq!([scale(other), scale(["o_proj"; 2])], [4.0, 1.0]);
    }
}
