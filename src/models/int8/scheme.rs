//! `quantization_config` of config.json, in the form of compressed-tensors (int-quantized, W8A8, dynamic per token): which layers are int8.
//! Rotated inputs are an addition: transformers would load such a folder and not rotate. So the format has another name, which earlier versions of this
//! program refuse, and the size stands where compressed-tensors allows no key that it does not know.
use std::path::Path;

use regex::Regex;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::models::config::read_json;
use crate::models::family::{Renames, renamed};
use crate::ops::quantize::MOST_ROTATED;

const KEY: &str = "quantization_config";
/// Where a key is not as expected, as a JSON pointer within the section; what is expected there.
const SUPPORTED: [(&str, &str); 11] = [
    ("/quant_method", r#""compressed-tensors""#),
    ("/config_groups/group_0/targets", r#"["Linear"]"#),
    ("/config_groups/group_0/weights/num_bits", "8"),
    ("/config_groups/group_0/weights/type", r#""int""#),
    ("/config_groups/group_0/weights/strategy", r#""channel""#),
    ("/config_groups/group_0/weights/symmetric", "true"),
    ("/config_groups/group_0/input_activations/num_bits", "8"),
    ("/config_groups/group_0/input_activations/type", r#""int""#),
    ("/config_groups/group_0/input_activations/strategy", r#""token""#),
    ("/config_groups/group_0/input_activations/symmetric", "true"),
    ("/config_groups/group_0/input_activations/dynamic", "true"),
];

/// `format` with inputs as they are, and rotated.
const PLAIN: &str = "int-quantized";
const ROTATED: &str = "int-quantized-hadamard";
/// The largest rotation, where there is one.
const ROTATION: &str = "/config_groups/group_0/input_activations/hadamard";

/// All linear layers are int8 but those that are listed.
#[derive(Clone, Debug)]
pub struct Scheme {
    except: Vec<Layers>,
    /// The largest of a layer's input (ops::quantize); 1: none.
    pub(in crate::models) rotation: usize,
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
                return Err(unlike(pointer, expected, &got));
            }
        }
        for pointer in ["/kv_cache_scheme", "/config_groups/group_0/output_activations"] {
            if let Some(got) = section.pointer(pointer).filter(|got| !got.is_null()) {
                return Err(unlike(pointer, "null", &got.to_string()));
            }
        }
        let (own, whole) = ("/config_groups/group_0/format", section.get("format"));
        if let Some(got) = section.pointer(own).filter(|got| !got.is_null() && Some(*got) != whole) {
            return Err(unlike(own, "that of the whole", &got.to_string()));
        }
        let transforms = section.get("transform_config").filter(|t| !t.is_null() && **t != json!({}));
        if let Some(transforms) = transforms {
            return Err(unlike("/transform_config", "none", &transforms.to_string()));
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
        Ok(Scheme { except, rotation: rotation(section)? })
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

/// As the format says; a size that the kernels have.
fn rotation(section: &Value) -> Result<usize, String> {
    let (format, size) = (section.get("format"), section.pointer(ROTATION));
    let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_string(), Value::to_string);
    match (format.and_then(Value::as_str), size) {
        (Some(PLAIN), None) => Ok(1),
        (Some(PLAIN), size) => Err(unlike(ROTATION, "none in this format", &shown(size))),
        (Some(ROTATED), size) => {
            let number = size.and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
            let number = number.filter(|n| n.is_power_of_two() && (2..=MOST_ROTATED).contains(n));
            let expected = format!("2, 4, 8, .. or {MOST_ROTATED}");
            number.ok_or_else(|| unlike(ROTATION, &expected, &shown(size)))
        }
        _ => Err(unlike("/format", &format!("{PLAIN:?} or {ROTATED:?}"), &shown(format))),
    }
}

fn unlike(pointer: &str, expected: &str, got: &str) -> String {
    format!("{KEY}{}: expected {expected}, got {got}", pointer.replace('/', "."))
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

/// The section for a model all of whose linear layers are int8 but `except`, their inputs rotated up to `rotation`.
pub(super) fn section(except: &[String], rotation: usize) -> Value {
    let common = json!({"num_bits": 8, "type": "int", "symmetric": true, "group_size": null, "block_structure": null,
        "actorder": null, "observer_kwargs": {}});
    let with = |more: Value| {
        let (mut all, more) = (common.clone(), more);
        if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        all
    };
    let mut inputs = with(json!({"strategy": "token", "dynamic": true, "observer": null}));
    if rotation > 1 {
        inputs["hadamard"] = json!(rotation);
    }
    json!({
        "quant_method": "compressed-tensors",
        "format": if rotation > 1 { ROTATED } else { PLAIN },
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "kv_cache_scheme": null,
        "ignore": except,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": with(json!({"strategy": "channel", "dynamic": false, "observer": "minmax"})),
                "input_activations": inputs,
                "output_activations": null,
            },
        },
    })
}
