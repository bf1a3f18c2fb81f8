//! The config of a run: TOML, every key checked, errors with file, line and key.
use std::fmt::Display;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use crate::error::{Error, Result};
use crate::models;
use crate::models::config::read_text;
use crate::models::image::PixelBounds;
use crate::models::int8::Parts;
use crate::mpa::level::Settings;
use crate::mpa::select::Rule;
use crate::mpa::source::Source;
use crate::mpa::{annotate, predict, prompts};
use crate::ops::kv_cache::PageType;

/// Bytes of the largest config that is read; most of it is the prompts.
const MAX_FILE: u64 = 1 << 20;
/// TOML has no larger numbers: the config that a run folder is started with could not be read again.
pub(super) const MAX_WHOLE: u64 = i64::MAX as u64;
/// Records or samples at a time; what is larger is taken for a slip, and would take all memory.
pub const MAX_BATCH: u64 = 65_536;
/// Questions a picture.
const MAX_SAMPLES: u64 = 1000;

/// Paths in it are relative to its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Decides everything that is drawn at random.
    #[serde(default)]
    pub seed: u64,
    /// The run folder, unless --out says otherwise. Not in the resolved config.
    #[serde(default)]
    pub out: Option<String>,
    pub models: Models,
    pub annotate: Annotate,
    #[serde(default)]
    pub predict: Ask,
    #[serde(default)]
    pub select: Select,
    #[serde(default)]
    pub level: Settings,
    /// Without it there are no scores.
    #[serde(default)]
    pub evaluate: Option<Evaluate>,
}

/// Folders or hub ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    pub teacher: String,
    /// true: the teacher's layers are made int8 while it is loaded; or which: text, text+head, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_int8: Option<Int8>,
    /// How the teacher's cache keeps keys and values: float, int8.
    #[serde(default, skip_serializing_if = "PageType::is_float")]
    pub teacher_kv_cache: PageType,
    pub student: String,
    /// Of both: pixels that a picture is made to have at least and at most, where the family leaves pictures whole (Qwen2-VL).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<usize>,
}

impl Models {
    fn check(&self) -> Result<(), Bad> {
        for (key, name) in [("teacher", &self.teacher), ("student", &self.student)] {
            // It would be the config's own folder.
            Bad::unless(!name.is_empty(), key, "a checkpoint folder or a hub id", "an empty name")?;
        }
        for (key, pixels) in [("min_pixels", self.min_pixels), ("max_pixels", self.max_pixels)] {
            Bad::whole(key, pixels.unwrap_or(0) as u64)?;
        }
        Ok(())
    }

    /// Those that the model in `folder` is held to: none of a model that cuts pictures into tiles.
    pub fn pixels_of(&self, folder: &Path) -> Result<PixelBounds> {
        let pixels = PixelBounds { min_pixels: self.min_pixels, max_pixels: self.max_pixels };
        if pixels == PixelBounds::default() || !folder.join("config.json").exists() {
            return Ok(pixels);
        }
        let vision = models::config::Config::read(folder)?.vision;
        let tiles = vision.is_some_and(|vision| vision.tile.is_some());
        Ok(if tiles { PixelBounds::default() } else { pixels })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false, text, text+head or all")]
pub enum Int8 {
    Whether(bool),
    Which(Parts),
}

impl Int8 {
    pub fn parts(self) -> Option<Parts> {
        match self {
            Int8::Whether(yes) => yes.then(Parts::default),
            Int8::Which(parts) => Some(parts),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Annotate {
    /// A folder of pictures, a JSONL file with `image`, or pictures of a benchmark.
    pub images: Source,
    /// text, chart, knowledge, or a file with the prompt. In the resolved config its text is `prompt`.
    #[serde(default)]
    pub task: Option<String>,
    #[serde(default)]
    pub prompt: Option<String>,
    #[serde(default = "one")]
    pub samples: usize,
    #[serde(default)]
    pub temperature: f64,
    #[serde(default = "whole")]
    pub top_p: f64,
    #[serde(default = "annotation_tokens")]
    pub max_new_tokens: usize,
    #[serde(default = "batch")]
    pub batch: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ask {
    /// `{question}` is replaced.
    pub prompt: String,
    pub max_new_tokens: usize,
    pub batch: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    pub rule: Rule,
    /// Of the rule `margin`, in nats a token.
    pub margin: f64,
}

/// What is not given is as in `[predict]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// JSONL with `question` and `answer` or `answers`, or questions of a benchmark, which are scored by its metric.
    pub questions: Source,
    #[serde(default)]
    pub prompt: Option<String>,
    #[serde(default)]
    pub max_new_tokens: Option<usize>,
    #[serde(default)]
    pub batch: Option<usize>,
}

fn one() -> usize {
    1
}

fn whole() -> f64 {
    1.0
}

/// As the paper's code.
pub fn annotation_tokens() -> usize {
    128
}

pub fn batch() -> usize {
    8
}

impl Default for Ask {
    fn default() -> Self {
        Ask { prompt: prompts::ANSWER.to_string(), max_new_tokens: 32, batch: batch() }
    }
}

impl Default for Select {
    fn default() -> Self {
        Select { rule: Rule::Contains, margin: 0.0 }
    }
}

/// A value outside its range.
#[derive(Clone, Debug, PartialEq)]
pub struct Bad {
    pub key: String,
    pub what: String,
}

impl Bad {
    pub fn unless(good: bool, key: &str, expected: &str, got: impl Display) -> Result<(), Bad> {
        if good {
            return Ok(());
        }
        Err(Bad { key: key.to_string(), what: format!("expected {expected}, got {got}") })
    }

    /// A number from 1 to `most`.
    pub fn count(key: &str, value: usize, most: u64) -> Result<(), Bad> {
        Bad::unless((1..=most).contains(&(value as u64)), key, &format!("1 to {most}"), value)
    }

    /// A number that TOML has.
    pub(super) fn whole(key: &str, value: u64) -> Result<(), Bad> {
        Bad::unless(value <= MAX_WHOLE, key, &format!("0 to {MAX_WHOLE}"), value)
    }

    /// For an option of a command.
    pub fn usage(self) -> Error {
        Error::Usage(format!("option `{}`: {}", self.key, self.what))
    }

    fn within(self, section: &str) -> Bad {
        Bad { key: format!("{section}.{}", self.key), what: self.what }
    }
}

impl annotate::Options {
    pub fn check(&self) -> Result<(), Bad> {
        Bad::unless(!self.prompt.trim_end().is_empty(), "prompt", "a text", "an empty one")?;
        Bad::count("samples", self.samples, MAX_SAMPLES)?;
        Bad::count("max_new_tokens", self.max_new_tokens, MAX_WHOLE)?;
        // Tokens are drawn in f32.
        let (temperature, least_p) = (self.temperature as f32, self.top_p as f32);
        let warm = self.temperature >= 0.0 && temperature.is_finite();
        Bad::unless(warm, "temperature", "0 to 3.4e38", short(self.temperature))?;
        let top_p = least_p > 0.0 && self.top_p <= 1.0;
        Bad::unless(top_p, "top_p", "above 0 (1e-45) and at most 1", short(self.top_p))?;
        let useful = self.samples == 1 || temperature > 0.0;
        let expected = "1 with temperature 0, which always writes the same";
        Bad::unless(useful, "samples", expected, self.samples)
    }
}

impl predict::Options {
    pub fn check(&self) -> Result<(), Bad> {
        let there = self.prompt.contains(prompts::PLACE);
        Bad::unless(there, "prompt", "a text with {question} in it", format!("{:?}", self.prompt))?;
        Bad::count("max_new_tokens", self.max_new_tokens, MAX_WHOLE)
    }
}

impl Config {
    /// Reads and checks a config; `task` becomes `prompt`, and `[evaluate]` is completed from `[predict]`.
    pub fn read(path: &Path) -> Result<Config> {
        let text = read_text(path, MAX_FILE)?;
        let mut config: Config = toml::from_str(&text).map_err(|e| explain(path, &text, &e))?;
        let folder = crate::data::files::folder_of(path);
        config.complete(folder).map_err(|bad| at(path, &text, bad))?;
        config.check().map_err(|bad| at(path, &text, bad))?;
        Ok(config)
    }

    /// The same of a table; paths are relative to `folder`. The error names the key.
    pub fn of(table: toml::Table, folder: &Path) -> Result<Config, String> {
        let mut config: Config =
            table.try_into().map_err(|e: toml::de::Error| e.to_string().trim().to_string())?;
        let wrong = |bad: Bad| format!("`{}`: {}", bad.key, bad.what);
        config.complete(folder).map_err(wrong)?;
        config.check().map_err(wrong)?;
        Ok(config)
    }

    fn complete(&mut self, folder: &Path) -> Result<(), Bad> {
        let annotate = &mut self.annotate;
        match (annotate.task.take(), &annotate.prompt) {
            (Some(task), None) => {
                let prompt = prompts::task(&task, folder);
                let bad = |e: Error| Bad { key: "annotate.task".to_string(), what: e.to_string() };
                annotate.prompt = Some(prompt.map_err(bad)?);
            }
            (None, Some(_)) => {}
            (task, _) => {
                let got = if task.is_some() { "both" } else { "neither" };
                return Bad::unless(false, "annotate.task", "either `task` or `prompt`", got);
            }
        }
        if let Some(evaluate) = &mut self.evaluate {
            evaluate.prompt.get_or_insert_with(|| self.predict.prompt.clone());
            evaluate.max_new_tokens.get_or_insert(self.predict.max_new_tokens);
            evaluate.batch.get_or_insert(self.predict.batch);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Bad> {
        Bad::whole("seed", self.seed)?;
        self.models.check().map_err(|bad| bad.within("models"))?;
        self.annotation().check().map_err(|bad| bad.within("annotate"))?;
        self.prediction().check().map_err(|bad| bad.within("predict"))?;
        self.level.check().map_err(|bad| bad.within("level"))?;
        let margin = self.select.margin;
        Bad::unless(margin.is_finite(), "select.margin", "a number", margin)?;
        self.annotate.images.check("images").map_err(|bad| bad.within("annotate"))?;
        Bad::count("annotate.batch", self.annotate.batch, MAX_BATCH)?;
        Bad::count("predict.batch", self.predict.batch, MAX_BATCH)?;
        let Some((evaluate, ask)) = self.evaluate.as_ref().zip(self.evaluation()) else {
            return Ok(());
        };
        ask.check().map_err(|bad| bad.within("evaluate"))?;
        Bad::count("evaluate.batch", evaluate.batch.unwrap_or_else(batch), MAX_BATCH)?;
        evaluate.questions.check("questions").map_err(|bad| bad.within("evaluate"))
    }

    /// What the annotator is asked.
    pub fn annotation(&self) -> annotate::Options {
        let a = &self.annotate;
        annotate::Options {
            prompt: a.prompt.clone().unwrap_or_default(),
            samples: a.samples,
            temperature: a.temperature,
            top_p: a.top_p,
            max_new_tokens: a.max_new_tokens,
            seed: self.seed,
        }
    }

    /// How teacher and student are asked about the pseudo questions.
    pub fn prediction(&self) -> predict::Options {
        let Ask { prompt, max_new_tokens, .. } = self.predict.clone();
        predict::Options { prompt, max_new_tokens, drafts: true }
    }

    /// How all are asked at the end.
    pub fn evaluation(&self) -> Option<predict::Options> {
        let evaluate = self.evaluate.as_ref()?;
        let base = self.prediction();
        Some(predict::Options {
            prompt: evaluate.prompt.clone().unwrap_or(base.prompt),
            max_new_tokens: evaluate.max_new_tokens.unwrap_or(base.max_new_tokens),
            drafts: false,
        })
    }

    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::Failure(format!("config: {e}")))
    }
}

/// A syntax or type error, with the line it is on.
fn explain(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let Some(span) = error.span() else {
        return Error::input(path, error.message());
    };
    let line = line_at(text, span.start);
    let source = text.lines().nth(line - 1).unwrap_or_default().trim();
    let source: String = source.chars().take(80).collect();
    let place = if source.is_empty() { String::new() } else { format!("`{source}`: ") };
    Error::line(path, line, format!("{place}{}", error.message()))
}

/// For what is found wrong after the config was read.
pub(super) fn wrong(path: &Path, key: &str, what: String) -> Error {
    let text = read_text(path, MAX_FILE).unwrap_or_default();
    at(path, &text, Bad { key: key.to_string(), what })
}

/// The same for a value that is out of range: finds the line of `section.key`, of the section, or none.
fn at(path: &Path, text: &str, bad: Bad) -> Error {
    let what = format!("`{}`: {}", bad.key, bad.what);
    match find(text, &bad.key) {
        Some(offset) => Error::line(path, line_at(text, offset), what),
        None => Error::input(path, what),
    }
}

fn find(text: &str, key: &str) -> Option<usize> {
    let parsed = DeTable::parse(text).ok()?;
    let (mut table, mut found) = (Some(parsed.get_ref()), None);
    for part in key.split('.') {
        let Some((name, value)) = table.and_then(|table| table.get_key_value(part)) else { break };
        (table, found) = (value.get_ref().as_table(), Some(name.span().start));
    }
    found
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// A number in a few characters, however large it is.
pub(super) fn short(x: f64) -> String {
    let text = format!("{x:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_string)
}
