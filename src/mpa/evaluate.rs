//! Scores on questions whose answers are known.
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::files;
use crate::data::metrics::{Norm, correct};
use crate::data::records::{self, Reader};
use crate::error::{Error, Result};
use crate::mpa::engine::Answerer;
use crate::mpa::predict::{self, Options};
use crate::mpa::progress::Progress;

/// scores.json. Both scores are fractions of `records`; a picture that cannot be read counts as wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    pub records: usize,
    pub unreadable: usize,
    /// The prediction equals one of the answers (`metrics::correct`).
    pub accuracy: f64,
    /// One of the answers is found inside the prediction (the paper's rule of selection).
    pub contains: f64,
}

/// Answers `questions` into `out`/predictions.jsonl (goes on where it ends) and writes `out`/scores.json.
pub fn run(
    name: &str,
    questions: &Path,
    options: &Options,
    answerer: &dyn Answerer,
    out: &Path,
    batch: usize,
    progress: &Progress,
) -> Result<Scores> {
    records::check(questions, &["question", "answer"])?;
    let predictions = out.join("predictions.jsonl");
    // What is wanted is not what is said: no drafts.
    let options = &Options { drafts: false, ..options.clone() };
    predict::run(name, questions, options, answerer, &predictions, batch, progress)?;
    let scores = score(&predictions)?;
    files::write_json(&out.join("scores.json"), &scores)?;
    Ok(scores)
}

/// Scores of a file of predictions.
pub fn score(predictions: &Path) -> Result<Scores> {
    let norm = Norm::new()?;
    let (mut records, mut unreadable, mut exact, mut within) = (0_usize, 0, 0_usize, 0_usize);
    for record in Reader::open(predictions)? {
        let record = record?;
        records += 1;
        if record.rejected.is_some() {
            unreadable += 1;
            continue;
        }
        let answers = record.need_answers(predictions)?;
        let prediction = record.need(predictions, "prediction")?;
        exact += usize::from(correct(prediction, &answers));
        within += usize::from(answers.iter().any(|answer| norm.contains(prediction, answer)));
    }
    if records == 0 {
        return Err(Error::input(predictions, "holds no records, so there is nothing to score"));
    }
    let share = |count: usize| count as f64 / records as f64;
    Ok(Scores { records, unreadable, accuracy: share(exact), contains: share(within) })
}
