use crate::error::Result;
use crate::mpa::evaluate;
use crate::mpa::progress::Progress;

use super::{Output, args, compute, guard, predict};

pub fn run(args: &args::Evaluate, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let options = predict::options(&args.ask)?;
    let adapter = args.adapter.as_deref();
    let engine = compute::native(compute, progress)?;
    let loading = args.loading.get();
    let model = predict::model(&engine, &args.model, adapter, progress)?.loading(loading);
    let questions = &args.questions;
    guard::folder(
        &args.out,
        &predict::Settings { model: &args.model, adapter, loading, questions, options: &options },
    )?;
    let batch = args.ask.batch;
    let scores = evaluate::run("evaluate", questions, &options, &model, &args.out, batch, progress)?;
    let text = format!(
        "accuracy {:.4}, contains {:.4} on {} records ({} unreadable)",
        scores.accuracy, scores.contains, scores.records, scores.unreadable
    );
    Output::new(&scores, text)
}
