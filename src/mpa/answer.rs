//! Asking a model about records: batches, pictures, resume. What `annotate`, `predict` and `evaluate` share.
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::data::append::Appender;
use crate::data::images;
use crate::data::records::{Reader, Record};
use crate::error::{Error, Result};
use crate::models::generate::{Completion, Request};
use crate::models::image::Rgb;
use crate::models::prompt::{Content, Message};
use crate::mpa::engine::Answerer;
use crate::mpa::progress::{Meter, Progress};

/// What a stage asks about a record, and what it makes of the completions.
pub trait Stage {
    /// Shown with the progress.
    fn name(&self) -> &str;

    /// Ids of the records that come of a record when it is answered; at least one.
    fn ids(&self, record: &Record) -> Vec<String>;

    /// Where the picture is; `None` for a question without one.
    fn picture(&self, record: &Record) -> Option<PathBuf>;

    fn request(&self, record: &Record, images: Vec<Arc<Rgb>>) -> Result<Request>;

    /// The record as the output file has it, still without what the model says.
    fn base(&self, record: &Record) -> Record;

    /// One record an id of `ids`, in that order.
    fn yields(&self, record: &Record, completions: Vec<Completion>) -> Vec<Record>;
}

/// A user's turn: the pictures, then the text.
pub fn turn(images: usize, text: &str) -> Vec<Message> {
    let mut content = vec![Content::Image; images];
    content.push(Content::Text(text.to_string()));
    vec![Message::new("user", content)]
}

/// Asks about each of `total` `records` that `out` does not have yet, `batch` at a time, and appends what comes of it in their order.
/// A picture that cannot be read gives one record with `rejected`. Started again after any interruption, it ends with the same bytes.
pub fn run(
    stage: &dyn Stage,
    records: impl Iterator<Item = Result<Record>>,
    total: usize,
    answerer: &dyn Answerer,
    out: &mut Appender,
    batch: usize,
    progress: &Progress,
) -> Result<()> {
    let done = out.done().to_vec();
    let mut resume = Resume { done: &done, at: 0 };
    let mut meter = None;
    let mut pending: Vec<Job> = Vec::new();
    for (seen, record) in records.enumerate() {
        let record = record?;
        let ids = stage.ids(&record);
        if let Some(skip) = resume.skip(out.path(), &record.id, &ids)? {
            let meter = meter.get_or_insert_with(|| progress.start(stage.name(), total, seen));
            pending.push(Job { record, ids, skip });
            if pending.len() == batch.max(1) {
                work(stage, std::mem::take(&mut pending), answerer, out, meter, progress)?;
            }
        }
    }
    resume.end(out.path())?;
    if let Some(mut meter) = meter {
        work(stage, pending, answerer, out, &mut meter, progress)?;
        meter.finish();
    }
    Ok(())
}

struct Job {
    record: Record,
    ids: Vec<String>,
    /// How many of its records are in the file already.
    skip: usize,
}

fn work(
    stage: &dyn Stage,
    jobs: Vec<Job>,
    answerer: &dyn Answerer,
    out: &mut Appender,
    meter: &mut Meter,
    progress: &Progress,
) -> Result<()> {
    let mut pictures = HashMap::new();
    let mut requests = Vec::new();
    let mut asked: Vec<Result<(), String>> = Vec::new();
    for job in &jobs {
        let images = match stage.picture(&job.record) {
            None => Ok(Vec::new()),
            Some(path) => {
                let read = pictures.entry(path).or_insert_with_key(|path| shared(path));
                read.clone().map(|picture| vec![picture])
            }
        };
        match images {
            Ok(images) => {
                requests.push(stage.request(&job.record, images)?);
                asked.push(Ok(()));
            }
            Err(reason) => asked.push(Err(reason)),
        }
    }
    let answers = if requests.is_empty() { Vec::new() } else { answerer.generate(&requests)? };
    check(&requests, &answers)?;
    let mut answers = answers.into_iter();
    for (job, asked) in jobs.into_iter().zip(asked) {
        match asked {
            Ok(()) => {
                let completions = answers.next().unwrap_or_default();
                let records = stage.yields(&job.record, completions);
                for (mut record, id) in records.into_iter().zip(job.ids).skip(job.skip) {
                    record.id = id;
                    out.append(&record)?;
                }
            }
            Err(reason) => {
                progress.warn(&format!("skipped {:?}: {reason}", job.record.id));
                out.append(&unreadable(stage.base(&job.record), reason))?;
            }
        }
        meter.advance(1);
    }
    Ok(())
}

/// The model kept its side of the contract.
fn check(requests: &[Request], answers: &[Vec<Completion>]) -> Result<()> {
    let wanted: Vec<usize> = requests.iter().map(|r| r.samples).collect();
    let got: Vec<usize> = answers.iter().map(Vec::len).collect();
    if wanted != got {
        return Err(Error::op("generate", format!("{wanted:?} completions"), format!("{got:?}")));
    }
    Ok(())
}

fn unreadable(base: Record, reason: String) -> Record {
    Record { rejected: Some("unreadable".to_string()), reason: Some(reason), ..base }
}

fn shared(path: &Path) -> Result<Arc<Rgb>, String> {
    images::try_read(path).map(Arc::new)
}

/// Walks along what the output file had at the start, beside the input.
struct Resume<'a> {
    done: &'a [String],
    at: usize,
}

impl Resume<'_> {
    /// How many records of the next input are there, or `None` if it is done.
    fn skip(&mut self, out: &Path, id: &str, ids: &[String]) -> Result<Option<usize>> {
        let rest = self.done.get(self.at..).unwrap_or_default();
        let Some(first) = rest.first() else {
            return Ok(Some(0));
        };
        let have = rest.iter().zip(ids).take_while(|(a, b)| a == b).count();
        self.at += have;
        if have == ids.len() {
            return Ok(None);
        }
        if have == 0 && first == id {
            self.at += 1; // it was rejected
            return Ok(None);
        }
        if have == 0 || have < rest.len() {
            let want = ids.get(have).map_or(id, String::as_str);
            return Err(self.foreign(out, &format!("where {want:?} belongs")));
        }
        Ok(Some(have))
    }

    fn end(&self, out: &Path) -> Result<()> {
        if self.at < self.done.len() {
            return Err(self.foreign(out, "which is not in the input"));
        }
        Ok(())
    }

    fn foreign(&self, out: &Path, what: &str) -> Error {
        let id = self.done.get(self.at).map_or("", String::as_str);
        let advice = "it was made from other input: remove it or write to another file";
        Error::line(out, self.at + 1, format!("has id {id:?} {what}; {advice}"))
    }
}

/// How many records a file of a stage has, and how many of them are rejected, by reason.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Tally {
    pub records: usize,
    pub rejected: BTreeMap<String, usize>,
}

impl Tally {
    pub fn of(path: &Path) -> Result<Tally> {
        let mut tally = Tally::default();
        for record in Reader::open(path)? {
            tally.records += 1;
            if let Some(reason) = record?.rejected {
                *tally.rejected.entry(reason).or_default() += 1;
            }
        }
        Ok(tally)
    }

    /// Records that are not rejected.
    pub fn good(&self) -> usize {
        self.records - self.rejected.values().sum::<usize>()
    }
}
