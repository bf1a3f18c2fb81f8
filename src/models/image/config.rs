//! preprocessor_config.json; transformers 5 may write the same object into processor_config.json under `image_processor`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Filter, ImageProcessor, Target};
use crate::error::{Error, Result};
use crate::models::config::read_json;

/// Types that process pictures alike. Newer and faster variants add a suffix.
const TYPES: [&str; 2] = ["Idefics3ImageProcessor", "SmolVLMImageProcessor"];
const SUFFIXES: [&str; 3] = ["", "Fast", "Pil"];

/// Longest side that a setting may ask for, tile or picture: keeps a wrong file from asking for all memory.
const MAX_SIDE: usize = 8192;
const MAX_TILE: usize = 4096;

impl ImageProcessor {
    /// Reads the picture settings of a checkpoint folder. A missing key has the default of Idefics3ImageProcessor.
    pub fn read(folder: &Path) -> Result<ImageProcessor> {
        let processor = folder.join("processor_config.json");
        if processor.exists() {
            let mut nested = read_json(&processor)?;
            if let Some(Value::Object(map)) = nested.remove("image_processor") {
                return Keys { path: processor, map }.processor();
            }
        }
        let path = folder.join("preprocessor_config.json");
        let map = read_json(&path)?;
        Keys { path, map }.processor()
    }
}

struct Keys {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Keys {
    fn processor(&self) -> Result<ImageProcessor> {
        self.check_type()?;
        let resize_to = if self.flag("do_resize")? { Some(self.target()?) } else { None };
        let tile = match self.get("max_image_size") {
            None => 364,
            Some(size) => self
                .side(size, "max_image_size", "longest_edge", MAX_TILE)?
                .ok_or_else(|| self.wrong("max_image_size", "an object with longest_edge", size))?,
        };
        let scale = if self.flag("do_rescale")? { Some(self.scale()?) } else { None };
        let norm = if self.flag("do_normalize")? {
            Some((self.channels("image_mean", |_| true)?, self.channels("image_std", |v| v > 0.0)?))
        } else {
            None
        };
        let split = self.flag("do_image_splitting")?;
        Ok(ImageProcessor { resize_to, tile, split, filter: self.filter()?, scale, norm })
    }

    fn check_type(&self) -> Result<()> {
        let key = "image_processor_type";
        let known = |name: &str| {
            TYPES.iter().any(|t| name.strip_prefix(t).is_some_and(|suffix| SUFFIXES.contains(&suffix)))
        };
        match self.get(key) {
            Some(Value::String(name)) if known(name) => Ok(()),
            Some(other) => Err(self.wrong(key, &TYPES.join(" or "), other)),
            None => {
                Err(Error::input(&self.path, format!("{key} is missing: expected {}", TYPES.join(" or "))))
            }
        }
    }

    fn target(&self) -> Result<Target> {
        let Some(size) = self.get("size") else { return Ok(Target::LongestEdge(4 * 364)) };
        if let Some(edge) = self.side(size, "size", "longest_edge", MAX_SIDE)? {
            return Ok(Target::LongestEdge(edge));
        }
        let sides =
            (self.side(size, "size", "width", MAX_SIDE)?, self.side(size, "size", "height", MAX_SIDE)?);
        match sides {
            (Some(width), Some(height)) => Ok(Target::Exact(width, height)),
            _ => Err(self.wrong("size", "an object with longest_edge, or with height and width", size)),
        }
    }

    fn filter(&self) -> Result<Filter> {
        let key = "resample";
        match self.get(key).map(|v| (v, v.as_u64())) {
            None | Some((_, Some(1))) => Ok(Filter::Lanczos),
            Some((_, Some(2))) => Ok(Filter::Bilinear),
            Some((_, Some(3))) => Ok(Filter::Bicubic),
            Some((other, _)) => Err(self.wrong(key, "1 (Lanczos), 2 (bilinear) or 3 (bicubic)", other)),
        }
    }

    fn scale(&self) -> Result<f64> {
        let key = "rescale_factor";
        match self.get(key).map(|v| (v, v.as_f64())) {
            None => Ok(1.0 / 255.0),
            Some((_, Some(factor))) => Ok(factor),
            Some((other, None)) => Err(self.wrong(key, "a number", other)),
        }
    }

    /// A number for all channels or one for each.
    fn channels(&self, key: &str, valid: fn(f32) -> bool) -> Result<[f32; 3]> {
        let Some(value) = self.get(key) else { return Ok([0.5; 3]) };
        let numbers: Option<Vec<f32>> = match value {
            Value::Array(list) if list.len() == 3 => {
                list.iter().map(|v| v.as_f64().map(|v| v as f32)).collect()
            }
            other => other.as_f64().map(|v| vec![v as f32; 3]),
        };
        match numbers.as_deref() {
            Some(&[r, g, b]) if [r, g, b].iter().all(|&v| v.is_finite() && valid(v)) => Ok([r, g, b]),
            _ => Err(self.wrong(key, "3 numbers (of image_std: above 0)", value)),
        }
    }

    /// `key.name` as a length in pixels, if it is there.
    fn side(&self, size: &Value, key: &str, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = size.get(name).filter(|v| !v.is_null()) else { return Ok(None) };
        match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
            Some(side) if (1..=max).contains(&side) => Ok(Some(side)),
            _ => Err(self.wrong(&format!("{key}.{name}"), &format!("1 to {max}"), value)),
        }
    }

    /// A flag, true if it is not there.
    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(true),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// The value of a key; null is the same as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, expected: &str, got: &Value) -> Error {
        Error::input(&self.path, format!("{key}: expected {expected}, got {}", brief(got)))
    }
}

/// A JSON value, cut short for a message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain("...".chars()).collect() }
}
