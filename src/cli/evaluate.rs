use std::path::Path;

use serde::Serialize;
use serde_json::json;

use crate::data::benchmarks::{Benchmark, Files};
use crate::error::{Error, Result};
use crate::mpa::evaluate;
use crate::mpa::predict::Options;
use crate::mpa::progress::Progress;

use super::{Output, args, compute, guard, predict};

/// Settings of an evaluation on a benchmark: those of `predict`, and the benchmark's files.
#[derive(Serialize)]
struct Settings<'a> {
    #[serde(flatten)]
    predict: predict::Settings<'a>,
    benchmark: Benchmark,
    annotations: &'a Path,
    images: &'a Path,
}

pub fn run(args: &args::Evaluate, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let options = predict::options(&args.ask)?;
    match (args.benchmark, &args.annotations, &args.images) {
        (Some(benchmark), Some(annotations), Some(images)) => {
            let files = Files { benchmark, annotations, questions: args.questions.as_deref() };
            on_benchmark(args, &files, images, &options, compute, progress)
        }
        _ => on_questions(args, &options, compute, progress),
    }
}

fn on_questions(
    args: &args::Evaluate,
    options: &Options,
    compute: &args::Compute,
    progress: &Progress,
) -> Result<Output> {
    let needed = || Error::Usage("--questions or --benchmark is needed".to_string());
    let questions = args.questions.as_deref().ok_or_else(needed)?;
    let adapter = args.adapter.as_deref();
    let engine = compute::native(compute, progress)?;
    let loading = args.loading.get();
    let model = predict::model(&engine, &args.model, adapter, progress)?.loading(loading);
    let (contents, dtype) = (model.contents()?, compute.dtype);
    let settings =
        predict::Settings { model: &args.model, adapter, contents, loading, dtype, questions, options };
    let _held = guard::folder(&args.out, &settings)?;
    let (batch, asked) = (args.ask.batch, evaluate::Questions { file: questions, metric: None });
    let scores = evaluate::run("evaluate", asked, options, &model, &args.out, batch, progress)?;
    let text = format!(
        "accuracy {:.4}, contains {:.4} on {} records ({} unreadable)",
        scores.accuracy, scores.contains, scores.records, scores.unreadable
    );
    Output::new(&scores, text)
}

fn on_benchmark(
    args: &args::Evaluate,
    files: &Files<'_>,
    images: &Path,
    options: &Options,
    compute: &args::Compute,
    progress: &Progress,
) -> Result<Output> {
    if !images.is_dir() {
        return Err(Error::input(images, "no such folder, expected the benchmark's pictures"));
    }
    evaluate::check(files, images, progress)?;
    let adapter = args.adapter.as_deref();
    let engine = compute::native(compute, progress)?;
    let loading = args.loading.get();
    let model = predict::model(&engine, &args.model, adapter, progress)?.loading(loading);
    let questions = files.list();
    let (contents, dtype) = (model.contents()?, compute.dtype);
    let predict =
        predict::Settings { model: &args.model, adapter, contents, loading, dtype, questions, options };
    let settings = Settings { predict, benchmark: files.benchmark, annotations: files.annotations, images };
    let _held = guard::folder(&args.out, &settings)?;
    let (out, batch) = (&args.out, args.ask.batch);
    let scores = evaluate::on_benchmark(files, images, options, &model, out, batch, progress)?;
    if let Some(scores) = scores {
        return Output::new(&scores, scores.table());
    }
    let submission = out.join("submission.json").display().to_string();
    let text = format!("no scores, since this split has no answers: {submission}");
    Output::new(&json!({"score": null, "submission": submission}), text)
}
