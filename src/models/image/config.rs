//! preprocessor_config.json; transformers 5 may write the same object into processor_config.json under `image_processor`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Bounds, Cut, Filter, ImageProcessor, Layout, Target};
use crate::error::{Error, Result};
use crate::models::config::{VisionConfig, read_json};

/// Types that cut pictures into tiles alike, and those that leave them whole. Newer and faster variants add a suffix.
const CUTTING: [&str; 2] = ["Idefics3ImageProcessor", "SmolVLMImageProcessor"];
const WHOLE: [&str; 1] = ["Qwen2VLImageProcessor"];
const SUFFIXES: [&str; 3] = ["", "Fast", "Pil"];

/// Longest side that a setting may ask for, tile or picture: keeps a wrong file from asking for all memory.
const MAX_SIDE: usize = 8192;
const MAX_TILE: usize = 4096;

/// Of the pictures that CLIP was trained on (OPENAI_CLIP_MEAN and _STD).
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

impl ImageProcessor {
    /// Reads the picture settings of a checkpoint folder. A missing key has the default of its processor.
    pub fn read(folder: &Path) -> Result<ImageProcessor> {
        Keys::read(folder)?.processor()
    }

    /// The same, of a model that sees so: what it makes of pictures must be what the model takes.
    pub fn read_for(folder: &Path, vision: &VisionConfig) -> Result<ImageProcessor> {
        let keys = Keys::read(folder)?;
        let processor = keys.processor()?;
        keys.fits(&processor.layout, vision)?;
        Ok(processor)
    }
}

struct Keys {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Keys {
    fn read(folder: &Path) -> Result<Keys> {
        let path = folder.join("processor_config.json");
        if path.exists()
            && let Some(Value::Object(map)) = read_json(&path)?.remove("image_processor")
        {
            return Ok(Keys { path, map });
        }
        let path = folder.join("preprocessor_config.json");
        let map = read_json(&path)?;
        Ok(Keys { path, map })
    }

    /// The sizes are those of config.json.
    fn fits(&self, layout: &Layout, vision: &VisionConfig) -> Result<()> {
        let what = match (layout, vision.tile) {
            (Layout::Tiles(cut), Some(tile)) if cut.tile != tile => {
                format!("max_image_size: expected {tile}, the model's image_size, got {}", cut.tile)
            }
            (Layout::Whole(bounds), None) if bounds.unit != vision.patch_size * vision.merge => {
                let (patch, merge) = (vision.patch_size, vision.merge);
                format!(
                    "patch_size * merge_size: expected the model's {patch} * {merge}, got {}",
                    bounds.unit
                )
            }
            (Layout::Whole(_), Some(_)) => {
                "image_processor_type: expected one that cuts tiles, as this model takes them".into()
            }
            (Layout::Tiles(_), None) => {
                "image_processor_type: expected one that leaves pictures whole, as this model takes them"
                    .into()
            }
            _ => return Ok(()),
        };
        Err(Error::input(&self.path, what))
    }

    fn processor(&self) -> Result<ImageProcessor> {
        let (layout, filter, mean, std) = if self.cuts()? {
            (Layout::Tiles(self.cut()?), Filter::Lanczos, [0.5; 3], [0.5; 3])
        } else {
            (Layout::Whole(self.bounds()?), Filter::Bicubic, CLIP_MEAN, CLIP_STD)
        };
        let scale = if self.flag("do_rescale")? { Some(self.scale()?) } else { None };
        let norm = if self.flag("do_normalize")? {
            let above_zero = |v: f32| v > 0.0;
            Some((self.channels("image_mean", mean, |_| true)?, self.channels("image_std", std, above_zero)?))
        } else {
            None
        };
        Ok(ImageProcessor { layout, filter: self.filter(filter)?, scale, norm })
    }

    /// Whether the processor's type is one that cuts pictures into tiles.
    fn cuts(&self) -> Result<bool> {
        let key = "image_processor_type";
        let is_of = |name: &str, types: &[&str]| {
            types.iter().any(|t| name.strip_prefix(t).is_some_and(|suffix| SUFFIXES.contains(&suffix)))
        };
        let known = || [&CUTTING[..], &WHOLE].concat().join(" or ");
        match self.get(key) {
            Some(Value::String(name)) if is_of(name, &CUTTING) => Ok(true),
            Some(Value::String(name)) if is_of(name, &WHOLE) => Ok(false),
            Some(other) => Err(self.wrong(key, &known(), other)),
            None => Err(Error::input(&self.path, format!("{key} is missing: expected {}", known()))),
        }
    }

    fn cut(&self) -> Result<Cut> {
        let resize_to = if self.flag("do_resize")? { Some(self.target()?) } else { None };
        let tile = match self.get("max_image_size") {
            None => 364,
            Some(size) => self
                .side(size, "max_image_size", "longest_edge", MAX_TILE)?
                .ok_or_else(|| self.wrong("max_image_size", "an object with longest_edge", size))?,
        };
        Ok(Cut { resize_to, tile, split: self.flag("do_image_splitting")? })
    }

    /// `min_pixels` and `max_pixels`; transformers 5 may write them as `size.shortest_edge` and `size.longest_edge`.
    fn bounds(&self) -> Result<Bounds> {
        let none = Value::Null;
        let size = self.get("size").unwrap_or(&none);
        let number = |key: &str, old: &str, default: usize| match self.get(key).or_else(|| size.get(old)) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
                Some(number) => Ok(number),
                None => Err(self.wrong(key, "a number of pixels", value)),
            },
        };
        if !self.flag("do_resize")? {
            return Err(self.wrong("do_resize", "true", &Value::Bool(false)));
        }
        let (patch, merge) = (number("patch_size", "", 14)?, number("merge_size", "", 2)?);
        let unit = patch.checked_mul(merge).filter(|unit| (1..=MAX_TILE).contains(unit));
        let unit = unit.ok_or_else(|| {
            let got = Value::from(format!("{patch} and {merge}"));
            self.wrong("patch_size, merge_size", &format!("a product from 1 to {MAX_TILE}"), &got)
        })?;
        let min = number("min_pixels", "shortest_edge", 56 * 56)?;
        let max = number("max_pixels", "longest_edge", 28 * 28 * 1280)?;
        Bounds::new(unit, min, max)
            .map_err(|what| Error::input(&self.path, format!("min_pixels {min}, max_pixels {max}: {what}")))
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

    fn filter(&self, default: Filter) -> Result<Filter> {
        let key = "resample";
        match self.get(key).map(|v| (v, v.as_u64())) {
            None => Ok(default),
            Some((_, Some(1))) => Ok(Filter::Lanczos),
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
    fn channels(&self, key: &str, default: [f32; 3], valid: fn(f32) -> bool) -> Result<[f32; 3]> {
        let Some(value) = self.get(key) else { return Ok(default) };
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
