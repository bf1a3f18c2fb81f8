//! Records: one JSON object a line. Keys this program knows are fields; all others are kept and passed through, sorted.
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::data::files;
use crate::error::{Error, Result};
use crate::random;

/// Longest line accepted, in bytes: no record is near it, and it bounds what a broken file can take of memory.
pub const MAX_LINE: usize = 4 << 20;

/// The keys that are fields of a record.
pub const FIELDS: [&str; 9] =
    ["id", "image", "question", "answer", "answers", "prediction", "annotation", "rejected", "reason"];

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Record {
    /// Unique in a file. Without the key: the number of the record, from 0.
    pub id: String,
    /// The key was there; not written.
    #[serde(skip)]
    pub named: bool,
    /// Path of the picture, relative to the folder of the file that names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<String>,
    /// What the annotator wrote, whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotation: Option<String>,
    /// Why later stages pass the record by: `unparsed`, `unreadable`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// More about `rejected`, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
    /// Where it was read (from 1); not written.
    #[serde(skip)]
    pub line: usize,
}

impl Record {
    /// `number`: how many records precede it in the file. The error says what is wrong, not where.
    pub fn parse(text: &[u8], number: usize, line: usize) -> Result<Record, String> {
        let text = text.trim_ascii_end();
        let value: Value = serde_json::from_slice(text).map_err(|e| {
            if text.starts_with(b"[") {
                return "expected a JSON object a line, got a list over several lines".to_string();
            }
            let what = e.to_string();
            // The line is that of the file, which is not known here.
            let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what);
            format!("not JSON: {what}, in column {}", e.column())
        })?;
        match value {
            Value::Object(map) => Record::from_map(map, number, line),
            other => Err(format!("expected a JSON object, got {}", kind(&other))),
        }
    }

    pub fn from_map(mut map: Map<String, Value>, number: usize, line: usize) -> Result<Record, String> {
        let id = take_text(&mut map, "id")?;
        Ok(Record {
            named: id.is_some(),
            id: id.unwrap_or_else(|| number.to_string()),
            image: take_text(&mut map, "image")?,
            question: take_text(&mut map, "question")?,
            answer: take_text(&mut map, "answer")?,
            answers: take_list(&mut map, "answers")?,
            prediction: take_text(&mut map, "prediction")?,
            annotation: take_text(&mut map, "annotation")?,
            rejected: take_text(&mut map, "rejected")?,
            reason: take_text(&mut map, "reason")?,
            extra: map.into_iter().collect(),
            line,
        })
    }

    /// Hashes of `image`, `question`, `answer` and `answers`.
    pub fn texts(&self) -> [Option<u64>; 4] {
        let text = |text: &Option<String>| text.as_deref().map(random::hash);
        let answers = self.answers.as_ref().map(|list| random::hash(&list.join("\n")));
        [text(&self.image), text(&self.question), text(&self.answer), answers]
    }

    /// One line of JSON with its newline.
    pub fn to_line(&self) -> Result<Vec<u8>> {
        let mut line =
            serde_json::to_vec(self).map_err(|e| Error::Failure(format!("record {}: {e}", self.id)))?;
        line.push(b'\n');
        Ok(line)
    }

    /// The value of `image`, `question`, `answer` or `prediction`; an error that names `file`, line and key if it is missing.
    pub fn need(&self, file: &Path, key: &str) -> Result<&str> {
        let value = match key {
            "image" => &self.image,
            "question" => &self.question,
            "answer" => &self.answer,
            "prediction" => &self.prediction,
            _ => &None,
        };
        value.as_deref().ok_or_else(|| self.missing(file, key, ""))
    }

    /// The accepted answers: `answers`, else `answer`.
    pub fn need_answers(&self, file: &Path) -> Result<Vec<&str>> {
        match (&self.answers, &self.answer) {
            (Some(list), _) if !list.is_empty() => Ok(list.iter().map(String::as_str).collect()),
            (_, Some(one)) => Ok(vec![one]),
            _ => Err(self.missing(file, "answer", " (nor `answers`)")),
        }
    }

    /// Where the picture is, if the record has one. `file`: the file that the record was read from.
    pub fn image_path(&self, file: &Path) -> Option<PathBuf> {
        let image = self.image.as_ref()?;
        Some(file.parent().unwrap_or(Path::new("")).join(image))
    }

    fn missing(&self, file: &Path, key: &str, also: &str) -> Error {
        Error::line(
            file,
            self.line,
            format!("record {:?}: missing key `{key}`{also}; it has {}", self.id, self.keys()),
        )
    }

    fn keys(&self) -> String {
        let known = [
            ("image", self.image.is_some()),
            ("question", self.question.is_some()),
            ("answer", self.answer.is_some()),
            ("answers", self.answers.is_some()),
            ("prediction", self.prediction.is_some()),
            ("annotation", self.annotation.is_some()),
            ("rejected", self.rejected.is_some()),
        ];
        let known = known.iter().filter(|(_, there)| *there).map(|(key, _)| *key);
        let names: Vec<&str> = known.chain(self.extra.keys().map(String::as_str)).take(20).collect();
        if names.is_empty() { "no other".to_string() } else { names.join(", ") }
    }
}

/// Takes `key` out of an object as text; numbers count as text in JSON's spelling, null as missing.
pub fn take_text(map: &mut Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match map.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(format!("key `{key}`: expected a string, got {}", kind(&other))),
    }
}

fn take_list(map: &mut Map<String, Value>, key: &str) -> Result<Option<Vec<String>>, String> {
    let list = match map.remove(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(format!("key `{key}`: expected a list of strings, got {}", kind(&other)));
        }
    };
    let text = |value| match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("key `{key}`: expected a list of strings, got {} in it", kind(&other))),
    };
    list.into_iter().map(text).collect::<Result<_, _>>().map(Some)
}

/// What a JSON value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Reads records one by one; stops after the first error.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    line: usize,
    number: usize,
    ended: bool,
    growing: bool,
}

impl Reader {
    pub fn open(path: &Path) -> Result<Reader> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        if file.metadata().map_err(|e| Error::io(path, e))?.is_dir() {
            return Err(Error::input(path, "is a folder, expected a JSONL file"));
        }
        let (path, file) = (path.to_path_buf(), BufReader::new(file));
        Ok(Reader { path, file, line: 0, number: 0, ended: false, growing: false })
    }

    /// The same for a file at which a stage may be writing, or was killed: a last line without its end is left out, as `Appender` does.
    pub fn open_growing(path: &Path) -> Result<Reader> {
        Ok(Reader { growing: true, ..Reader::open(path)? })
    }

    fn read(&mut self) -> Result<Option<Record>> {
        let mut text = Vec::new();
        loop {
            text.clear();
            let limit = MAX_LINE as u64 + 1;
            let read = self.file.by_ref().take(limit).read_until(b'\n', &mut text);
            if read.map_err(|e| Error::io(&self.path, e))? == 0 {
                return Ok(None);
            }
            if self.growing && text.last() != Some(&b'\n') && text.len() <= MAX_LINE {
                return Ok(None);
            }
            self.line += 1;
            if text.len() > MAX_LINE {
                return Err(Error::line(
                    &self.path,
                    self.line,
                    format!("the line is longer than {MAX_LINE} bytes"),
                ));
            }
            let bytes = if self.line == 1 { files::after_mark(&text) } else { Ok(&text[..]) };
            let bytes = bytes.map_err(|what| Error::input(&self.path, what))?;
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let record = Record::parse(bytes, self.number, self.line)
                .map_err(|what| Error::line(&self.path, self.line, what))?;
            self.number += 1;
            return Ok(Some(record));
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Ids seen so far in one file, and where.
#[derive(Default)]
pub struct Ids(HashMap<String, usize>);

impl Ids {
    /// An error that names both lines if the id came before.
    pub fn add(&mut self, file: &Path, record: &Record) -> Result<()> {
        match self.0.insert(record.id.clone(), record.line) {
            None => Ok(()),
            Some(first) => Err(Error::line(
                file,
                record.line,
                format!("id {:?} was used before, on line {first}", record.id),
            )),
        }
    }
}

/// An error for a pipe: what is read more than once would be empty the second time.
pub fn regular(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(there) if !there.is_file() && !there.is_dir() => {
            Err(Error::input(path, "is no regular file, expected one, as it is read more than once"))
        }
        _ => Ok(()),
    }
}

/// All records of a file; ids are unique.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let mut ids = Ids::default();
    let records = Reader::open(path)?.map(|record| {
        let record = record?;
        ids.add(path, &record)?;
        Ok(record)
    });
    records.collect()
}

/// Reads through a file once before the work starts: ids are unique and each record that is not rejected has `keys` (`answer` or
/// `answers` for "answer"). Returns how many are not rejected.
pub fn check(path: &Path, keys: &[&str]) -> Result<usize> {
    regular(path)?;
    let mut ids = Ids::default();
    let mut count = 0;
    for record in Reader::open(path)? {
        let record = record?;
        ids.add(path, &record)?;
        if record.rejected.is_some() {
            continue;
        }
        for key in keys {
            match *key {
                "answer" => drop(record.need_answers(path)?),
                key => drop(record.need(path, key)?),
            }
        }
        count += 1;
    }
    Ok(count)
}
