//! Chat templates: Jinja as transformers runs it (trimmed blocks, Python's string methods, loop controls, raise_exception,
//! strftime_now, plain tojson).
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use regex::Regex;
use serde::Serialize;
use serde_json::{Map, Value};

use super::super::config::{read_json, read_text};
use super::{Content, Message};
use crate::error::{Error, Result};

/// Bytes of the largest template that is read; long published ones have about 20,000.
const MAX_TEMPLATE: u64 = 1 << 20;

/// What a template may spend: an instruction costs 1, 64 bytes that it makes cost 1 more. A conversation takes some thousands, and
/// a template that loops for ever or doubles a string ends soon, after 64 MB at most.
const FUEL: u64 = 1_000_000;

/// Bytes of the longest text that a template may make.
const MAX_TEXT: usize = 32 << 20;

/// A chat template and the special tokens that it may name.
pub(super) struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    tokens: BTreeMap<String, Jinja>,
    /// What a message says is handed over as a text, not as a list of parts.
    plain: bool,
}

impl ChatTemplate {
    /// The first in `PLACES`.
    pub(super) fn read(folder: &Path, pictures: bool) -> Result<ChatTemplate> {
        let config_path = folder.join("tokenizer_config.json");
        let config = if config_path.exists() { read_json(&config_path)? } else { Map::new() };
        let (path, source) = find_source(folder, pictures)?;
        let plain = !pictures && !goes_over_parts(&source)?;
        let mut environment = environment()?;
        environment
            .add_template_owned("chat template", source)
            .map_err(|e| Error::input(&path, format!("not a valid template: {e}")))?;
        Ok(ChatTemplate { path, environment, tokens: special_tokens(&config), plain })
    }

    /// The file that the template came from.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A special token of tokenizer_config.json.
    pub(super) fn token(&self, name: &str) -> Option<&str> {
        self.tokens.get(name)?.as_str()
    }

    pub(super) fn render(&self, messages: &[Message], generate: bool) -> Result<String> {
        let turns: Vec<Turn> = messages.iter().map(|message| Turn::new(message, self.plain)).collect();
        let mut context = self.tokens.clone();
        context.insert("messages".to_string(), Serde(turns).into());
        context.insert("add_generation_prompt".to_string(), generate.into());
        context.insert("tools".to_string(), ().into());
        context.insert("documents".to_string(), ().into());
        let failed = |e: &dyn Display| Error::input(&self.path, format!("the chat template failed: {e}"));
        let template = self.environment.get_template("chat template").map_err(|e| failed(&e))?;
        let mut out = Capped(Vec::new());
        template.render_captured_to(context, &mut out).map_err(|e| failed(&e))?;
        String::from_utf8(out.0).map_err(|e| failed(&e))
    }
}

/// Text that is being written, up to MAX_TEXT bytes: what a value looks like in print is not paid for with fuel.
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT {
            return Err(std::io::Error::other(format!("it makes more than {MAX_TEXT} bytes")));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Special tokens of tokenizer_config.json by name, as templates use them (`eos_token`).
fn special_tokens(config: &Map<String, Value>) -> BTreeMap<String, Jinja> {
    let tokens = config.iter().filter(|(key, _)| key.ends_with("_token"));
    tokens.filter_map(|(key, value)| Some((key.clone(), token_text(value)?.into()))).collect()
}

/// A token in tokenizer_config.json: its text, or an object with the text as `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A message as transformers hands it to a template, keys in this order.
#[derive(Serialize)]
struct Turn<'a> {
    role: &'a str,
    content: Said<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Said<'a> {
    Text(String),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Part<'a> {
    Image,
    Text { text: &'a str },
}

impl<'a> Turn<'a> {
    fn new(message: &'a Message, plain: bool) -> Self {
        let texts = message.content.iter().filter_map(|content| match content {
            Content::Image => None,
            Content::Text(text) => Some(text.as_str()),
        });
        if plain {
            return Turn { role: &message.role, content: Said::Text(texts.collect()) };
        }
        let content = message.content.iter().map(|content| match content {
            Content::Image => Part::Image,
            Content::Text(text) => Part::Text { text },
        });
        Turn { role: &message.role, content: Said::Parts(content.collect()) }
    }
}

/// Whether a template reads a message part by part, as those of models with pictures do. Others want its text.
fn goes_over_parts(source: &str) -> Result<bool> {
    const LOOP: &str = r#"\bfor\s+\w+\s+in\s+\w+(\.content\b|\[\s*['"]content['"]\s*\])"#;
    Ok(Regex::new(LOOP).map_err(|e| Error::Failure(e.to_string()))?.is_match(source))
}

/// Where a template may be; an earlier one is taken before a later one. With pictures as ProcessorMixin.get_processor_dict has it; without as a
/// tokenizer, which does not know chat_template.json.
const PLACES: [&str; 4] =
    ["processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json"];
const TEXT_PLACES: [&str; 3] = ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"];

fn find_source(folder: &Path, pictures: bool) -> Result<(PathBuf, String)> {
    for name in if pictures { &PLACES[..] } else { &TEXT_PLACES } {
        let path = folder.join(name);
        if !path.exists() {
            continue;
        }
        let found = match path.extension().is_some_and(|ending| ending == "jinja") {
            true => Some(read_text(&path, MAX_TEMPLATE)?),
            false => template_of(&path, &read_json(&path)?)?,
        };
        if let Some(source) = found {
            return Ok((path, source));
        }
    }
    let what = "no chat template: expected chat_template.jinja, chat_template.json or chat_template in tokenizer_config.json";
    Err(Error::input(folder, what))
}

/// The value of chat_template: a template, or a list of named ones, of which "default" is meant.
fn template_of(path: &Path, keys: &Map<String, Value>) -> Result<Option<String>> {
    let value = keys.get("chat_template").unwrap_or(&Value::Null);
    let source = match value {
        Value::Null => return Ok(None),
        Value::Array(list) => {
            list.iter().find(|entry| entry["name"] == "default").and_then(|entry| entry["template"].as_str())
        }
        other => other.as_str(),
    };
    match source {
        Some(source) => Ok(Some(source.to_string())),
        None => Err(Error::input(
            path,
            "chat_template: expected a template, or a list of templates one of which is named default",
        )),
    }
}

fn environment() -> Result<Environment<'static>> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax = syntax.map_err(|e| Error::Failure(e.to_string()))?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| strftime(&format, SystemTime::now()));
    environment.add_filter("tojson", tojson);
    Ok(environment)
}

/// Python's json.dumps(value, ensure_ascii=False, indent=indent): unlike minijinja's own filter, nothing is escaped for HTML.
fn tojson(value: &Jinja, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed =
        |e: &dyn std::fmt::Display| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut out = Capped(Vec::new());
    match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
        Some(width) => {
            let space = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(space.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
    }
    .map_err(|e| failed(&e))?;
    String::from_utf8(out.0).map_err(|e| failed(&e))
}

/// JSON on one line with Python's separators, `", "` and `": "`.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// The directives of dates and times that templates use, in UTC.
fn strftime(format: &str, now: SystemTime) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{:02}", second / 3600)),
            Some('M') => out.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", second % 60)),
            Some('%') => out.push('%'),
            other => {
                let what = format!(
                    "strftime_now: expected one of %Y %m %d %B %b %A %a %H %M %S, got %{}",
                    other.unwrap_or(' ')
                );
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
            }
        }
    }
    Ok(out)
}

/// Year, month (1-12) and day (1-31) of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}
