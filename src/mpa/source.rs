//! What a run starts from: a path, or a part of a benchmark in its official files, of which a JSONL file is made.
//!
//! ```text
//! [annotate.images]  -> pictures.jsonl    each picture once, without its questions
//! [evaluate.questions] -> questions.jsonl  questions with answers
//! ```
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::data::benchmarks::{Benchmark, Files};
use crate::data::files::{self, Rebase};
use crate::data::official::Metric;
use crate::data::records::{self, Record};
use crate::error::{Error, Result};
use crate::mpa::config::Bad;
use crate::random;

/// `images = "folder"`, or a table `[annotate.images]`; `questions` is the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Source {
    Path(String),
    Part(Part),
}

/// A part of one split of a benchmark. Paths as in the config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub benchmark: Benchmark,
    pub annotations: String,
    /// OK-VQA only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<String>,
    /// The folder of its pictures.
    pub pictures: String,
    /// From where to where, of its pictures in an order drawn with `seed`: [0, 0.85] and [0.85, 1] have no picture in common.
    #[serde(default = "all")]
    pub share: [f64; 2],
    /// Not the run's: runs with other seeds are scored on the same questions.
    #[serde(default)]
    pub seed: u64,
    /// Of the questions about a picture, the first one in the file only.
    #[serde(default)]
    pub one_per_picture: bool,
}

fn all() -> [f64; 2] {
    [0.0, 1.0]
}

/// By hand, because serde's untagged enums do not say which key is wrong.
impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Source, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Source;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a path, or a table with benchmark, annotations and pictures")
            }

            fn visit_str<E>(self, path: &str) -> Result<Source, E> {
                Ok(Source::Path(path.to_string()))
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Source, M::Error> {
                Part::deserialize(MapAccessDeserializer::new(map)).map(Source::Part)
            }
        }
        from.deserialize_any(Either)
    }
}

impl Source {
    pub fn check(&self, key: &str) -> Result<(), Bad> {
        let Source::Part(part) = self else { return Ok(()) };
        let [from, to] = part.share;
        let good = 0.0 <= from && from < to && to <= 1.0;
        let expected = "two rising numbers from 0 to 1";
        Bad::unless(good, &format!("{key}.share"), expected, format!("[{from}, {to}]"))?;
        Bad::whole(&format!("{key}.seed"), part.seed)?;
        let two = part.questions.is_none() || part.benchmark == Benchmark::Okvqa;
        let expected = "nothing but for okvqa, whose questions lie in a file of their own";
        Bad::unless(two, &format!("{key}.questions"), expected, part.questions.as_deref().unwrap_or(""))
    }

    /// All that must be there.
    pub fn paths(&self) -> Vec<&str> {
        match self {
            Source::Path(path) => vec![path],
            Source::Part(part) => [Some(&part.annotations), part.questions.as_ref(), Some(&part.pictures)]
                .into_iter()
                .flatten()
                .map(String::as_str)
                .collect(),
        }
    }

    /// The metric of a benchmark; none of one's own questions.
    pub fn metric(&self) -> Option<Metric> {
        match self {
            Source::Path(_) => None,
            Source::Part(part) => Some(part.benchmark.metric()),
        }
    }

    /// The path, or the file `to`, into which each picture of the part is written once. `home`: what paths are relative to.
    pub fn pictures(&self, home: &Path, to: &Path) -> Result<PathBuf> {
        self.listed(home, to, |part| {
            let mut seen = HashSet::new();
            part.write(home, to, |record| {
                let id = record.image.clone().unwrap_or_default();
                let bare = Record { id: id.clone(), image: Some(id.clone()), ..Record::default() };
                Ok(seen.insert(id).then_some(bare))
            })
        })
    }

    /// The path, or the file `to`, into which the part's questions and answers are written.
    pub fn questions(&self, home: &Path, to: &Path) -> Result<PathBuf> {
        self.listed(home, to, |part| {
            let mut seen = HashSet::new();
            part.write(home, to, |record| {
                part.answered(home, &record)?;
                let first = seen.insert(record.image.clone().unwrap_or_default());
                Ok((first || !part.one_per_picture).then_some(record))
            })
        })
    }

    /// An error if `questions` would find one that has no question or no answers; a stage that starts hours later wants them all.
    pub fn check_questions(&self, home: &Path) -> Result<()> {
        match self {
            Source::Path(path) => match records::check(&home.join(path), &["question", "answer"])? {
                0 => Err(Error::input(home.join(path), "holds no questions")),
                _ => Ok(()),
            },
            Source::Part(part) => part.each(home, |_, record| part.answered(home, &record)),
        }
    }

    fn listed(&self, home: &Path, to: &Path, write: impl FnOnce(&Part) -> Result<()>) -> Result<PathBuf> {
        match self {
            Source::Path(path) => Ok(home.join(path)),
            Source::Part(part) => write(part).map(|()| to.to_path_buf()),
        }
    }
}

impl Part {
    /// Writes what `make` makes of the records whose picture is of the share, in the order of the file.
    fn write(
        &self,
        home: &Path,
        to: &Path,
        mut make: impl FnMut(Record) -> Result<Option<Record>>,
    ) -> Result<()> {
        let images = home.join(&self.pictures);
        files::make_parent(to)?;
        let rebase = Rebase::folders(&images, files::folder_of(to))?;
        let hidden = to.with_extension("tmp");
        let io = |e| Error::io(to, e);
        let mut file = BufWriter::new(File::create(&hidden).map_err(io)?);
        self.each(home, |files, record| {
            let Some(mut record) = make(record)? else { return Ok(()) };
            let image = record.image.take().unwrap_or_default();
            let found = files.locate(&images, &image);
            let found = found.strip_prefix(&images).unwrap_or(&found);
            record.image = Some(rebase.path(found.to_str().unwrap_or(&image)));
            file.write_all(&record.to_line()?).map_err(io)
        })?;
        let file = file.into_inner().map_err(|e| Error::io(to, e.into_error()))?;
        file.sync_all().map_err(io)?;
        fs::rename(&hidden, to).map_err(io)
    }

    /// The records whose picture is of the share.
    fn each(&self, home: &Path, mut f: impl FnMut(&Files<'_>, Record) -> Result<()>) -> Result<()> {
        let annotations = home.join(&self.annotations);
        let questions = self.questions.as_ref().map(|file| home.join(file));
        let files =
            Files { benchmark: self.benchmark, annotations: &annotations, questions: questions.as_deref() };
        let chosen = self.chosen(&files)?;
        for record in files.open()? {
            let record = record?;
            if chosen.contains(named(&files, &record)?) {
                f(&files, record)?;
            }
        }
        Ok(())
    }

    fn answered(&self, home: &Path, record: &Record) -> Result<()> {
        if record.answers.as_ref().is_none_or(Vec::is_empty) || record.question.is_none() {
            let what = format!("question_id {} has no question or no answers", record.id);
            let file = self.questions.as_ref().unwrap_or(&self.annotations);
            return Err(Error::line(home.join(file), record.line, what));
        }
        Ok(())
    }

    /// The names of the pictures of the share.
    fn chosen(&self, files: &Files<'_>) -> Result<HashSet<String>> {
        let salt = random::hash("share");
        let mut order = BTreeMap::new();
        for record in files.open()? {
            let record = record?;
            let image = named(files, &record)?;
            order.insert((random::mix(self.seed, &[salt, random::hash(image)]), image.to_string()), ());
        }
        let [from, to] = self.share.map(|end| (end * order.len() as f64).round() as usize);
        if from == to {
            let what = format!("has no pictures in the share {:?} of {}", self.share, order.len());
            return Err(Error::input(files.annotations, what));
        }
        Ok(order.into_keys().map(|(_, image)| image).skip(from).take(to - from).collect())
    }
}

fn named<'a>(files: &Files<'_>, record: &'a Record) -> Result<&'a str> {
    record.image.as_deref().ok_or_else(|| {
        let what = format!("question_id {} names no picture", record.id);
        Error::line(files.list(), record.line, what)
    })
}
