use std::path::Path;

use serde::Serialize;

use crate::error::Result;
use crate::models::hub;
use crate::mpa::annotate::{self, Options};
use crate::mpa::engine::{Contents, Lazy, Loading};
use crate::mpa::progress::Progress;
use crate::mpa::prompts;

use super::{Output, args, compute, guard};

#[derive(Serialize)]
struct Settings<'a> {
    model: &'a str,
    #[serde(flatten)]
    contents: Contents,
    #[serde(flatten)]
    loading: Loading,
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<args::FloatType>,
    images: &'a Path,
    options: &'a Options,
}

pub fn run(args: &args::Annotate, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let options = Options {
        prompt: prompts::task(&args.task, Path::new(""))?,
        samples: args.samples,
        temperature: args.temperature,
        top_p: args.top_p,
        max_new_tokens: args.max_new_tokens,
        seed: args.seed,
    };
    options.check().map_err(|bad| bad.usage())?;
    let engine = compute::native(compute, progress)?;
    let model = Lazy::new(&engine, hub::resolve(&args.model)?, None, progress).loading(args.loading.get());
    let settings = Settings {
        model: &args.model,
        contents: model.contents()?,
        loading: args.loading.get(),
        dtype: compute.dtype,
        images: &args.images,
        options: &options,
    };
    let _held = guard::file(&args.out, &args.images, &settings)?;
    let tally = annotate::run(&args.images, &options, &model, &args.out, args.batch, progress)?;
    let rejected: String = tally.rejected.iter().map(|(why, count)| format!(", {count} {why}")).collect();
    Output::new(&tally, format!("{} records, {} good{rejected}", tally.records, tally.good()))
}
