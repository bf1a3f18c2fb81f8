use std::path::Path;

use serde::Serialize;
use serde_json::json;

use crate::error::{Error, Result};
use crate::models::hub;
use crate::mpa::engine::Job;
use crate::mpa::level;
use crate::mpa::predict;
use crate::mpa::progress::Progress;

use super::{Output, args, compute, guard};

#[derive(Serialize)]
struct Settings<'a> {
    model: &'a str,
    data: &'a Path,
    rehearsal_file: Option<&'a Path>,
    prompt: &'a str,
    seed: u64,
    #[serde(flatten)]
    settings: &'a level::Settings,
}

pub fn run(args: &args::Level, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let engine = compute::cpu_only(compute, "training")?;
    args.settings.check().map_err(|bad| bad.usage())?;
    let ask = predict::Options { prompt: args.prompt.clone(), max_new_tokens: 1 };
    ask.check().map_err(|bad| bad.usage())?;
    let parity = level::examples(&args.data)?;
    if parity.is_empty() {
        return Err(Error::input(&args.data, "has no samples to level on"));
    }
    let rehearsal = args.rehearsal.as_deref().map(level::examples).transpose()?.unwrap_or_default();
    let samples = level::mix(parity, &rehearsal, args.settings.rehearsal, args.seed);
    let model = hub::resolve(&args.model)?;
    let settings = Settings {
        model: &args.model,
        data: &args.data,
        rehearsal_file: args.rehearsal.as_deref(),
        prompt: &args.prompt,
        seed: args.seed,
        settings: &args.settings,
    };
    guard::folder(&args.out, &settings)?;
    let samples = level::samples(&samples, &args.prompt);
    let (trainable, options) = (args.settings.trainable(), args.settings.train(args.seed));
    let job =
        Job { model: &model, samples: &samples, trainable: &trainable, options: &options, out: &args.out };
    let report = level::run("level", &engine, job, progress)?;
    let (first, last) = (report.first_loss, report.last_loss);
    let json =
        json!({"samples": samples.len(), "steps": report.steps, "first_loss": first, "last_loss": last});
    let text = format!(
        "{} steps on {} samples, loss {first:.4} to {last:.4}: {}",
        report.steps,
        samples.len(),
        args.out.display()
    );
    Output::new(&json, text)
}
