use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::models::hub;
use crate::mpa::engine::{Contents, Lazy, Loading, Native};
use crate::mpa::predict::{self, Options};
use crate::mpa::progress::Progress;

use super::{Output, args, compute, guard};

#[derive(Serialize)]
pub struct Settings<'a> {
    pub model: &'a str,
    pub adapter: Option<&'a Path>,
    #[serde(flatten)]
    pub contents: Contents,
    #[serde(flatten)]
    pub loading: Loading,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<args::FloatType>,
    pub questions: &'a Path,
    #[serde(flatten)]
    pub options: &'a Options,
}

pub fn run(args: &args::Predict, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let options = options(&args.ask)?;
    let engine = compute::native(compute, progress)?;
    let loading = args.loading.get();
    let model = model(&engine, &args.model, args.adapter.as_deref(), progress)?.loading(loading);
    let adapter = args.adapter.as_deref();
    let questions = &args.questions;
    let (contents, dtype) = (model.contents()?, compute.dtype);
    let settings =
        Settings { model: &args.model, adapter, contents, loading, dtype, questions, options: &options };
    let _held = guard::file(&args.out, &args.questions, &settings)?;
    let (out, batch) = (&args.out, args.ask.batch);
    let tally = predict::run("predict", questions, &options, &model, out, batch, progress)?;
    let rejected: String = tally.rejected.iter().map(|(why, count)| format!(", {count} {why}")).collect();
    Output::new(&tally, format!("{} records{rejected}", tally.records))
}

/// How questions are put, checked.
pub fn options(ask: &args::Ask) -> Result<Options> {
    let options = Options { prompt: ask.prompt.clone(), max_new_tokens: ask.max_new_tokens, drafts: true };
    options.check().map_err(|bad| bad.usage())?;
    Ok(options)
}

/// A model that is loaded when needed; its folders are there.
pub fn model<'a>(
    engine: &'a Native,
    name: &str,
    adapter: Option<&Path>,
    progress: &'a Progress,
) -> Result<Lazy<'a>> {
    if let Some(folder) = adapter.filter(|folder| !folder.is_dir()) {
        return Err(Error::input(folder, "no such folder, expected a LoRA adapter in PEFT's layout"));
    }
    Ok(Lazy::new(engine, hub::resolve(name)?, adapter.map(Path::to_path_buf), progress))
}
