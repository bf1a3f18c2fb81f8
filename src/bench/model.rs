//! Times whole models of the sizes of real ones, with random weights: the first token, decoding, and steps of LoRA training.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::checkpoint::{ModelShape, WORDS};
use crate::error::{Error, Result};
use crate::models::adapter::{self, LoraOptions};
use crate::models::generate::Request;
use crate::models::image::Rgb;
use crate::models::int8::{self, Parts};
use crate::models::prompt::{Content, Message};
use crate::models::vlm::Vlm;
use crate::models::weights;
use crate::ops::sample::Sampling;
use crate::quant::Folds;
use crate::random;
use crate::tensor::{DType, Device, Place, Tensor};
use crate::train::batch::{self, Kept};
use crate::train::fit::{Picture, Sample, TrainOptions, Trainable, Trainer};

const SEED: u64 = 1;

/// What the model is given, `batch` times.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    pub batch: usize,
    /// Of the one picture of a prompt: 1, or all that the model takes; 0: no picture.
    pub tiles: usize,
    /// Words (tokens) beside it.
    pub words: usize,
    /// Tokens that are decoded; words of an answer that is trained.
    pub new: usize,
}

/// Decoding. Times are in seconds and, like rates, of the fastest of the runs.
#[derive(Clone, Debug, Serialize)]
pub struct Answering {
    pub prompt_tokens: usize,
    /// Pictures and prompts, up to the first new tokens. What an engine does once, before its first request, is not in it.
    pub first_token: f64,
    pub prefill_tokens_s: f64,
    pub decode_step: f64,
    pub decode_tokens_s: f64,
    /// Weights of the text tower and keys and values, which a step has to read.
    pub step_bytes: usize,
    pub step_gb_s: f64,
}

/// Steps of training on the same batch. Tokens are those of prompts and answers, pictures' among them. The vision side is frozen: its features are
/// computed once a picture and kept; they count in full here, as in the first epoch.
#[derive(Clone, Debug, Serialize)]
pub struct Training {
    pub tokens: usize,
    pub vision: f64,
    pub step: f64,
    /// Of both.
    pub tokens_s: f64,
    pub losses: Vec<f64>,
    /// On a GPU: the most that was in use, and what was asked of the driver.
    pub peak_bytes: Option<usize>,
    pub reserved_bytes: Option<usize>,
}

/// Settings go to `folder`.
pub fn load(
    shape: &ModelShape,
    folder: &Path,
    load: &Load,
    place: &Place,
    int8: Option<Parts>,
) -> Result<Vlm> {
    let mut vlm = shape.build(folder, load.tiles > 1, DType::Bf16, SEED)?;
    if let Some(parts) = int8 {
        vlm.quantize(parts, &Folds::new(), int8::ROTATION)?;
    }
    vlm.to_place(place)
}

/// The `i`-th text of so many words.
pub(super) fn words(i: usize, count: usize) -> String {
    let word = |j| format!("w{}", random::mix(SEED, &[i as u64, j as u64]) % WORDS as u64);
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

/// Noise, so that nothing about it is easy.
pub(super) fn picture(i: usize, load: &Load) -> Option<Arc<Rgb>> {
    const SIDE: usize = 512;
    let pixel = |p| random::mix(i as u64, &[p]) as u8;
    (load.tiles > 0).then(|| {
        Arc::new(Rgb { width: SIDE, height: SIDE, data: (0..3 * (SIDE * SIDE) as u64).map(pixel).collect() })
    })
}

/// A question about some pictures.
pub(super) fn asking(images: Vec<Arc<Rgb>>, text: String, max_new_tokens: usize) -> Request {
    let mut content: Vec<Content> = images.iter().map(|_| Content::Image).collect();
    content.push(Content::Text(text));
    Request {
        messages: vec![Message::new("user", content)],
        images,
        tiles: Vec::new(),
        max_new_tokens,
        sampling: Sampling { temperature: 0.0, top_p: 1.0 },
        samples: 1,
        seed: 0,
        draft: None,
    }
}

fn requests(load: &Load, max_new_tokens: usize) -> Vec<Request> {
    let one = |i| asking(picture(i, load).into_iter().collect(), words(i, load.words), max_new_tokens);
    (0..load.batch).map(one).collect()
}

/// Generates `load.new` tokens for each prompt, `runs` times, and once before.
pub fn answering(vlm: &mut Vlm, load: &Load, runs: usize) -> Result<Answering> {
    if load.batch == 0 || load.new < 2 {
        return Err(Error::Usage("bench model: expected at least one prompt and two new tokens".into()));
    }
    // A checkpoint may end its answer at once; then nothing would be decoded.
    vlm.config.eos_token_ids.clear();
    let prepared = |new| {
        let mut requests = requests(load, new);
        vlm.prepare(&mut requests).map(|()| requests)
    };
    let (short, long) = (prepared(1)?, prepared(load.new)?);
    let timed = |requests: &[Request]| {
        let (completions, spent) = vlm.generate_timed(requests)?;
        let tokens: usize = completions.iter().flatten().map(|c| c.ids.len()).sum();
        Ok::<_, Error>((spent.vision + spent.prefill, spent.decode, tokens))
    };
    timed(&long)?;
    let (mut first_token, mut decode_step) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..runs.max(1) {
        let (first, ..) = timed(&short)?;
        let (_, decoding, tokens) = timed(&long)?;
        if tokens != load.batch * load.new {
            return Err(Error::Failure(format!(
                "bench model: expected {} tokens, got {tokens}",
                load.batch * load.new
            )));
        }
        first_token = first_token.min(first.as_secs_f64());
        decode_step = decode_step.min(decoding.as_secs_f64() / (load.new - 1) as f64);
    }
    let grids: Vec<_> = short[0].tiles.iter().map(|t| (t.rows, t.cols)).collect();
    let prompt = vlm.encode(&short[0].messages, &grids, true)?.len();
    let step_bytes = step_bytes(vlm, load.batch, prompt + load.new / 2);
    Ok(Answering {
        prompt_tokens: load.batch * prompt,
        first_token,
        prefill_tokens_s: (load.batch * prompt) as f64 / first_token,
        decode_step,
        decode_tokens_s: load.batch as f64 / decode_step,
        step_bytes,
        step_gb_s: step_bytes as f64 / decode_step / 1e9,
    })
}

/// What a decode step reads at least, with so many tokens behind it: the text tower without the embedding table, keys and values.
fn step_bytes(vlm: &mut Vlm, batch: usize, tokens: usize) -> usize {
    let t = &vlm.config.text;
    let tied = if vlm.text.is_tied() { t.vocab_size * t.hidden_size * vlm.text.dtype().size() } else { 0 };
    let mut weights = tied;
    vlm.text.visit_linears(&mut |_, linear| {
        let matrix = linear.weight.matrix();
        weights += matrix.len() * matrix.dtype().size();
    });
    weights + batch * tokens * vlm.text.cache_bytes(vlm.pages)
}

fn samples(load: &Load) -> Vec<Sample> {
    let one = |i: usize| Sample {
        id: i.to_string(),
        images: picture(i, load).map(Picture::Pixels).into_iter().collect(),
        prompt: words(i, load.words),
        answer: words(load.batch + i, load.new),
    };
    (0..load.batch).map(one).collect()
}

/// The trainer of `training`, in main memory.
pub fn trainer(shape: &ModelShape, folder: &Path, load: &Load, recompute: bool) -> Result<Trainer> {
    let vlm = shape.build(folder, load.tiles > 1, DType::Bf16, SEED)?;
    let options = TrainOptions { recompute, seed: SEED, ..TrainOptions::default() };
    Trainer::new(vlm, Trainable::Lora(LoraOptions::default()), options)
}

/// `steps` steps on one batch, after one that is not timed.
pub fn training(trainer: Trainer, load: &Load, place: &Place, steps: usize) -> Result<Training> {
    let mut trainer = trainer.to_device(&place.device, place.dtype)?;
    let vision = vision(trainer.model(), load, place, steps)?;
    let samples = samples(load);
    let prepared = trainer.prepare(&samples.iter().collect::<Vec<_>>(), &mut Kept::default())?;
    let batch: Vec<_> = prepared.into_iter().map(Arc::new).collect();
    let (mut losses, mut step) = (Vec::new(), f64::INFINITY);
    for i in 0..=steps {
        let began = Instant::now();
        losses.push(trainer.step_prepared(&batch, LR)?.loss);
        if i > 0 {
            step = step.min(began.elapsed().as_secs_f64());
        }
    }
    let tokens = batch.iter().map(|s| s.ids.len()).sum();
    let memory = match &place.device {
        Device::Cpu => None,
        Device::Cuda(gpu) => Some(gpu.memory_use()),
    };
    Ok(Training {
        tokens,
        vision,
        step,
        tokens_s: tokens as f64 / (vision + step),
        losses,
        peak_bytes: memory.map(|m| m.peak),
        reserved_bytes: memory.map(|m| m.most_reserved),
    })
}

/// Seconds that the features of a batch's pictures take.
fn vision(vlm: &Vlm, load: &Load, place: &Place, runs: usize) -> Result<f64> {
    let pictures = (0..load.batch).filter_map(|i| picture(i, load));
    let tiles = pictures.map(|rgb| vlm.vision()?.images.process(&rgb)).collect::<Result<Vec<_>>>()?;
    if tiles.is_empty() {
        return Ok(0.0);
    }
    let tiles: Vec<_> = tiles.iter().collect();
    let mut fastest = f64::INFINITY;
    for _ in 0..=runs.max(1) {
        let began = Instant::now();
        vlm.features(&tiles)?;
        if let Device::Cuda(gpu) = &place.device {
            gpu.synchronize()?;
        }
        fastest = fastest.min(began.elapsed().as_secs_f64());
    }
    Ok(fastest)
}

/// Of all steps: a constant that both sides of a comparison have.
pub const LR: f64 = 2e-4;

/// Writes what a peer needs to do the same to `folder`: the checkpoint, the adapter before the first step (`adapter/`), and the batch
/// (`batch.safetensors`: ids and labels [B, T], -100 where there is no target, and pixels [B, N, 3, S, S], all f32). Returns T.
pub fn write(mut trainer: Trainer, load: &Load, folder: &Path) -> Result<usize> {
    let samples = samples(load);
    // Without features of the pictures, which a peer computes itself.
    let prepared = batch::prepare(trainer.model(), &samples.iter().collect::<Vec<_>>(), None)?;
    let longest = prepared.iter().map(|s| s.ids.len()).max().unwrap_or(0);
    if prepared.iter().any(|s| s.ids.len() != longest) {
        return Err(Error::Failure("bench model: samples of several lengths".into()));
    }
    let mut ids = Vec::new();
    let mut labels = Vec::new();
    for sample in &prepared {
        ids.extend(sample.ids.iter().map(|&id| id as f32));
        let mut row = vec![-100.0; longest];
        for &(place, target) in &sample.targets {
            row[place as usize + 1] = target as f32;
        }
        labels.extend(row);
    }
    let shape = [prepared.len(), longest];
    let mut named = vec![
        ("ids".to_string(), Tensor::from_vec(&shape, ids)?),
        ("labels".into(), Tensor::from_vec(&shape, labels)?),
    ];
    let tiles = (0..load.batch)
        .filter_map(|i| picture(i, load))
        .map(|rgb| trainer.model().vision()?.images.process(&rgb)?.normalised())
        .collect::<Result<Vec<_>>>()?;
    if let Some(first) = tiles.first() {
        let shape = [&[load.batch], first.shape()].concat();
        named.push(("pixels".into(), Tensor::concat(&tiles.iter().collect::<Vec<_>>())?.reshape(&shape)?));
    }
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let named: Vec<(String, &Tensor)> = named.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    weights::save(&folder.join("batch.safetensors"), &named)?;
    trainer.save(&folder.join("adapter"))?;
    let mut vlm = trainer.into_model();
    adapter::detach(&mut vlm);
    vlm.save(folder)?;
    Ok(longest)
}
