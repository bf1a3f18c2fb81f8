//! Objects inside JSON configuration files, and how to speak of their keys.
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// An object inside a configuration file, and how to speak of its keys.
pub(super) struct Section<'a> {
    pub path: &'a Path,
    /// "text_config." before the keys of that section.
    pub prefix: String,
    /// None: there is no such object in the file.
    pub keys: Option<&'a Map<String, Value>>,
}

impl<'a> Section<'a> {
    /// The value of a key that is present and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys?.get(key).filter(|v| !v.is_null())
    }

    pub fn wrong(&self, key: &str, expected: impl Display) -> Error {
        let got = match self.keys.and_then(|keys| keys.get(key)) {
            Some(value) => shortened(value),
            None => "nothing".to_string(),
        };
        Error::input(self.path, format!("{}{key}: expected {expected}, got {got}", self.prefix))
    }

    /// The same object again.
    pub fn whole(&self) -> Section<'a> {
        Section { path: self.path, prefix: self.prefix.clone(), keys: self.keys }
    }

    pub fn section(&self, key: &str) -> Result<Section<'a>> {
        let keys = match self.get(key) {
            None => None,
            Some(Value::Object(keys)) => Some(keys),
            Some(_) => return Err(self.wrong(key, "an object")),
        };
        Ok(Section { path: self.path, prefix: format!("{}{key}.", self.prefix), keys })
    }

    pub fn size(&self, key: &str, default: Option<usize>, range: RangeInclusive<usize>) -> Result<usize> {
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

    pub fn positive(&self, key: &str, default: f64) -> Result<f32> {
        let value = self.get(key).map_or(Some(default), Value::as_f64).map(|v| v as f32);
        value.filter(|v| v.is_finite() && *v > 0.0).ok_or_else(|| self.wrong(key, "a positive number"))
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A missing key, or false.
    pub fn off(&self, key: &str) -> Result<()> {
        if self.flag(key)?.unwrap_or(false) { Err(self.wrong(key, "false")) } else { Ok(()) }
    }

    /// A missing key, or one of the values that are supported.
    pub fn only(&self, key: &str, supported: &[&str]) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(value) if value.as_str().is_some_and(|v| supported.contains(&v)) => Ok(()),
            Some(_) => Err(self.wrong(key, supported.join(" or "))),
        }
    }

    /// `width / heads`, if it is whole.
    pub fn share(&self, key: &str, width: usize, heads: usize) -> Result<usize> {
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
