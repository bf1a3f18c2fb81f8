//! The Parity Leveler: trains the student on what it lacks.
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::images;
use crate::data::records::{self, Record};
use crate::error::Result;
use crate::models::image::PixelBounds;
use crate::mpa::config::{Bad, MAX_BATCH, MAX_WHOLE, short};
use crate::mpa::engine::{Engine, Job};
use crate::mpa::progress::Progress;
use crate::mpa::prompts;
use crate::random;
use crate::train::fit::{FitReport, LoraOptions, Picture, Sample, Schedule, Tower, TrainOptions, Trainable};

/// Rank of an adapter: what is larger is taken for a slip, and would take all memory.
const MAX_RANK: u64 = 4096;

/// Keys of `[level]` that change no bit of the result, and so may change from start to start.
pub const FREE: [&str; 2] = ["recompute", "checkpoint_every"];

/// What a student is trained on; all arms of a run take the same number of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// The parity set and rehearsal samples.
    Leveled,
    /// The parity set: the paper's method.
    ParityOnly,
    /// All pseudo-labels, without selection.
    AllPseudo,
    /// As many pseudo-labels as the parity set has, at random.
    RandomSubset,
}

impl Arm {
    /// Its name in configs, folders and tables.
    pub fn name(self) -> &'static str {
        match self {
            Arm::Leveled => "leveled",
            Arm::ParityOnly => "parity_only",
            Arm::AllPseudo => "all_pseudo",
            Arm::RandomSubset => "random_subset",
        }
    }
}

/// The section `[level]` of a config, and the options of `mpa level`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    #[arg(skip = vec![Arm::Leveled])]
    pub arms: Vec<Arm>,
    /// Rehearsal samples mixed in, as a fraction of the parity set's size; 0 is the paper's method
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true)]
    pub rehearsal: f64,
    /// Rank of the adapters
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub rank: usize,
    /// Scale of the adapters: alpha / rank
    #[arg(long, value_name = "X", default_value_t = 32.0, allow_negative_numbers = true)]
    pub alpha: f64,
    /// Dropout before the adapters
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub dropout: f64,
    /// Scale by alpha / sqrt(rank) instead
    #[arg(long)]
    pub rslora: bool,
    /// Linear layers with an adapter: names such as q_proj,v_proj, or one regex over whole names (as in peft)
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values_t = LoraOptions::default().targets)]
    pub targets: Vec<String>,
    /// Train all weights of these towers in place of adapters, and write a whole checkpoint: vision, connector, text
    #[arg(long, value_name = "TOWERS", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub full: Vec<Tower>,
    /// Learning rate
    #[arg(long, value_name = "X", default_value_t = 2e-4, allow_negative_numbers = true)]
    pub lr: f64,
    /// How the learning rate falls: constant, linear or cosine
    #[arg(long, value_name = "NAME", default_value = "cosine", value_parser = schedule)]
    pub schedule: Schedule,
    /// Fraction of the steps in which the learning rate rises
    #[arg(long, value_name = "F", default_value_t = 0.03, allow_negative_numbers = true)]
    pub warmup: f64,
    /// AdamW's weight decay
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub weight_decay: f64,
    /// AdamW's decay of the mean gradient
    #[arg(long, value_name = "X", default_value_t = 0.9, allow_negative_numbers = true)]
    pub beta1: f64,
    /// AdamW's decay of the mean squared gradient
    #[arg(long, value_name = "X", default_value_t = 0.999, allow_negative_numbers = true)]
    pub beta2: f64,
    /// AdamW's guard against division by zero
    #[arg(long, value_name = "X", default_value_t = 1e-8, allow_negative_numbers = true)]
    pub eps: f64,
    /// Clip gradients to this norm; 0: do not
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub max_grad_norm: f64,
    /// Passes over the samples
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub epochs: f64,
    /// Optimizer steps; overrides --epochs
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Samples an optimizer step
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub batch: usize,
    /// Parts that a batch is computed in, to save memory
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub accumulate: usize,
    /// Save memory: run each block again in the backward (the same bits, a third more work)
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub checkpoint_every: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            arms: vec![Arm::Leveled],
            rehearsal: 0.0,
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            targets: LoraOptions::default().targets,
            full: Vec::new(),
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
            checkpoint_every: 200,
        }
    }
}

/// The first that is there twice.
fn twice<T: PartialEq>(list: &[T]) -> Option<&T> {
    list.iter().enumerate().find(|(i, one)| list[..*i].contains(one)).map(|(_, one)| one)
}

fn schedule(text: &str) -> Result<Schedule, String> {
    match text {
        "constant" => Ok(Schedule::Constant),
        "linear" => Ok(Schedule::Linear),
        "cosine" => Ok(Schedule::Cosine),
        _ => Err("expected constant, linear or cosine".to_string()),
    }
}

impl Settings {
    /// Every number is in its range.
    pub fn check(&self) -> Result<(), Bad> {
        let counts = [
            ("rank", self.rank, MAX_RANK),
            ("batch", self.batch, MAX_BATCH),
            ("accumulate", self.accumulate, MAX_BATCH),
            ("checkpoint_every", self.checkpoint_every, MAX_WHOLE),
            ("steps", self.steps.unwrap_or(1), MAX_WHOLE),
        ];
        for (key, value, most) in counts {
            Bad::count(key, value, most)?;
        }
        Bad::unless(self.accumulate <= self.batch, "accumulate", "at most `batch`", self.accumulate)?;
        let shares = [("dropout", self.dropout), ("beta1", self.beta1), ("beta2", self.beta2)];
        for (key, value) in shares {
            // The training reads most numbers as f32.
            let good = value >= 0.0 && (value as f32) < 1.0;
            Bad::unless(good, key, "at least 0 and, in f32, below 1", short(value))?;
        }
        Bad::unless((0.0..=1.0).contains(&self.warmup), "warmup", "between 0 and 1", self.warmup)?;
        let epochs = self.epochs;
        Bad::unless(epochs > 0.0 && epochs.is_finite(), "epochs", "above 0", short(epochs))?;
        for (key, value) in [("lr", self.lr), ("eps", self.eps), ("alpha", self.alpha)] {
            let good = value as f32 > 0.0 && (value as f32).is_finite();
            Bad::unless(good, key, "above 0 (1e-45) and at most 3.4e38", short(value))?;
        }
        let others = [
            ("rehearsal", self.rehearsal),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
        ];
        for (key, value) in others {
            Bad::unless(value >= 0.0 && (value as f32).is_finite(), key, "0 to 3.4e38", short(value))?;
        }
        let clip = self.max_grad_norm;
        let clips = clip == 0.0 || clip as f32 > 0.0;
        Bad::unless(clips, "max_grad_norm", "0, or 1e-45 and more", short(clip))?;
        Bad::unless(!self.targets.is_empty(), "targets", "at least one name", "none")?;
        // What is left for it to find wrong is a regex that is none.
        if let Trainable::Lora(lora) = self.trainable() {
            lora.check().map_err(|e| Bad { key: "targets".to_string(), what: e.to_string() })?;
        }
        let tower = twice(&self.full).map(|tower| format!("{tower:?}").to_lowercase());
        Bad::unless(tower.is_none(), "full", "each tower once", tower.unwrap_or_default())?;
        let arm = twice(&self.arms).map(|arm| arm.name());
        Bad::unless(arm.is_none(), "arms", "each arm once", arm.unwrap_or_default())
    }

    /// As JSON, all that the result depends on.
    pub fn decisive(&self) -> Value {
        let mut all = json!(self);
        if let Value::Object(keys) = &mut all {
            keys.retain(|key, _| !FREE.contains(&key.as_str()));
        }
        all
    }

    /// The key that says what is trained.
    pub fn trained_key(&self) -> &'static str {
        if self.full.is_empty() { "level.targets" } else { "level.full" }
    }

    pub fn trainable(&self) -> Trainable {
        if !self.full.is_empty() {
            return Trainable::Full(self.full.clone());
        }
        Trainable::Lora(LoraOptions {
            rank: self.rank,
            alpha: self.alpha as f32,
            dropout: self.dropout as f32,
            rslora: self.rslora,
            targets: self.targets.clone(),
        })
    }

    pub fn train(&self, seed: u64) -> TrainOptions {
        TrainOptions {
            lr: self.lr,
            schedule: self.schedule,
            warmup: self.warmup,
            weight_decay: self.weight_decay as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            eps: self.eps as f32,
            max_grad_norm: self.max_grad_norm as f32,
            epochs: self.epochs,
            steps: self.steps,
            batch: self.batch,
            accumulate: self.accumulate,
            recompute: self.recompute,
            seed,
            checkpoint_every: self.checkpoint_every,
            pixels: PixelBounds::default(),
        }
    }
}

/// A question to learn.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    pub id: String,
    pub image: Option<PathBuf>,
    pub question: String,
    pub answer: String,
}

/// The samples of a JSONL file that are not rejected; what is learned is `answer`, which models were judged by, or else the first of `answers`.
pub fn examples(data: &Path) -> Result<Vec<Example>> {
    let example = |record: Record| {
        let answer = match &record.answer {
            Some(answer) => answer,
            None => record.need_answers(data)?[0],
        };
        Ok(Example {
            image: record.image_path(data),
            question: record.need(data, "question")?.to_string(),
            answer: answer.to_string(),
            id: record.id,
        })
    };
    records::read(data)?.into_iter().filter(|record| record.rejected.is_none()).map(example).collect()
}

/// Leaves out the examples whose picture cannot be read, and names them; for data that no stage of this program has been through.
pub fn readable(mut examples: Vec<Example>, progress: &Progress) -> Result<Vec<Example>> {
    let pictures: BTreeSet<&Path> = examples.iter().filter_map(|example| example.image.as_deref()).collect();
    let failure = |path: &&Path| {
        let wrong = images::try_read(path).map(|read| Some((path.to_path_buf(), read.err()?)));
        wrong.transpose()
    };
    let bad: HashMap<PathBuf, String> = pictures.par_iter().filter_map(failure).collect::<Result<_>>()?;
    examples.retain(|example| {
        let reason = example.image.as_ref().and_then(|path| bad.get(path));
        if let Some(reason) = reason {
            progress.skipped(&example.id, example.image.as_deref(), reason);
        }
        reason.is_none()
    });
    Ok(examples)
}

/// Where the rehearsal samples of a parity set lie, unless said otherwise: parity.jsonl, parity.rehearsal.jsonl.
pub fn rehearsal_beside(parity: &Path) -> PathBuf {
    parity.with_extension("rehearsal.jsonl")
}

/// A random subset of `size`, in the order of the examples; `salt` tells subsets of one seed apart.
pub fn random_subset(examples: &[Example], size: usize, seed: u64, salt: &str) -> Vec<Example> {
    let salt = random::hash(salt);
    let key = |example: &Example| random::mix(seed, &[salt, random::hash(&example.id)]);
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_cached_key(|&i| (key(&examples[i]), i));
    order.truncate(size);
    order.sort_unstable();
    order.into_iter().map(|i| examples[i].clone()).collect()
}

/// The parity set, then `fraction` times as many rehearsal samples (all, with a warning, if there are fewer).
pub fn mix(
    mut parity: Vec<Example>,
    rehearsal: &[Example],
    fraction: f64,
    seed: u64,
    progress: &Progress,
) -> Vec<Example> {
    let (size, there) = ((fraction * parity.len() as f64).round() as usize, rehearsal.len());
    if there < size {
        progress.warn(&format!("level: only {there} rehearsal samples of {size} wanted"));
    }
    parity.extend(random_subset(rehearsal, size, seed, "rehearsal"));
    parity
}

/// `examples` as the trainer takes them, asked by `prompt`.
pub fn samples(examples: &[Example], prompt: &str) -> Vec<Sample> {
    let sample = |example: &Example| Sample {
        id: example.id.clone(),
        images: example.image.clone().map(Picture::File).into_iter().collect(),
        prompt: prompts::fill(prompt, &example.question),
        answer: example.answer.clone(),
    };
    examples.iter().map(sample).collect()
}

/// Does a training job; `name` is shown with the progress.
pub fn run(name: &str, engine: &dyn Engine, job: Job<'_>, progress: &Progress) -> Result<FitReport> {
    let mut meter = None;
    let report = engine.level(job, &mut |step, steps, loss, _| {
        let meter = meter.get_or_insert_with(|| progress.start(name, steps, step - 1));
        meter.message(format!("loss {loss:.3}"));
        meter.advance(1);
    })?;
    if let Some(meter) = meter {
        meter.finish();
    }
    for (id, reason) in &report.skipped {
        progress.skipped(id, None, reason);
    }
    Ok(report)
}
