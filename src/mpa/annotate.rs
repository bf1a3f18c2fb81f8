//! The Pseudo Annotator: the teacher writes questions and answers about pictures that nobody labelled.
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::data::append::Appender;
use crate::data::files::{self, Rebase};
use crate::data::images;
use crate::data::records::{self, Reader, Record};
use crate::error::{Error, Result};
use crate::models::generate::{Completion, Request};
use crate::models::image::Rgb;
use crate::mpa::answer::{self, Stage, Tally};
use crate::mpa::engine::Answerer;
use crate::mpa::progress::Progress;
use crate::ops::sample::Sampling;
use crate::random;

/// What decides the annotations of a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// The text that the annotator is given with each picture.
    pub prompt: String,
    /// Questions a picture.
    pub samples: usize,
    pub temperature: f64,
    pub top_p: f64,
    pub max_new_tokens: usize,
    pub seed: u64,
}

/// Annotates the pictures of a folder or of a JSONL file into `out`; goes on where `out` ends. `batch`: pictures at a time.
pub fn run(
    source: &Path,
    options: &Options,
    answerer: &dyn Answerer,
    out: &Path,
    batch: usize,
    progress: &Progress,
) -> Result<Tally> {
    let mut appender = Appender::open(out)?;
    let (stage, records, total) = open(source, options, out)?;
    answer::run(&stage, records, total, answerer, &mut appender, batch, progress)?;
    appender.finish()?;
    Tally::of(out)
}

type Records = Box<dyn Iterator<Item = Result<Record>> + Send>;

/// The stage, and the records of its pictures, of which there are so many.
pub(super) fn open<'a>(
    source: &Path,
    options: &'a Options,
    out: &Path,
) -> Result<(Annotate<'a>, Records, usize)> {
    let parser = Parser::new()?;
    if source.is_dir() {
        let pictures = list(source)?;
        let rebase = Rebase::folders(source, files::folder_of(out))?;
        let total = pictures.len();
        let stage = Annotate { options, folder: source.to_path_buf(), listed: true, rebase, parser };
        return Ok((stage, Box::new(pictures.into_iter().map(|name| Ok(named(name)))), total));
    }
    let total = records::check(source, &["image"])?;
    tell_apart(source, options.samples)?;
    let rebase = Rebase::new(source, out)?;
    let folder = files::folder_of(source).to_path_buf();
    let stage = Annotate { options, folder, listed: false, rebase, parser };
    let records = Reader::open(source)?.filter(|r| r.as_ref().map_or(true, |r| r.rejected.is_none()));
    Ok((stage, Box::new(records), total))
}

/// An error if an id is that of another record's sample, as a list of what was annotated before has them beside records that had none.
fn tell_apart(source: &Path, samples: usize) -> Result<()> {
    if samples < 2 {
        return Ok(());
    }
    let ids: HashSet<String> = Reader::open(source)?.map(|record| Ok(record?.id)).collect::<Result<_>>()?;
    for record in Reader::open(source)? {
        let record = record?;
        let Some((base, number)) = record.id.rsplit_once('#') else { continue };
        if ids.contains(base) && (0..samples).any(|i| i.to_string() == number) {
            let what = format!(
                "id {:?} is also that of a sample of {base:?}, expected other ids or one sample",
                record.id
            );
            return Err(Error::line(source, record.line, what));
        }
    }
    Ok(())
}

fn named(name: String) -> Record {
    Record { id: name.clone(), image: Some(name), ..Record::default() }
}

/// The pictures of a folder as paths relative to it.
fn list(folder: &Path) -> Result<Vec<String>> {
    let pictures = images::list(folder)?;
    if pictures.is_empty() {
        return Err(Error::input(folder, "has no pictures (.png, .jpg, .jpeg, .webp)"));
    }
    let name = |path: &PathBuf| path.strip_prefix(folder).ok().and_then(Path::to_str).map(str::to_string);
    let named = |path| name(&path).ok_or_else(|| Error::input(&path, "the file name is not UTF-8"));
    pictures.into_iter().map(named).collect()
}

pub(super) struct Annotate<'a> {
    options: &'a Options,
    folder: PathBuf,
    /// The pictures are all that the folder has.
    listed: bool,
    rebase: Rebase,
    parser: Parser,
}

impl Stage for Annotate<'_> {
    fn name(&self) -> &str {
        "annotate"
    }

    fn ids(&self, record: &Record) -> Vec<String> {
        match self.options.samples {
            0 | 1 => vec![record.id.clone()],
            samples => (0..samples).map(|i| format!("{}#{i}", record.id)).collect(),
        }
    }

    fn picture(&self, record: &Record) -> Option<PathBuf> {
        Some(self.folder.join(record.image.as_ref()?))
    }

    fn seen(&self, _: &Record) -> bool {
        self.listed
    }

    fn request(&self, record: &Record, images: Vec<Arc<Rgb>>) -> Result<Request> {
        let Options { prompt, samples, temperature, top_p, max_new_tokens, seed } = self.options;
        Ok(Request {
            messages: answer::turn(images.len(), prompt),
            images,
            tiles: Vec::new(),
            max_new_tokens: *max_new_tokens,
            sampling: Sampling { temperature: *temperature as f32, top_p: *top_p as f32 },
            samples: (*samples).max(1),
            seed: random::mix(*seed, &[random::hash(&record.id)]),
            draft: None,
        })
    }

    /// A question or answer that the input has would be mistaken for the annotator's.
    fn base(&self, record: &Record) -> Record {
        let image = record.image.as_ref().map(|image| self.rebase.path(image));
        Record { id: record.id.clone(), image, extra: record.extra.clone(), ..Record::default() }
    }

    fn yields(&self, record: &Record, completions: Vec<Completion>) -> Vec<Record> {
        let record = |completion: Completion| {
            let parsed = self.parser.parse(&completion.text);
            let rejected = parsed.is_none().then(|| "unparsed".to_string());
            let (question, answer) = parsed.unzip();
            let annotation = Some(completion.text);
            Record { question, answer, annotation, rejected, ..self.base(record) }
        };
        completions.into_iter().map(record).collect()
    }
}

/// Finds question and answer in what the annotator wrote.
pub struct Parser {
    question: Regex,
    answer: Regex,
}

impl Parser {
    /// The expressions of the paper's code. Python's `\s` has U+001C to U+001F, which Rust's has not.
    pub fn new() -> Result<Parser> {
        let compile = |text| Regex::new(text).map_err(|e| Error::Failure(e.to_string()));
        Ok(Parser {
            question: compile(r"(?i)Question:[\s\x1c-\x1f]*(.*?)\?")?,
            answer: compile(r"(?i)Answer:[\s\x1c-\x1f]*(.*)")?,
        })
    }

    /// The question with its mark, and the answer, both trimmed; `None` if one is missing or empty.
    pub fn parse(&self, text: &str) -> Option<(String, String)> {
        let question = self.question.captures(text)?.get(1)?.as_str().trim();
        let answer = self.answer.captures(text)?.get(1)?.as_str().trim();
        (!question.is_empty() && !answer.is_empty()).then(|| (format!("{question}?"), answer.to_string()))
    }
}
