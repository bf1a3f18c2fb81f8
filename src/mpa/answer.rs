//! Asking a model about records: batches, pictures, resume. What `annotate`, `predict` and `evaluate` share.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use rayon::prelude::*;

use crate::data::append::{Appender, Done};
use crate::data::images;
use crate::data::records::{Reader, Record};
use crate::error::{Error, Result};
use crate::models::generate::{Completion, Request};
use crate::models::image::{Rgb, Tiles};
use crate::models::prompt::{Content, Message};
use crate::mpa::engine::Answerer;
use crate::mpa::progress::Progress;

mod flow;
mod relay;

use flow::Flow;
use relay::Relay;

/// What a stage asks about a record, and what it makes of the completions.
pub trait Stage: Sync {
    /// Shown with the progress.
    fn name(&self) -> &str;

    /// Ids of the records that come of a record when it is answered; at least one.
    fn ids(&self, record: &Record) -> Vec<String>;

    /// Where the picture is; `None` for a question without one.
    fn picture(&self, record: &Record) -> Option<PathBuf>;

    /// Whether this program has seen the record's picture before: if it is not there any more, that is no fault of the record.
    fn seen(&self, _record: &Record) -> bool {
        false
    }

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

/// Asks about each of `total` `records` that `out` does not have yet, about `batch` at a time, and appends what comes of it in their order.
/// Pictures are read and cut up ahead, while the model answers. A picture that cannot be read gives one record with `rejected`, and so does
/// a record that does not fit into the device's memory or the model's context. Started again after any interruption, it ends with the same bytes.
pub fn run(
    stage: &dyn Stage,
    records: impl Iterator<Item = Result<Record>> + Send,
    total: usize,
    answerer: &dyn Answerer,
    out: &mut Appender,
    batch: usize,
    progress: &Progress,
) -> Result<()> {
    ahead(stage, records, answerer, out, batch, |batches, out| {
        let mut flow = Flow::new(stage, batches, total, out, progress);
        // A model is loaded when something is asked of it.
        if flow.has_requests()? {
            answerer.answer(batch.max(1), &mut flow)?;
        }
        flow.finish()
    })
}

/// `run`, and a second stage: about each record that comes of the first one, the same model is asked while it has the picture at hand. `next` is
/// where these answers go; it has those to all records that `out` has.
pub fn run_two(
    [stage, second]: [&dyn Stage; 2],
    records: impl Iterator<Item = Result<Record>> + Send,
    total: usize,
    answerer: &dyn Answerer,
    [out, next]: [&mut Appender; 2],
    batch: usize,
    progress: &Progress,
) -> Result<()> {
    ahead(stage, records, answerer, out, batch, |batches, out| {
        let none = mpsc::channel().1;
        let first = Flow::new(stage, batches, total, out, progress);
        let mut relay = Relay::new(first, Flow::new(second, none, total, next, progress));
        if relay.has_requests()? {
            answerer.answer(batch.max(1), &mut relay)?;
        }
        relay.finish()
    })
}

/// `Ok` if what `out` has was made of these records.
pub fn check(
    stage: &dyn Stage,
    mut records: impl Iterator<Item = Result<Record>>,
    out: &Appender,
) -> Result<()> {
    let mut resume = Resume { done: out.done(), at: 0 };
    while resume.at < resume.done.len()
        && let Some(record) = records.next()
    {
        let record = record?;
        resume.skip(out.path(), &stage.base(&record), &stage.ids(&record))?;
    }
    resume.end(out.path())
}

/// `work`, with what is to be asked being read meanwhile.
fn ahead(
    stage: &dyn Stage,
    records: impl Iterator<Item = Result<Record>> + Send,
    answerer: &dyn Answerer,
    out: &mut Appender,
    batch: usize,
    work: impl FnOnce(mpsc::Receiver<Result<Ready>>, &mut Appender) -> Result<()>,
) -> Result<()> {
    let (done, path, batch) = (out.done().to_vec(), out.path().to_path_buf(), batch.max(1));
    std::thread::scope(|scope| {
        // Some wait while others are answered; the reader stops when the answering side has gone.
        let (send, batches) = mpsc::sync_channel(1);
        scope.spawn(move || {
            let resume = Resume { done: &done, at: 0 };
            let mut reader = Ahead { stage, answerer, resume, out: &path, batch, send, last: Vec::new() };
            if let Err(error) = reader.read(records) {
                let _ = reader.send.send(Err(error));
            }
        });
        work(batches, out)
    })
}

struct Job {
    record: Record,
    ids: Vec<String>,
    /// How many of its records are in the file already.
    skip: usize,
}

/// A batch with its pictures read.
struct Ready {
    jobs: Vec<Job>,
    /// A request for each job, or why there is none, in the same order.
    asked: Vec<Result<(), String>>,
    requests: Vec<Request>,
    /// Records of the input before the first job.
    seen: usize,
}

/// Reads batches ahead of the model.
struct Ahead<'a> {
    stage: &'a dyn Stage,
    answerer: &'a dyn Answerer,
    resume: Resume<'a>,
    out: &'a Path,
    batch: usize,
    send: mpsc::SyncSender<Result<Ready>>,
    /// The pictures of the last batch: the next one often goes on with one of them.
    last: Vec<(PathBuf, Arc<Rgb>, Option<Arc<Tiles>>)>,
}

impl Ahead<'_> {
    /// Sends all that is not done. What comes before a faulty record is still sent.
    fn read(&mut self, records: impl Iterator<Item = Result<Record>>) -> Result<()> {
        let (mut jobs, mut first) = (Vec::new(), 0);
        for (seen, record) in records.enumerate() {
            let next = record.and_then(|record| {
                let ids = self.stage.ids(&record);
                let skip = self.resume.skip(self.out, &self.stage.base(&record), &ids)?;
                Ok(skip.map(|skip| Job { record, ids, skip }))
            });
            match next {
                Ok(Some(job)) => {
                    if jobs.is_empty() {
                        first = seen;
                    }
                    jobs.push(job);
                }
                Ok(None) => {}
                Err(error) => {
                    self.pass_on(std::mem::take(&mut jobs), first)?;
                    return Err(error);
                }
            }
            if jobs.len() == self.batch && !self.pass_on(std::mem::take(&mut jobs), first)? {
                return Ok(());
            }
        }
        // Lines of another input are told before anything is added to them.
        self.resume.end(self.out)?;
        self.pass_on(jobs, first)?;
        Ok(())
    }

    /// False if nobody waits for it any more.
    fn pass_on(&mut self, jobs: Vec<Job>, seen: usize) -> Result<bool> {
        if jobs.is_empty() {
            return Ok(true);
        }
        let ready = self.ready(jobs, seen)?;
        Ok(self.send.send(Ok(ready)).is_ok())
    }

    fn ready(&mut self, jobs: Vec<Job>, seen: usize) -> Result<Ready> {
        let paths: Vec<Option<PathBuf>> = jobs.iter().map(|job| self.stage.picture(&job.record)).collect();
        let different: BTreeSet<&PathBuf> = paths.iter().flatten().collect();
        let last = std::mem::take(&mut self.last);
        let kept = |path: &PathBuf| last.iter().find(|(known, ..)| known == path);
        let read = |path: &PathBuf| {
            let picture = match kept(path) {
                Some((_, picture, _)) => Ok(Arc::clone(picture)),
                None => images::try_read(path)?.map(Arc::new),
            };
            let seen = || {
                let mut of = jobs.iter().zip(&paths).filter(|(_, its)| its.as_ref() == Some(path));
                of.any(|(job, _)| self.stage.seen(&job.record))
            };
            // A link that leads nowhere is there all the same.
            if picture.is_err() && path.symlink_metadata().is_err() && seen() {
                return Err(Error::input(path, "is gone, and has been there before"));
            }
            Ok((path.clone(), picture))
        };
        let different: Vec<&PathBuf> = different.into_iter().collect();
        let pictures: HashMap<PathBuf, _> = different.into_par_iter().map(read).collect::<Result<_>>()?;
        let (mut requests, mut asked) = (Vec::new(), Vec::new());
        for (job, path) in jobs.iter().zip(&paths) {
            let picture = path.as_ref().and_then(|path| pictures.get(path)).cloned();
            match picture.transpose() {
                Ok(picture) => {
                    let mut request = self.stage.request(&job.record, picture.into_iter().collect())?;
                    request.tiles.extend(path.as_ref().and_then(kept).and_then(|(.., tiles)| tiles.clone()));
                    requests.push(request);
                    asked.push(Ok(()));
                }
                Err(reason) => asked.push(Err(reason)),
            }
        }
        self.answerer.prepare(&mut requests)?;
        let tiles = |picture: &Arc<Rgb>| {
            let same = |r: &&Request| r.images.first().is_some_and(|image| Arc::ptr_eq(image, picture));
            requests.iter().find(same).and_then(|request| request.tiles.first().cloned())
        };
        let good = pictures.into_iter().filter_map(|(path, picture)| Some((path, picture.ok()?)));
        self.last = good.map(|(path, picture)| (path, Arc::clone(&picture), tiles(&picture))).collect();
        Ok(Ready { jobs, asked, requests, seen })
    }
}

fn rejected(base: Record, kind: &str, reason: String) -> Record {
    Record { rejected: Some(kind.to_string()), reason: Some(reason), ..base }
}

/// Walks along what the output file had at the start, beside the input.
struct Resume<'a> {
    done: &'a [Done],
    at: usize,
}

impl Resume<'_> {
    /// How many records of the next input, of which `base` comes, are there, or `None` if it is done.
    fn skip(&mut self, out: &Path, base: &Record, ids: &[String]) -> Result<Option<usize>> {
        let rest = self.done.get(self.at..).unwrap_or_default();
        let Some(first) = rest.first() else {
            return Ok(Some(0));
        };
        let have = rest.iter().zip(ids).take_while(|(done, id)| done.id == **id).count();
        let rejected = have == 0 && first.id == base.id;
        for done in &rest[..have + usize::from(rejected)] {
            self.same(out, base, done)?;
            self.at += 1;
        }
        if rejected || have == ids.len() {
            return Ok(None);
        }
        if have == 0 || have < rest.len() {
            let want = ids.get(have).unwrap_or(&base.id);
            return Err(self.foreign(out, &format!("where {want:?} belongs")));
        }
        Ok(Some(have))
    }

    /// What `base` has must be in what was made of it.
    fn same(&self, out: &Path, base: &Record, done: &Done) -> Result<()> {
        let names = ["image", "question", "answer", "answers"];
        let pairs = base.texts().into_iter().zip(done.texts);
        match names
            .iter()
            .zip(pairs)
            .skip(usize::from(done.unreadable))
            .find(|(_, (base, done))| base.is_some() && base != done)
        {
            Some((name, _)) => Err(self.foreign(out, &format!("with another `{name}` than the input"))),
            None => Ok(()),
        }
    }

    fn end(&self, out: &Path) -> Result<()> {
        if self.at < self.done.len() {
            return Err(self.foreign(out, "which is not in the input"));
        }
        Ok(())
    }

    fn foreign(&self, out: &Path, what: &str) -> Error {
        let id = self.done.get(self.at).map_or("", |done| &done.id);
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
        for record in Reader::open_growing(path)? {
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
