//! The layout of the paper's released code: one JSON array of objects with question_id, image_path, PA_question, PA_answer, predictions.
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::data::files;
use crate::data::records::{self, Ids, MAX_LINE, Record};
use crate::error::{Error, Result};

/// The records of a JSONL file, or of a JSON array in the released layout: the first byte that is not white space tells.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    records::regular(path)?;
    if is_array(path)? { read_array(path) } else { records::read(path) }
}

fn is_array(path: &Path) -> Result<bool> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    for byte in after_mark(path, file)?.bytes() {
        let byte = byte.map_err(|e| Error::io(path, e))?;
        if !byte.is_ascii_whitespace() {
            return Ok(byte == b'[');
        }
    }
    Ok(false)
}

/// The file from behind the mark that UTF-8 may begin with.
fn after_mark(path: &Path, file: File) -> Result<BufReader<File>> {
    let mut reader = BufReader::new(file);
    let start = reader.fill_buf().map_err(|e| match e.kind() {
        std::io::ErrorKind::IsADirectory => Error::input(path, "is a folder, expected a file"),
        _ => Error::io(path, e),
    })?;
    let rest = files::after_mark(start).map_err(|what| Error::input(path, what))?;
    let mark = start.len() - rest.len();
    reader.consume(mark);
    Ok(reader)
}

fn read_array(path: &Path) -> Result<Vec<Record>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut json = serde_json::Deserializer::from_reader(after_mark(path, file)?);
    let read = json.deserialize_seq(Elements).and_then(|records| json.end().map(|()| records));
    let records = read.map_err(|e| {
        let text = e.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        Error::line(path, e.line().max(1), text)
    })?;
    let mut ids = Ids::default();
    for record in &records {
        ids.add(path, record).map_err(|_| {
            Error::input(
                path,
                format!("question_id {:?} is there twice (element {})", record.id, record.line),
            )
        })?;
    }
    Ok(records)
}

/// Elements are turned into records one by one, so that a broken one ends the reading.
struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<Record>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Record>, A::Error> {
        let mut records: Vec<Record> = Vec::new();
        while let Some(text) = seq.next_element::<Box<RawValue>>()? {
            let number = records.len();
            let record = parse(text.get(), number)
                .map_err(|what| serde::de::Error::custom(format!("element {number} (from 0): {what}")))?;
            records.push(record);
        }
        Ok(records)
    }
}

/// What is too long is not taken apart: values take many times the memory of their text.
fn parse(text: &str, number: usize) -> Result<Record, String> {
    if text.len() > MAX_LINE {
        return Err(format!("it is longer than {MAX_LINE} bytes"));
    }
    match serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))? {
        Value::Object(map) => record(map, number),
        other => Err(format!("expected a JSON object, got {}", records::kind(&other))),
    }
}

/// Our fields are filled from the released keys, which stay beside them. `line` becomes the number of the element.
fn record(mut map: Map<String, Value>, number: usize) -> Result<Record, String> {
    if let Some(Value::Array(list)) = map.get("predictions") {
        match list.as_slice() {
            [one] => drop(map.insert("predictions".to_string(), one.clone())),
            _ => {
                return Err(format!(
                    "key `predictions`: expected one string, got an array of {}",
                    list.len()
                ));
            }
        }
    }
    let mut known = map.clone();
    // What the released code could not parse is null there, and compared as an empty text.
    for key in ["PA_answer", "predictions"] {
        known.entry(key).and_modify(|value| {
            if value.is_null() {
                *value = Value::from("");
            }
        });
    }
    let mut need = |key: &str| {
        let there = records::take_text(&mut known, key)?;
        there.ok_or_else(|| {
            let keys: Vec<&str> = map.keys().map(String::as_str).take(20).collect();
            format!("missing key `{key}`; it has {}", keys.join(", "))
        })
    };
    let mut record = Record {
        id: need("question_id")?,
        question: Some(need("PA_question")?),
        answer: Some(need("PA_answer")?),
        prediction: Some(need("predictions")?),
        line: number,
        ..Record::default()
    };
    record.image = records::take_text(&mut known, "image_path")?;
    record.extra = map.into_iter().filter(|(key, _)| !records::FIELDS.contains(&key.as_str())).collect();
    Ok(record)
}
