use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bench::Row;
use crate::bench::checkpoint::ModelShape;
use crate::bench::model::{self, Answering, Load, Training};
use crate::error::{Error, Result};
use crate::models::hub;
use crate::mpa::progress::Progress;
use crate::tensor::Place;

use super::compute::{self, Facts};
use super::guard::NewFolder;
use super::{Output, args, bench};

pub fn run(args: &args::BenchModel, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let tiles = args.tiles.parse().map_err(|_| Error::Usage(format!("--tiles {}", args.tiles)))?;
    let load = Load { batch: args.batch, tiles, words: args.words, new: args.new };
    let subject = Subject::of(args)?;
    let name =
        format!("{}, batch {}, {} tiles, {} words", subject.name(), load.batch, load.tiles, load.words);
    let temporary = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    if let (Some(folder), Subject::Shape(shape)) = (&args.write, &subject) {
        NewFolder::check(folder)?;
        return write(shape, &load, &name, folder, temporary.path());
    }
    let engine = compute::native(compute, progress)?;
    let place = &engine.0;
    let facts = Facts::of(&place.device);
    let (rows, mut json, text) = match &subject {
        Subject::Shape(shape) if args.train => {
            let trainer = model::trainer(shape, temporary.path(), &load, args.recompute)?;
            let done = model::training(trainer, &load, place, args.runs)?;
            let row = trained(&done, name, args.recompute, place);
            (vec![row], json!({"training": done}), told_training(&done))
        }
        subject => {
            let mut vlm = match subject {
                Subject::Shape(shape) => {
                    let mut vlm = model::load(shape, temporary.path(), &load, place, args.loading.int8)?
                        .with_pixels(args.loading.pixels.bounds())?;
                    vlm.pages = args.loading.kv_cache;
                    vlm
                }
                Subject::Folder(folder) => engine.vlm(folder, None, args.loading.get())?,
            };
            let done = model::answering(&mut vlm, &load, args.runs)?;
            let cache = if args.loading.kv_cache.is_float() { "" } else { ", cache int8" };
            let mut rows = answered(&done, &format!("{name}{cache}"), place);
            let mut int8 = false;
            vlm.visit_linears(&mut |_, linear| int8 |= linear.weight.is_int8());
            if int8 {
                rows.iter_mut().for_each(|row| row.dtype = "int8".into());
            }
            (rows, json!({"answering": done}), told_answering(&done))
        }
    };
    if let Some(path) = &args.csv {
        fs::write(path, bench::csv(&rows, &facts)).map_err(|e| Error::io(path, e))?;
    }
    for (key, value) in [("shape", subject.json()), ("load", json!(load)), ("gpu", json!(facts.gpu))] {
        json[key] = value;
    }
    Output::new(&json, format!("{facts}\n{}, {text}", subject.name()))
}

/// What is timed.
enum Subject {
    Shape(ModelShape),
    Folder(PathBuf),
}

impl Subject {
    fn of(args: &args::BenchModel) -> Result<Subject> {
        match (&args.shape, &args.model) {
            (Some(shape), _) => ModelShape::find(shape).map(Subject::Shape),
            (None, Some(model)) => hub::resolve(model).map(Subject::Folder),
            (None, None) => Err(Error::Usage("bench model: expected --shape or --model".into())),
        }
    }

    fn name(&self) -> String {
        match self {
            Subject::Shape(shape) => shape.name.to_string(),
            Subject::Folder(folder) => folder.display().to_string(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Subject::Shape(shape) => json!(shape),
            Subject::Folder(folder) => json!(folder.display().to_string()),
        }
    }
}

/// What a peer needs.
fn write(shape: &ModelShape, load: &Load, name: &str, folder: &Path, temporary: &Path) -> Result<Output> {
    let trainer = model::trainer(shape, temporary, load, false)?;
    let begun = NewFolder::begin(folder)?;
    let tokens = model::write(trainer, load, folder)?;
    let json = json!({"name": name, "load": load, "tokens": tokens, "lr": model::LR});
    let path = folder.join("bench.json");
    fs::write(&path, format!("{json:#}\n")).map_err(|e| Error::io(&path, e))?;
    begun.done()?;
    Output::new(&json, format!("{} with its first adapter and a batch: {}", shape.name, folder.display()))
}

pub(super) fn row(op: &'static str, shape: String, place: &Place, seconds: f64, bytes: usize) -> Row {
    Row {
        op,
        shape,
        dtype: place.dtype.to_string(),
        median_us: seconds * 1e6,
        bytes,
        flops: 0,
        gb_s: bytes as f64 / seconds / 1e9,
        tflop_s: 0.0,
        percent_of_ceiling: None,
    }
}

fn answered(done: &Answering, name: &str, place: &Place) -> Vec<Row> {
    vec![
        row("first_token", name.to_string(), place, done.first_token, 0),
        row("decode", name.to_string(), place, done.decode_step, done.step_bytes),
    ]
}

fn trained(done: &Training, name: String, recompute: bool, place: &Place) -> Row {
    let op = if recompute { "lora_step_recompute" } else { "lora_step" };
    row(op, name, place, done.vision + done.step, done.peak_bytes.unwrap_or(0))
}

fn told_answering(a: &Answering) -> String {
    format!(
        "{} prompt tokens: first token after {:.1} ms ({:.0} tokens/s), decoding {:.1} tokens/s ({:.2} ms a step, {:.1} GB/s)",
        a.prompt_tokens,
        a.first_token * 1e3,
        a.prefill_tokens_s,
        a.decode_tokens_s,
        a.decode_step * 1e3,
        a.step_gb_s
    )
}

fn told_training(t: &Training) -> String {
    let losses = t.losses.iter().map(|loss| format!("{loss:.4}")).collect::<Vec<_>>().join(" ");
    let mib = |bytes: usize| bytes >> 20;
    let memory = match (t.peak_bytes, t.reserved_bytes) {
        (Some(peak), Some(reserved)) => {
            format!(", at most {} MiB in use of {} MiB", mib(peak), mib(reserved))
        }
        _ => String::new(),
    };
    format!(
        "{} tokens: {:.3} s a step, {:.0} tokens/s{memory}; losses {losses}",
        t.tokens, t.step, t.tokens_s
    )
}
