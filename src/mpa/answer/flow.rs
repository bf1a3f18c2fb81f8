//! What a model is asked and what it says, in the order of the records: answers come in any order, and wait for those before them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use super::{Job, Ready, Stage, rejected};
use crate::data::append::Appender;
use crate::data::records::Record;
use crate::error::{Error, Result};
use crate::models::engine::{Exchange, Next};
use crate::models::generate::{Completion, Request};
use crate::models::image::{Rgb, Tiles};
use crate::mpa::progress::{Meter, Progress};

/// Completions, or the kind of and the reason for a rejection.
type Answer = Result<Vec<Completion>, (&'static str, String)>;

pub(super) struct Flow<'a> {
    stage: &'a dyn Stage,
    batches: Receiver<Result<Ready>>,
    requests: VecDeque<Request>,
    /// Records that are not written yet, in order.
    slots: VecDeque<Slot>,
    /// Requests seen so far.
    asked: usize,
    /// The reader's last word, told when all before it is answered.
    failed: Option<Error>,
    total: usize,
    out: &'a mut Appender,
    meter: Option<Meter>,
    progress: &'a Progress,
    /// Written records for another stage to go on from, if there is one.
    passed: Option<Vec<Passed>>,
}

/// A record with its pictures, which are read and cut up.
pub(super) struct Passed {
    record: Record,
    images: Vec<Arc<Rgb>>,
    tiles: Vec<Arc<Tiles>>,
}

struct Slot {
    job: Job,
    /// Which request is about it; `None`: there is none.
    request: Option<usize>,
    /// Completions wanted.
    samples: usize,
    answer: Option<Answer>,
    /// If its records are passed on.
    images: Vec<Arc<Rgb>>,
    tiles: Vec<Arc<Tiles>>,
}

impl Slot {
    fn new(job: Job) -> Slot {
        Slot { job, request: None, samples: 0, answer: None, images: Vec::new(), tiles: Vec::new() }
    }
}

impl<'a> Flow<'a> {
    pub fn new(
        stage: &'a dyn Stage,
        batches: Receiver<Result<Ready>>,
        total: usize,
        out: &'a mut Appender,
        progress: &'a Progress,
    ) -> Self {
        let (requests, slots) = (VecDeque::new(), VecDeque::new());
        Flow {
            stage,
            batches,
            requests,
            slots,
            asked: 0,
            failed: None,
            total,
            out,
            meter: None,
            progress,
            passed: None,
        }
    }

    /// The same, with records for another stage to go on from.
    pub fn passing_on(self) -> Self {
        Flow { passed: Some(Vec::new()), ..self }
    }

    /// Records written since the last call.
    pub fn passed(&mut self) -> impl Iterator<Item = Passed> + use<> {
        self.passed.as_mut().map(std::mem::take).into_iter().flatten()
    }

    /// A record that another stage has written.
    pub fn ask(&mut self, passed: Passed) -> Result<()> {
        let Passed { record, images, tiles } = passed;
        let request = self.stage.request(&record, images)?;
        let job = Job { ids: self.stage.ids(&record), record, skip: 0 };
        self.push(Slot::new(job), Request { tiles, ..request });
        Ok(())
    }

    /// The next request that is at hand.
    pub fn pop(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// Whether there is anything to ask.
    pub fn has_requests(&mut self) -> Result<bool> {
        while self.requests.is_empty() {
            let Ok(ready) = self.batches.recv() else { break };
            self.take(ready)?;
        }
        Ok(!self.requests.is_empty())
    }

    fn take(&mut self, ready: Result<Ready>) -> Result<()> {
        let ready = match ready {
            Ok(ready) => ready,
            Err(error) => {
                self.failed = Some(error);
                return Ok(());
            }
        };
        let (stage, progress, total) = (self.stage, self.progress, self.total);
        self.meter.get_or_insert_with(|| progress.start(stage.name(), total, ready.seen));
        let mut requests = ready.requests.into_iter();
        for (job, asked) in ready.jobs.into_iter().zip(ready.asked) {
            let slot = Slot::new(job);
            match asked {
                Err(reason) => {
                    self.slots.push_back(Slot { answer: Some(Err(("unreadable", reason))), ..slot });
                }
                Ok(()) => {
                    let request = requests.next().ok_or_else(|| {
                        Error::Failure(format!("no request about {:?}", slot.job.record.id))
                    })?;
                    self.push(slot, request);
                }
            }
        }
        self.write()
    }

    fn push(&mut self, slot: Slot, request: Request) {
        let (mut slot, passes) = (slot, self.passed.is_some());
        (slot.request, slot.samples) = (Some(self.asked), request.samples);
        if passes {
            (slot.images, slot.tiles) = (request.images.clone(), request.tiles.clone());
        }
        self.asked += 1;
        self.requests.push_back(request);
        self.slots.push_back(slot);
    }

    /// Writes what is answered, as far as all before it is.
    fn write(&mut self) -> Result<()> {
        while let Some(answer) = self.slots.front_mut().and_then(|slot| slot.answer.take()) {
            let Some(Slot { job, images, tiles, .. }) = self.slots.pop_front() else { break };
            match answer {
                Ok(completions) => {
                    let records = self.stage.yields(&job.record, completions);
                    for (mut record, id) in records.into_iter().zip(job.ids).skip(job.skip) {
                        record.id = id;
                        self.out.append(&record)?;
                        if let Some(passed) = self.passed.as_mut().filter(|_| record.rejected.is_none()) {
                            let (images, tiles) = (images.clone(), tiles.clone());
                            passed.push(Passed { record, images, tiles });
                        }
                    }
                }
                Err((kind, reason)) => {
                    let picture = self.stage.picture(&job.record);
                    self.progress.skipped(&job.record.id, picture.as_deref(), &reason);
                    self.out.append(&rejected(self.stage.base(&job.record), kind, reason))?;
                }
            }
            if let Some(meter) = &mut self.meter {
                meter.advance(1);
            }
        }
        Ok(())
    }

    /// When all is answered; the error that the reader met, if there was one.
    pub fn finish(self) -> Result<()> {
        if let Some(meter) = self.meter {
            meter.finish();
        }
        if let Some(error) = self.failed {
            return Err(error);
        }
        match self.slots.front() {
            None => Ok(()),
            Some(slot) => Err(Error::op(
                "generate",
                "an answer to each request",
                format!("none to {:?}", slot.job.record.id),
            )),
        }
    }
}

impl Exchange for Flow<'_> {
    fn next(&mut self, wait: bool) -> Result<Next> {
        while self.requests.is_empty() && self.failed.is_none() {
            let ready = match wait {
                true => self.batches.recv().map_err(|_| TryRecvError::Disconnected),
                false => self.batches.try_recv(),
            };
            match ready {
                Ok(ready) => self.take(ready)?,
                Err(TryRecvError::Empty) => return Ok(Next::Later),
                Err(TryRecvError::Disconnected) => break,
            }
        }
        Ok(self.requests.pop_front().map_or(Next::End, Next::Request))
    }

    fn done(&mut self, index: usize, answer: Result<Vec<Completion>>) -> Result<()> {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.request == Some(index)) else {
            return Err(Error::op(
                "generate",
                "one answer a request",
                format!("another one to request {index}"),
            ));
        };
        slot.answer = Some(match answer {
            Ok(completions) if completions.len() != slot.samples => {
                let expected = format!("{} completions", slot.samples);
                return Err(Error::op("generate", expected, completions.len().to_string()));
            }
            Ok(completions) => Ok(completions),
            Err(Error::OutOfMemory { .. }) => {
                Err(("out of memory", "it does not fit into the device's memory, even alone".into()))
            }
            Err(error @ Error::TooLong { .. }) => Err(("too long", error.to_string())),
            Err(error @ Error::Picture { .. }) => Err(("unreadable", error.to_string())),
            Err(error) => return Err(error),
        });
        self.write()
    }
}
