//! The training loop over a fixed set of samples: data order, schedule, loss log, checkpoints, resume.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::{append, files};
use crate::error::{Error, Result};
pub use crate::models::adapter::LoraOptions;
use crate::models::contents;
use crate::models::image::PixelBounds;
use crate::models::vlm::Vlm;
use crate::random;
use crate::tensor::{Device, Place};
use crate::train::batch::{self, Fitting, Kept};
pub use crate::train::batch::{Picture, Sample};
use crate::train::checkpoint;
pub use crate::train::optim::Schedule;
pub use crate::train::trainer::{Tower, Trainable, Trainer};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    pub lr: f64,
    pub schedule: Schedule,
    /// Fraction of all steps in which lr rises linearly from 0.
    pub warmup: f64,
    pub weight_decay: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// 0: no clipping.
    pub max_grad_norm: f32,
    pub epochs: f64,
    /// Overrides epochs if set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Samples per optimizer step, spread over `accumulate` micro-batches.
    pub batch: usize,
    pub accumulate: usize,
    /// Blocks are run again in the backward: less memory, a third more work, the same bits.
    #[serde(skip)]
    pub recompute: bool,
    pub seed: u64,
    /// Steps between checkpoints.
    #[serde(skip)]
    pub checkpoint_every: usize,
    /// How large pictures are made.
    #[serde(skip_serializing_if = "PixelBounds::is_none")]
    pub pixels: PixelBounds,
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions {
            lr: 2e-4,
            schedule: Schedule::Cosine,
            warmup: 0.03,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            max_grad_norm: 1.0,
            epochs: 1.0,
            steps: None,
            batch: 16,
            accumulate: 1,
            recompute: false,
            seed: 0,
            checkpoint_every: 200,
            pixels: PixelBounds::default(),
        }
    }
}

impl TrainOptions {
    pub fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::Usage(format!("training: {what}")));
        let unit = 0.0..1.0;
        match self {
            o if !(o.lr.is_finite() && o.lr >= 0.0) => bad("lr is not a number of 0 or more"),
            o if !(0.0..=1.0).contains(&o.warmup) => bad("warmup is not in 0 ..= 1"),
            o if !unit.contains(&o.beta1) || !unit.contains(&o.beta2) => {
                bad("beta1 or beta2 is not in 0 .. 1")
            }
            o if !(o.eps.is_finite() && o.eps > 0.0) => bad("eps is not a positive number"),
            o if !(o.weight_decay.is_finite() && o.weight_decay >= 0.0) => bad("weight_decay is negative"),
            o if !(o.epochs.is_finite() && o.epochs > 0.0) => bad("epochs is not a positive number"),
            o if o.batch == 0 => bad("batch is 0, expected 1 or more"),
            o if o.accumulate == 0 || o.accumulate > o.batch => bad("accumulate is not in 1 ..= batch"),
            o if o.checkpoint_every == 0 => bad("checkpoint_every is 0, expected 1 or more"),
            _ => Ok(()),
        }
    }

    /// Optimizer steps for `n` samples.
    pub fn step_count(&self, n: usize) -> usize {
        self.steps.unwrap_or_else(|| (self.epochs * n as f64 / self.batch as f64).ceil() as usize)
    }
}

/// What a finished run says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FitReport {
    pub steps: usize,
    pub first_loss: f64,
    pub last_loss: f64,
    /// Of all steps: prompts, pictures and answers.
    pub tokens: usize,
    /// Ids of samples that the model does not take, and why.
    pub skipped: Vec<(String, String)>,
}

/// Called after each optimizer step: (step from 1, steps, loss, lr).
pub type OnStep<'a> = &'a mut dyn FnMut(usize, usize, f64, f64);

/// One line of loss.jsonl.
#[derive(Serialize, Deserialize)]
struct LossLine {
    step: usize,
    loss: f64,
    lr: f64,
    grad_norm: f64,
    /// That went through the model.
    #[serde(default)]
    tokens: usize,
}

/// What a run folder was started with; going on with anything else is an error.
#[derive(Serialize, Deserialize, PartialEq)]
struct Settings {
    trainable: Trainable,
    options: TrainOptions,
    samples: usize,
    /// Hash over prompts, answers and the names of pictures.
    data: String,
    /// `models::contents` of the model.
    model: String,
    /// Of activations on a GPU; none for the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<String>,
}

/// Trains the model at `model` on `samples` and writes `out/`: the adapter in PEFT's format (or, for `Trainable::Full`, a whole checkpoint),
/// loss.jsonl ({"step", "loss", "lr", "grad_norm", "tokens"} a line), training.json, skipped.json (of samples that the model does not take, if there
/// are any: [[id, reason], ...]), and, while running, checkpoint/. Started again on the same `out` it goes on from the checkpoint and ends with the
/// same bytes; finished already, it returns at once.
pub fn level(
    model: &Path,
    samples: &[Sample],
    trainable: &Trainable,
    options: &TrainOptions,
    place: &Place,
    out: &Path,
    on_step: OnStep<'_>,
) -> Result<FitReport> {
    let (log, state, skipped) = (out.join("loss.jsonl"), out.join("checkpoint"), out.join("skipped.json"));
    let finished = match trainable {
        Trainable::Lora(_) => out.join("adapter_model.safetensors"),
        Trainable::Full(_) => out.join("model.safetensors"),
    };
    let begun = match finished.exists() {
        true => None,
        // A mistake in what is asked leaves nothing behind, and shows before the first step.
        false => Some(begin(model, samples, trainable, options)?),
    };
    start(model, samples, trainable, options, place, out)?;
    // Held to the end: two that write here would each lose what the other does.
    let mut log_file = open_log(&log)?;
    let Some((mut trainer, fitting)) = begun.filter(|_| !finished.exists()) else {
        remove_folder(&state)?;
        return report(&log, &skipped);
    };
    if !fitting.skipped.is_empty() {
        files::write_json(&skipped, &fitting.skipped)?;
    }
    let samples = fitting.samples;
    checkpoint::load(&mut trainer, &state)?;
    let mut trainer = trainer.to_device(&place.device, place.dtype)?;
    cut_log(&log, &log_file, trainer.steps as usize)?;

    let steps = options.step_count(samples.len());
    let mut kept = Kept::default();
    while (trainer.steps as usize) < steps {
        let step = trainer.steps as usize + 1;
        let indices = batch_indices(samples.len(), options, step);
        let batch: Vec<&Sample> = indices.iter().map(|&i| samples[i]).collect();
        let batch: Vec<Arc<_>> = trainer.prepare(&batch, &mut kept)?.into_iter().map(Arc::new).collect();
        let plan = trainer.plan(steps);
        let lr = plan.lr(step as u64);
        let r = trainer.step_planned(&batch, plan)?;
        let tokens = batch.iter().map(|sample| sample.ids.len()).sum();
        let line = LossLine { step, loss: r.loss, lr, grad_norm: r.grad_norm, tokens };
        write_line(&log, &mut log_file, &line)?;
        on_step(step, steps, r.loss, lr);
        if step.is_multiple_of(options.checkpoint_every) && step < steps {
            log_file.sync_data().map_err(|e| Error::io(&log, e))?;
            checkpoint::save(&mut trainer, &state)?;
        }
    }
    trainer.save(out)?;
    remove_folder(&state)?;
    report(&log, &skipped)
}

/// The trainer before its first step, and what it is to be trained on.
pub(super) fn begin<'a>(
    model: &Path,
    samples: &'a [Sample],
    trainable: &Trainable,
    options: &TrainOptions,
) -> Result<(Trainer, Fitting<'a>)> {
    options.check()?;
    let vlm = Vlm::load(&model.to_string_lossy(), None)?.with_pixels(options.pixels)?;
    let trainer = Trainer::new(vlm, trainable.clone(), options.clone())?;
    let fitting = batch::fitting(trainer.model(), samples)?;
    Ok((trainer, fitting))
}

/// Samples of step `step` (from 1): the epochs' shuffled orders one after the other, cut into batches.
pub(super) fn batch_indices(n: usize, options: &TrainOptions, step: usize) -> Vec<usize> {
    let first = (step - 1) * options.batch;
    let mut indices = Vec::with_capacity(options.batch);
    for epoch in first / n..=(first + options.batch - 1) / n {
        let mut order: Vec<usize> = (0..n).collect();
        random::shuffle(
            &mut random::stream(options.seed, &[random::hash("data order"), epoch as u64]),
            &mut order,
        );
        let from = first.saturating_sub(epoch * n);
        let to = (first + options.batch - epoch * n).min(n);
        indices.extend_from_slice(&order[from..to]);
    }
    indices
}

fn start(
    model: &Path,
    samples: &[Sample],
    trainable: &Trainable,
    options: &TrainOptions,
    place: &Place,
    out: &Path,
) -> Result<()> {
    fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let data = samples.iter().fold(0, |h, sample| random::mix(h, &[sample.key()]));
    let settings = Settings {
        trainable: trainable.clone(),
        options: options.clone(),
        samples: samples.len(),
        data: format!("{data:016x}"),
        model: contents::of(model)?,
        dtype: (place.device != Device::Cpu).then(|| place.dtype.to_string()),
    };
    let path = out.join("training.json");
    let text = serde_json::to_string_pretty(&settings).map_err(|e| Error::Failure(e.to_string()))? + "\n";
    match fs::read_to_string(&path) {
        Ok(before) if before == text => Ok(()),
        Ok(_) => Err(Error::input(
            &path,
            "this folder holds a run with another model, other settings or data; choose another --out",
        )),
        Err(_) => files::write(&path, text.as_bytes()),
    }
}

/// Opens the log, locked.
fn open_log(path: &Path) -> Result<File> {
    let file = File::options().append(true).create(true).open(path).map_err(|e| Error::io(path, e))?;
    append::lock(&file, path)?;
    Ok(file)
}

/// Cuts the log behind the lines of the first `steps` steps; what a killed run wrote after its checkpoint is done again.
fn cut_log(path: &Path, file: &File, steps: usize) -> Result<()> {
    let text = read_log(path)?;
    let kept: usize = text.split_inclusive('\n').take(steps).map(str::len).sum();
    if text[..kept].lines().count() < steps || (kept > 0 && !text[..kept].ends_with('\n')) {
        return Err(Error::input(path, format!("expected {steps} whole lines to go on from the checkpoint")));
    }
    // Cut, not written anew: a kill in between must not lose lines that the checkpoint counts on.
    file.set_len(kept as u64).map_err(|e| Error::io(path, e))
}

/// Empty if there is none.
fn read_log(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|e| Error::io(path, e)),
    }
}

fn write_line(path: &Path, file: &mut File, line: &LossLine) -> Result<()> {
    let text = serde_json::to_string(line).map_err(|e| Error::Failure(e.to_string()))? + "\n";
    file.write_all(text.as_bytes()).map_err(|e| Error::io(path, e))
}

fn report(log: &Path, skipped: &Path) -> Result<FitReport> {
    let text = read_log(log)?;
    let skipped = match fs::read(skipped) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::input(skipped, e.to_string()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::io(skipped, e)),
    };
    let lines: Vec<LossLine> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let loss = |line: Option<&LossLine>| line.map_or(0.0, |line| line.loss);
    Ok(FitReport {
        steps: text.lines().count(),
        first_loss: loss(lines.first()),
        last_loss: loss(lines.last()),
        tokens: lines.iter().map(|line| line.tokens).sum(),
        skipped,
    })
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}
