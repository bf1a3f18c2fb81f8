//! The objects of one JSON list, one at a time: the list is the whole file or lies under a key of the object that the file is. What is held is
//! one object, whatever the size of the file.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::data::files;
use crate::data::records::{self, MAX_LINE};
use crate::error::{Error, Result};

/// An object of the list.
pub struct Element {
    pub map: Map<String, Value>,
    /// Elements before it.
    pub number: usize,
    /// Where it begins, from 1.
    pub line: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Start,
    /// In the list; whether it is the whole file.
    List {
        whole: bool,
    },
    Ended,
}

/// Reads the file once, from its beginning to its end; what follows the list is checked too. Stops after the first error.
pub struct Elements {
    path: PathBuf,
    source: Source,
    key: &'static str,
    state: State,
    number: usize,
    others: Vec<String>,
    /// Texts that stand beside the list, those that were read so far.
    pub header: BTreeMap<String, String>,
}

impl Elements {
    /// `key`: where the list is, if the file is an object.
    pub fn open(path: &Path, key: &'static str) -> Result<Elements> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        if file.metadata().map_err(|e| Error::io(path, e))?.is_dir() {
            return Err(Error::input(path, "is a folder, expected a JSON file"));
        }
        let source = Source { reader: BufReader::new(file), line: 1, budget: MAX_LINE };
        let path = path.to_path_buf();
        let (others, header) = (Vec::new(), BTreeMap::new());
        Ok(Elements { path, source, key, state: State::Start, number: 0, others, header })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read(&mut self) -> Result<Option<Element>> {
        let mut first = false;
        if self.state == State::Start {
            self.begin()?;
            first = true;
        }
        let State::List { whole } = self.state else {
            return Ok(None);
        };
        match (self.peek()?, first) {
            (Some(b']'), _) => {
                self.take()?;
                if !whole {
                    self.after_member()?;
                }
                self.end()?;
                return Ok(None);
            }
            (Some(b','), false) => drop(self.take()?),
            (_, true) => {}
            (other, false) => return Err(self.wrong("`,` or `]` in the list", other)),
        }
        self.peek()?;
        let line = self.source.line;
        let value: Value = self.value()?;
        let number = self.number;
        self.number += 1;
        match value {
            Value::Object(map) => Ok(Some(Element { map, number, line })),
            other => {
                let what =
                    format!("element {number} (from 0): expected an object, got {}", records::kind(&other));
                Err(Error::line(&self.path, line, what))
            }
        }
    }

    /// To the list.
    fn begin(&mut self) -> Result<()> {
        let begun = self.source.reader.fill_buf().map_err(|e| Error::io(&self.path, e))?;
        let text = files::after_mark(begun).map_err(|what| Error::input(&self.path, what))?;
        let mark = begun.len() - text.len();
        self.source.reader.consume(mark);
        match self.peek()? {
            Some(b'[') => {
                self.take()?;
                self.state = State::List { whole: true };
                Ok(())
            }
            Some(b'{') => {
                self.take()?;
                if self.peek()? == Some(b'}') {
                    return Err(self.no_list());
                }
                self.members()
            }
            other => Err(self.wrong("a JSON list, or an object with one", other)),
        }
    }

    /// Members of the outer object up to the list, or to its end.
    fn members(&mut self) -> Result<()> {
        loop {
            match self.peek()? {
                Some(b'"') => {}
                other => return Err(self.wrong("a key", other)),
            }
            let key: String = self.value()?;
            match self.peek()? {
                Some(b':') => drop(self.take()?),
                other => return Err(self.wrong("`:` behind a key", other)),
            }
            let next = self.peek()?;
            if key == self.key {
                return self.list(next);
            }
            match next {
                Some(b'"') => {
                    let text = self.value()?;
                    self.header.insert(key.clone(), text);
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => {
                    self.source.budget = usize::MAX;
                    let _: IgnoredAny = self.parse()?;
                }
            }
            self.others.truncate(20);
            self.others.push(key);
            if self.last()? {
                return match self.state {
                    State::Start => Err(self.no_list()),
                    _ => Ok(()),
                };
            }
        }
    }

    fn list(&mut self, next: Option<u8>) -> Result<()> {
        match (self.state, next) {
            (State::Start, Some(b'[')) => {
                self.take()?;
                self.state = State::List { whole: false };
                Ok(())
            }
            (State::Start, other) => Err(self.wrong(&format!("a list under `{}`", self.key), other)),
            _ => Err(Error::line(&self.path, self.source.line, format!("key `{}` is there twice", self.key))),
        }
    }

    /// Whether the member that was just read is the last; what stands behind it is taken.
    fn last(&mut self) -> Result<bool> {
        match self.take()? {
            Some(b'}') => Ok(true),
            Some(b',') => Ok(false),
            other => Err(self.wrong("`,` or `}` behind a value", other)),
        }
    }

    fn after_member(&mut self) -> Result<()> {
        if self.last()? { Ok(()) } else { self.members() }
    }

    fn end(&mut self) -> Result<()> {
        self.state = State::Ended;
        match self.peek()? {
            None => Ok(()),
            other => Err(self.wrong("the end of the file", other)),
        }
    }

    fn no_list(&self) -> Error {
        let keys = if self.others.is_empty() { "none".to_string() } else { self.others.join(", ") };
        Error::input(&self.path, format!("expected a list under the key `{}`; its keys: {keys}", self.key))
    }

    /// A number of the outer object; serde_json would read a byte too much.
    fn number(&mut self) -> Result<()> {
        let mut text = Vec::new();
        while let Some(byte @ (b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) = self.bare()? {
            text.push(byte);
            self.source.pass();
            if text.len() > 1000 {
                break;
            }
        }
        let valid = serde_json::from_slice::<Value>(&text);
        valid.map(drop).map_err(|e| {
            // The line is that of the file, not of the number.
            let what = e.to_string();
            let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what);
            Error::line(&self.path, self.source.line, format!("not JSON: {what}"))
        })
    }

    fn value<'a, T: Deserialize<'a>>(&mut self) -> Result<T> {
        self.source.budget = MAX_LINE;
        self.parse()
    }

    fn parse<'a, T: Deserialize<'a>>(&mut self) -> Result<T> {
        let mut json = serde_json::Deserializer::from_reader(&mut self.source);
        let parsed = T::deserialize(&mut json);
        drop(json);
        parsed.map_err(|e| {
            let text = e.to_string();
            let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
            let number = self.number;
            Error::line(
                &self.path,
                self.source.line,
                format!("not JSON, in or after element {number} (from 0): {what}"),
            )
        })
    }

    /// The next byte that is not white space, still to be read.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            match self.bare()? {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.source.pass(),
                other => return Ok(other),
            }
        }
    }

    fn take(&mut self) -> Result<Option<u8>> {
        let byte = self.peek()?;
        self.source.pass();
        Ok(byte)
    }

    fn bare(&mut self) -> Result<Option<u8>> {
        self.source.peek().map_err(|e| Error::io(&self.path, e))
    }

    fn wrong(&self, expected: &str, got: Option<u8>) -> Error {
        let shown = |byte| format!("{:?}", char::from(byte).to_string());
        let got = got.map_or("the end of the file".to_string(), shown);
        Error::line(&self.path, self.source.line, format!("not JSON: expected {expected}, got {got}"))
    }
}

impl Iterator for Elements {
    type Item = Result<Element>;

    fn next(&mut self) -> Option<Result<Element>> {
        let next = self.read().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.state = State::Ended;
        }
        next
    }
}

/// A file that counts its lines and gives no more than a budget at a time.
struct Source {
    reader: BufReader<File>,
    line: usize,
    budget: usize,
}

impl Source {
    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.reader.fill_buf()?.first().copied())
    }

    /// Passes by the byte that was seen.
    fn pass(&mut self) {
        if let Some(&byte) = self.reader.buffer().first() {
            self.line += usize::from(byte == b'\n');
            self.reader.consume(1);
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.reader.fill_buf()?;
        let count = available.len().min(buffer.len());
        if count > self.budget {
            return Err(io::Error::other(format!("it is longer than {MAX_LINE} bytes")));
        }
        let (taken, _) = available.split_at(count);
        if let Some(place) = buffer.get_mut(..count) {
            place.copy_from_slice(taken);
        }
        self.line += taken.iter().filter(|&&byte| byte == b'\n').count();
        self.budget -= count;
        self.reader.consume(count);
        Ok(count)
    }
}
