//! The four benchmarks in their official layouts, and the lists of the paper's released code: records, one at a time.
//!
//! ```text
//! elements.rs (objects of a list, streamed) -> layout.rs, conversation.rs (element -> Record) -> join.rs (OK-VQA's two files) -> Samples
//! check.rs: what is wrong with a download
//! ```
//! The records have `id`, `image` (as the benchmark names it: see `Files::locate`), `question`, `answers`, and `question_id` as it was in the file.

pub mod check;
mod conversation;
pub mod elements;
mod join;
mod layout;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::files;
use crate::data::official::Metric;
use crate::data::records::{Reader, Record};
use crate::error::{Error, Result};
use elements::{Element, Elements};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Benchmark {
    /// TextVQA 0.5.1
    Textvqa,
    /// ST-VQA, task 1
    Stvqa,
    /// ChartQA: human, augmented or both
    Chartqa,
    /// OK-VQA: annotations, and questions
    Okvqa,
}

impl Benchmark {
    pub fn metric(self) -> Metric {
        match self {
            Benchmark::Textvqa | Benchmark::Okvqa => Metric::VqaAccuracy,
            Benchmark::Stvqa => Metric::Anls,
            Benchmark::Chartqa => Metric::RelaxedAccuracy,
        }
    }

    /// Where the list lies in the object that a file is.
    fn key(self) -> &'static str {
        if self == Benchmark::Okvqa { "annotations" } else { "data" }
    }

    /// Folders within a download that hold its pictures.
    fn folders(self) -> &'static [&'static str] {
        match self {
            Benchmark::Textvqa => &["", "train_images", "test_images"],
            Benchmark::Chartqa => &["", "png"],
            Benchmark::Okvqa => &["", "val2014", "train2014"],
            Benchmark::Stvqa => &[""],
        }
    }
}

/// The files of one split.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    pub benchmark: Benchmark,
    pub annotations: &'a Path,
    /// OK-VQA only.
    pub questions: Option<&'a Path>,
}

impl<'a> Files<'a> {
    /// Where the picture `image` of a record is: under `images`, there or in the folder that the download has for pictures; of this program's JSONL
    /// also where other commands look for it, beside the file (an absolute path then).
    pub fn locate(&self, images: &Path, image: &str) -> PathBuf {
        let list = self.list();
        let own = list.extension().is_some_and(|ending| ending == "jsonl");
        let beside = own.then(|| std::path::absolute(files::folder_of(list).join(image)).ok()).flatten();
        let places = self.benchmark.folders().iter().map(|folder| images.join(folder).join(image));
        places.chain(beside).find(|path| path.exists()).unwrap_or_else(|| images.join(image))
    }

    /// The file that has the questions.
    pub fn list(&self) -> &'a Path {
        self.questions.unwrap_or(self.annotations)
    }

    /// Records in the order of the questions file, or of the annotations if there is none; what the questions do not ask for is left out. Holds one
    /// record at a time; of OK-VQA, the annotations that the questions have not come to.
    pub fn open(&self) -> Result<Samples> {
        let annotations = List::open(self.benchmark, self.annotations, self.benchmark.key())?;
        let Some(questions) = self.questions else {
            return Ok(Samples::One(annotations));
        };
        if self.benchmark != Benchmark::Okvqa {
            let what = "--questions is for okvqa, whose questions lie in a file of their own";
            return Err(Error::Usage(what.to_string()));
        }
        let questions = List::open(self.benchmark, questions, "questions")?;
        Ok(Samples::Two(Box::new(join::Join::new(questions, annotations))))
    }
}

/// See `Files::open`. Stops after the first error.
pub enum Samples {
    One(List),
    Two(Box<join::Join>),
}

impl Samples {
    /// After the last record: OK-VQA's annotations that no question took, with their lines in the annotations. They are of other questions, or double.
    pub fn left(&mut self) -> impl Iterator<Item = Result<Record>> {
        match self {
            Samples::One(_) => None,
            Samples::Two(join) => Some(join.left()),
        }
        .into_iter()
        .flatten()
    }
}

impl Iterator for Samples {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        match self {
            Samples::One(list) => list.next(),
            Samples::Two(join) => join.next(),
        }
    }
}

/// The records of one file.
pub enum List {
    /// This program's JSONL.
    Lines(Reader),
    Json {
        benchmark: Benchmark,
        elements: Elements,
        /// Of the last element, which has several questions.
        more: VecDeque<Element>,
    },
}

impl List {
    fn open(benchmark: Benchmark, path: &Path, key: &'static str) -> Result<List> {
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            return Ok(List::Lines(Reader::open(path)?));
        }
        Ok(List::Json { benchmark, elements: Elements::open(path, key)?, more: VecDeque::new() })
    }
}

impl Iterator for List {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        match self {
            // As elsewhere, what a stage rejected is no question.
            List::Lines(reader) => reader
                .find(|record| record.as_ref().map_or(true, |r| r.rejected.is_none()))
                .map(|r| r.map(own)),
            List::Json { benchmark, elements, more } => {
                if more.is_empty() {
                    let element = match elements.next()? {
                        Ok(element) => element,
                        Err(error) => return Some(Err(error)),
                    };
                    let (number, line) = (element.number, element.line);
                    match layout::questions(element) {
                        Ok(questions) => more.extend(questions),
                        Err(what) => return Some(Err(at(elements, number, line, &what))),
                    }
                }
                let element = more.pop_front()?;
                let split = elements.header.get("data_subtype").map(String::as_str);
                let split = split.or_else(|| named(elements.path()));
                let (number, line) = (element.number, element.line);
                let record = layout::record(*benchmark, element.map, number, line, split);
                Some(record.map_err(|what| at(elements, number, line, &what)))
            }
        }
    }
}

/// A record of this program's own files, with the fields that all samples have.
fn own(mut record: Record) -> Record {
    if record.answers.as_ref().is_none_or(Vec::is_empty) {
        record.answers = record.answer.take().map(|answer| vec![answer]);
    }
    match record.extra.get("question_id") {
        Some(Value::String(id)) => record.id = id.clone(),
        Some(Value::Number(id)) => record.id = id.to_string(),
        _ => drop(record.extra.insert("question_id".to_string(), Value::String(record.id.clone()))),
    }
    record
}

fn at(elements: &Elements, number: usize, line: usize, what: &str) -> Error {
    Error::line(elements.path(), line, format!("element {number} (from 0): {what}"))
}

/// COCO's part, by the name of the file; `eval` is no `val`.
fn named(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    let parts = [("val", "val2014"), ("train", "train2014")];
    let whole = parts.iter().find(|(_, split)| name.contains(split));
    let word = |part: &str| name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == part);
    whole.or_else(|| parts.iter().find(|(part, _)| word(part))).map(|(_, split)| *split)
}
