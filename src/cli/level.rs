use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::models::hub;
use crate::mpa::engine::Job;
use crate::mpa::level;
use crate::mpa::predict;
use crate::mpa::progress::Progress;
use crate::tensor::{Device, MATMUL_WORKSPACE};
use crate::train::fit::TrainOptions;
use crate::train::plan;

use super::{Output, args, compute, guard};

#[derive(Serialize)]
struct Settings<'a> {
    model: &'a str,
    data: &'a Path,
    rehearsal_data: Option<&'a Path>,
    prompt: &'a str,
    seed: u64,
    #[serde(flatten)]
    settings: Value,
}

pub fn run(args: &args::Level, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    args.settings.check().map_err(|bad| bad.usage())?;
    let ask = predict::Options { prompt: args.prompt.clone(), max_new_tokens: 1, drafts: false };
    ask.check().map_err(|bad| bad.usage())?;
    if args.rehearsal_data.is_some() && args.settings.rehearsal == 0.0 {
        let what =
            "--rehearsal-data: nothing is taken from it without --rehearsal F, its share of the parity set";
        return Err(Error::Usage(what.to_string()));
    }
    let all = level::examples(&args.data)?;
    let count = all.len();
    let parity = level::readable(all, progress)?;
    let unreadable = count - parity.len();
    if parity.is_empty() {
        return Err(Error::input(&args.data, "has no samples to level on"));
    }
    let beside = || args.rehearsal_data.clone().unwrap_or_else(|| level::rehearsal_beside(&args.data));
    let rehearsal = (args.settings.rehearsal > 0.0).then(beside);
    let others = rehearsal.as_deref().map(level::examples).transpose()?.unwrap_or_default();
    let others = level::readable(others, progress)?;
    let samples = level::mix(parity, &others, args.settings.rehearsal, args.seed, progress);
    let model = hub::resolve(&args.model)?;
    let settings = Settings {
        model: &args.model,
        data: &args.data,
        rehearsal_data: rehearsal.as_deref(),
        prompt: &args.prompt,
        seed: args.seed,
        settings: args.settings.decisive(),
    };
    let samples = level::samples(&samples, &args.prompt);
    let trainable = args.settings.trainable();
    let options = TrainOptions { pixels: args.pixels.bounds(), ..args.settings.train(args.seed) };
    if args.dry_run {
        let plan = plan::plan(&model, &samples, &trainable, &options, compute::dtype(compute))?;
        return Output::new(&plan, plan.to_string());
    }
    let _held = guard::folder(&args.out, &settings)?;
    let engine = compute::native(compute, progress)?;
    let job =
        Job { model: &model, samples: &samples, trainable: &trainable, options: &options, out: &args.out };
    let report = level::run("level", &engine, job, progress)?;
    let (first, last) = (report.first_loss, report.last_loss);
    let (trained, skipped) = (samples.len() - report.skipped.len(), report.skipped.len());
    let mut json = json!({"samples": trained, "unreadable": unreadable, "skipped": skipped, "steps": report.steps,
                          "first_loss": first, "last_loss": last, "tokens": report.tokens});
    if let Device::Cuda(gpu) = &engine.0.device {
        json["gpu_memory_bytes"] = json!(gpu.memory_use().most_reserved + MATMUL_WORKSPACE);
    }
    let text = format!(
        "{} steps on {trained} samples ({unreadable} unreadable, {skipped} skipped), loss {first:.4} to {last:.4}: {}",
        report.steps,
        args.out.display()
    );
    Output::new(&json, text)
}
