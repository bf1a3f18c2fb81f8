//! `quantization_config` of config.json, in the form of compressed-tensors (int-quantized, W8A8, dynamic per token): which layers are int8.
use std::path::Path;

use regex::Regex;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::models::config::read_json;
use crate::models::family::{Renames, renamed};

const KEY: &str = "quantization_config";
/// Where a key is not as expected, as a JSON pointer within the section; what is expected there.
const SUPPORTED: [(&str, &str); 11] = [
    ("/quant_method", r#""compressed-tensors""#),
    ("/format", r#""int-quantized""#),
    ("/config_groups/group_0/targets", r#"["Linear"]"#),
    ("/config_groups/group_0/weights/num_bits", "8"),
    ("/config_groups/group_0/weights/type", r#""int""#),
    ("/config_groups/group_0/weights/strategy", r#""channel""#),
    ("/config_groups/group_0/weights/symmetric", "true"),
    ("/config_groups/group_0/input_activations/num_bits", "8"),
    ("/config_groups/group_0/input_activations/strategy", r#""token""#),
    ("/config_groups/group_0/input_activations/symmetric", "true"),
    ("/config_groups/group_0/input_activations/dynamic", "true"),
];

/// All linear layers are int8 but those that are listed.
#[derive(Clone, Debug)]
pub struct Scheme {
    except: Vec<Layers>,
}

#[derive(Clone, Debug)]
enum Layers {
    Named(String),
    Matching(Regex),
}

impl Scheme {
    /// That of a checkpoint folder; `None` if it is not quantised.
    pub fn read(folder: &Path) -> Result<Option<Scheme>> {
        let path = folder.join("config.json");
        let config = read_json(&path)?;
        match config.get(KEY) {
            None | Some(Value::Null) => Ok(None),
            Some(section) => Scheme::parse(section).map(Some).map_err(|what| Error::input(path, what)),
        }
    }

    fn parse(section: &Value) -> Result<Scheme, String> {
        for (pointer, expected) in SUPPORTED {
            let got = section.pointer(pointer).map_or_else(|| "nothing".to_string(), Value::to_string);
            if got != expected {
                let key = pointer.replace('/', ".");
                return Err(format!("{KEY}{key}: expected {expected}, got {got}"));
            }
        }
        let groups = section.get("config_groups").and_then(Value::as_object).map_or(0, serde_json::Map::len);
        if groups != 1 {
            return Err(format!("{KEY}.config_groups: expected one, got {groups}"));
        }
        let except = match section.get("ignore") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => list.iter().map(Layers::parse).collect::<Result<_, _>>()?,
            Some(other) => return Err(format!("{KEY}.ignore: expected a list of layers, got {other}")),
        };
        Ok(Scheme { except })
    }

    /// Whether the layer `name` is int8. Exceptions may have its name in a checkpoint with these renames instead.
    pub fn covers(&self, name: &str, renames: Renames) -> bool {
        let stored = renamed(name, renames);
        !self.except.iter().any(|layers| match layers {
            Layers::Named(one) => one == name || *one == stored,
            Layers::Matching(regex) => regex.is_match(name) || regex.is_match(&stored),
        })
    }
}

impl Layers {
    fn parse(value: &Value) -> Result<Layers, String> {
        let text = value.as_str().ok_or_else(|| format!("{KEY}.ignore: expected names, got {value}"))?;
        let Some(pattern) = text.strip_prefix("re:") else { return Ok(Layers::Named(text.to_string())) };
        // As Python's re.match: from the beginning of the name on.
        let regex = Regex::new(&format!("^(?:{pattern})"));
        regex.map(Layers::Matching).map_err(|e| format!("{KEY}.ignore: {text}: {e}"))
    }
}

/// The section for a model all of whose linear layers are int8 but `except`.
pub(super) fn section(except: &[String]) -> Value {
    let common = json!({"num_bits": 8, "type": "int", "symmetric": true, "group_size": null, "block_structure": null,
        "actorder": null, "observer_kwargs": {}});
    let with = |more: Value| {
        let (mut all, more) = (common.clone(), more);
        if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        all
    };
    json!({
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "kv_cache_scheme": null,
        "ignore": except,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": with(json!({"strategy": "channel", "dynamic": false, "observer": "minmax"})),
                "input_activations": with(json!({"strategy": "token", "dynamic": true, "observer": null})),
                "output_activations": null,
            },
        },
    })
}
