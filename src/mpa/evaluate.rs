//! Scores on questions whose answers are known.
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::benchmarks::{Benchmark, Files};
use crate::data::files::{self, Rebase};
use crate::data::metrics::{Norm, correct};
use crate::data::official::Metric;
use crate::data::records::{self, Reader};
use crate::error::{Error, Result};
use crate::mpa::engine::Answerer;
use crate::mpa::predict::{self, Options};
use crate::mpa::progress::Progress;
use crate::mpa::score;

/// scores.json. Both scores are fractions of `records`; a picture that cannot be read counts as wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    pub records: usize,
    pub unreadable: usize,
    /// Of a benchmark: what `accuracy` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// The prediction equals one of the answers (`metrics::correct`).
    pub accuracy: f64,
    /// One of the answers is found inside the prediction (the paper's rule of selection).
    pub contains: f64,
}

/// What is asked, and the metric of the benchmark that it is of, if it is of one.
#[derive(Clone, Copy)]
pub struct Questions<'a> {
    pub file: &'a Path,
    pub metric: Option<Metric>,
}

/// Answers `asked` into `out`/predictions.jsonl (goes on where it ends) and writes `out`/scores.json.
pub fn run(
    name: &str,
    asked: Questions<'_>,
    options: &Options,
    answerer: &dyn Answerer,
    out: &Path,
    batch: usize,
    progress: &Progress,
) -> Result<Scores> {
    records::check(asked.file, &["question", "answer"])?;
    let predictions = out.join("predictions.jsonl");
    // What is wanted is not what is said: no drafts.
    let options = &Options { drafts: false, ..options.clone() };
    predict::run(name, asked.file, options, answerer, &predictions, batch, progress)?;
    let scores = score(&predictions, asked.metric)?;
    files::write_json(&out.join("scores.json"), &scores)?;
    Ok(scores)
}

/// Scores of a file of predictions; `accuracy` is by `metric`, if there is one.
pub fn score(predictions: &Path, metric: Option<Metric>) -> Result<Scores> {
    let norm = Norm::new()?;
    let (mut records, mut unreadable, mut exact, mut within) = (0_usize, 0, 0.0, 0_usize);
    for record in Reader::open(predictions)? {
        let record = record?;
        records += 1;
        if record.rejected.is_some() {
            unreadable += 1;
            continue;
        }
        let answers = record.need_answers(predictions)?;
        let prediction = record.need(predictions, "prediction")?;
        exact += match metric {
            Some(metric) => metric.score(&norm, prediction, &answers),
            None => f64::from(u8::from(correct(prediction, &answers))),
        };
        within += usize::from(answers.iter().any(|answer| norm.contains(prediction, answer)));
    }
    if records == 0 {
        return Err(Error::input(predictions, "holds no records, so there is nothing to score"));
    }
    let share = |sum: f64| sum / records as f64;
    Ok(Scores { records, unreadable, metric, accuracy: share(exact), contains: share(within as f64) })
}

/// Answers a benchmark's questions into `out`/predictions.jsonl (goes on where it ends) and writes submission.json beside it; if
/// there are answers, scores them with its official metric, and writes scores.json and per_question.jsonl too. questions.jsonl is the benchmark as
/// `predict` takes it.
pub fn on_benchmark(
    files: &Files<'_>,
    images: &Path,
    options: &Options,
    answerer: &dyn Answerer,
    out: &Path,
    batch: usize,
    progress: &Progress,
) -> Result<Option<score::Scores>> {
    let (questions, predictions) = (out.join("questions.jsonl"), out.join("predictions.jsonl"));
    let answered = list(files, images, &questions)?;
    let options = &Options { drafts: false, ..options.clone() };
    predict::run("evaluate", &questions, options, answerer, &predictions, batch, progress)?;
    let entries = score::submission(&predictions, files.benchmark == Benchmark::Chartqa)?;
    files::write_json(&out.join("submission.json"), &entries)?;
    if !answered {
        return Ok(None);
    }
    let scores = score::run(files, files.benchmark.metric(), &predictions)?;
    files::write(&out.join("per_question.jsonl"), &scores.lines()?)?;
    files::write_json(&out.join("scores.json"), &scores)?;
    Ok(Some(scores))
}

/// Reads a benchmark through before anything is written or a model is loaded. All of its questions have answers, or none; some of its pictures are
/// there, and of the others, whose questions score 0, it is said how many.
pub fn check(files: &Files<'_>, images: &Path, progress: &Progress) -> Result<()> {
    let (mut answered, mut without) = (false, None);
    let (mut pictures, mut gone) = (HashSet::new(), Vec::new());
    for record in score::asked(files)? {
        let record = record?;
        for (key, there) in [("question", record.question.is_some()), ("picture", record.image.is_some())] {
            if !there {
                let what = format!("question_id {} has no {key}", record.id);
                return Err(Error::line(files.list(), record.line, what));
            }
        }
        if let Some(image) = record.image.as_ref().filter(|image| pictures.insert((*image).clone()))
            && files.locate(images, image).symlink_metadata().is_err()
        {
            gone.push(image.clone());
        }
        if score::has_answers(&record) {
            answered = true;
        } else {
            without.get_or_insert(record);
        }
    }
    if let Some(first) = gone.first() {
        let (gone, of, list) = (gone.len(), pictures.len(), files.list().display());
        let what = format!("has {gone} of the {of} pictures of {list} not, such as {first:?}");
        if gone == of {
            return Err(Error::input(images, what));
        }
        progress.warn(&format!("{}: {what}: their questions score 0", images.display()));
    }
    match without {
        Some(record) if answered => Err(score::unanswered(files, &record)),
        None if !answered => Err(Error::input(files.annotations, "holds no questions")),
        _ => Ok(()),
    }
}

/// Writes the benchmark's records one by one, with paths of pictures from `to`'s folder. Returns whether there are answers.
fn list(files: &Files<'_>, images: &Path, to: &Path) -> Result<bool> {
    files::make_parent(to)?;
    let rebase = Rebase::folders(images, files::folder_of(to))?;
    let hidden = to.with_file_name(".questions.jsonl.tmp");
    let io = |e| Error::io(to, e);
    let mut file = BufWriter::new(File::create(&hidden).map_err(io)?);
    let mut answered = false;
    for record in score::asked(files)? {
        let mut record = record?;
        answered |= score::has_answers(&record);
        let image = record.image.take().ok_or_else(|| {
            let what = format!("question_id {} names no picture", record.id);
            Error::line(files.list(), record.line, what)
        })?;
        let found = files.locate(images, &image);
        let found = found.strip_prefix(images).unwrap_or(&found);
        record.image = Some(rebase.path(found.to_str().unwrap_or(&image)));
        file.write_all(&record.to_line()?).map_err(io)?;
    }
    let file = file.into_inner().map_err(|e| Error::io(to, e.into_error()))?;
    file.sync_all().map_err(io)?;
    fs::rename(&hidden, to).map_err(io)?;
    Ok(answered)
}
