//! Answers to questions, greedy: what the Parity Identifier compares and the evaluation scores.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::append::Appender;
use crate::data::files::Rebase;
use crate::data::records::{self, Reader, Record};
use crate::error::Result;
use crate::models::generate::{Completion, Request};
use crate::models::image::Rgb;
use crate::mpa::answer::{self, Stage, Tally};
use crate::mpa::engine::Answerer;
use crate::mpa::progress::Progress;
use crate::mpa::prompts;
use crate::ops::sample::Sampling;

/// The key of a prediction for the mean log-probability, under the model, of the record's `answer` and the end of the turn.
pub const LOGPROB: &str = "logprob";

/// What decides a prediction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// The text that the model is given; `{question}` is replaced.
    pub prompt: String,
    pub max_new_tokens: usize,
    /// Whether a record's `answer` goes along as a draft, which says how likely it is and saves steps where it is the prediction.
    #[serde(skip, default = "yes")]
    pub drafts: bool,
}

fn yes() -> bool {
    true
}

/// Answers each record of `questions` that is not rejected into `out`; goes on where `out` ends. `name`: shown with the progress.
pub fn run(
    name: &str,
    questions: &Path,
    options: &Options,
    answerer: &dyn Answerer,
    out: &Path,
    batch: usize,
    progress: &Progress,
) -> Result<Tally> {
    let total = records::check(questions, &["question"])?;
    let mut appender = Appender::open(out)?;
    let stage = stage(name, questions, options, out)?;
    let records = Reader::open(questions)?.filter(|r| r.as_ref().map_or(true, |r| r.rejected.is_none()));
    answer::run(&stage, records, total, answerer, &mut appender, batch, progress)?;
    appender.finish()?;
    Tally::of(out)
}

pub(super) fn stage<'a>(
    name: &'a str,
    questions: &Path,
    options: &'a Options,
    out: &Path,
) -> Result<Predict<'a>> {
    let rebase = Rebase::new(questions, out)?;
    Ok(Predict { name, options, questions: questions.to_path_buf(), rebase })
}

pub(super) struct Predict<'a> {
    name: &'a str,
    options: &'a Options,
    questions: PathBuf,
    rebase: Rebase,
}

impl Stage for Predict<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn ids(&self, record: &Record) -> Vec<String> {
        vec![record.id.clone()]
    }

    fn picture(&self, record: &Record) -> Option<PathBuf> {
        record.image_path(&self.questions)
    }

    fn seen(&self, record: &Record) -> bool {
        record.annotation.is_some()
    }

    fn request(&self, record: &Record, images: Vec<Arc<Rgb>>) -> Result<Request> {
        let question = record.need(&self.questions, "question")?;
        Ok(Request {
            messages: answer::turn(images.len(), &prompts::fill(&self.options.prompt, question)),
            images,
            tiles: Vec::new(),
            max_new_tokens: self.options.max_new_tokens,
            sampling: Sampling { temperature: 0.0, top_p: 1.0 },
            samples: 1,
            seed: 0,
            draft: record.answer.clone().filter(|_| self.options.drafts),
        })
    }

    fn base(&self, record: &Record) -> Record {
        let image = record.image.as_ref().map(|image| self.rebase.path(image));
        Record { image, prediction: None, ..record.clone() }
    }

    fn yields(&self, record: &Record, completions: Vec<Completion>) -> Vec<Record> {
        let record = |c: Completion| {
            let mut base = self.base(record);
            base.extra.remove(LOGPROB);
            base.extra.extend(c.draft_logprob.map(|p| (LOGPROB.to_string(), p.into())));
            Record { prediction: Some(c.text.trim().to_string()), ..base }
        };
        completions.into_iter().map(record).collect()
    }
}
