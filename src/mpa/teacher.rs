//! What the teacher says about a picture, in one go: questions and answers, and its own answers to these questions. Its model sees the picture
//! once. The files are those of `annotate` and then `predict`, to the byte.
use std::path::Path;

use crate::data::append::Appender;
use crate::error::{Error, Result};
use crate::mpa::answer;
use crate::mpa::engine::Answerer;
use crate::mpa::progress::Progress;
use crate::mpa::{annotate, predict};

/// `annotate::run` on `source` into `annotations`, and `predict::run` on these into `predictions`; goes on where the files end.
pub fn run(
    source: &Path,
    (annotation, prediction): (&annotate::Options, &predict::Options),
    answerer: &dyn Answerer,
    [annotations, predictions]: [&Path; 2],
    batch: usize,
    progress: &Progress,
) -> Result<()> {
    // Opening a file cuts half a line off.
    let (first, records, _) = annotate::open(source, annotation, annotations)?;
    answer::check(&first, records, &Appender::open(annotations)?)?;
    catch_up(prediction, answerer, [annotations, predictions], batch, progress)?;

    let (mut out, mut next) = (Appender::open(annotations)?, Appender::open(predictions)?);
    let (_, records, total) = annotate::open(source, annotation, annotations)?;
    let second = predict::stage("predict teacher", annotations, prediction, predictions)?;
    let outs = [&mut out, &mut next];
    answer::run_two([&first, &second], records, total, answerer, outs, batch, progress)?;
    out.finish()?;
    next.finish()
}

/// Answers to the annotations that are there from before.
fn catch_up(
    prediction: &predict::Options,
    answerer: &dyn Answerer,
    [annotations, predictions]: [&Path; 2],
    batch: usize,
    progress: &Progress,
) -> Result<()> {
    let is_empty = |path: &Path| Appender::open(path).map(|file| file.done().is_empty());
    if !is_empty(annotations)? {
        predict::run("predict teacher", annotations, prediction, answerer, predictions, batch, progress)?;
    } else if !is_empty(predictions)? {
        let what = format!("answers to {}, which is empty: remove it", annotations.display());
        return Err(Error::input(predictions, what));
    }
    Ok(())
}
