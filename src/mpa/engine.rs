//! The door to models: the loop knows these traits only, so that its tests can stand in for a model.
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::models::engine::{Exchange, Limits, Next, Spent};
use crate::models::generate::{Completion, Request};
use crate::models::image::PixelBounds;
use crate::models::int8::{self, Parts};
use crate::models::vlm::Vlm;
use crate::models::{adapter, contents};
use crate::mpa::progress::Progress;
use crate::ops::kv_cache::PageType;
use crate::quant::Folds;
use crate::tensor::{DType, Device, Place};
use crate::train::fit::{self, FitReport, LoraOptions, OnStep, Sample, Tower, TrainOptions, Trainable};

/// Whatever completes prompts. What a request yields must not depend on the others of its batch.
pub trait Answerer: Send + Sync {
    /// What can be done ahead of `generate`, on another thread, while earlier requests are answered; changes nothing in the result.
    fn prepare(&self, _requests: &mut [Request]) -> Result<()> {
        Ok(())
    }

    /// `samples` completions a request, in the order of the requests.
    fn generate(&self, requests: &[Request]) -> Result<Vec<Vec<Completion>>>;

    /// Answers what comes, about `most` completions at a time; here in batches, one after the other, without a count of what it took.
    fn answer(&self, most: usize, exchange: &mut dyn Exchange) -> Result<Spent> {
        let mut answered = 0;
        loop {
            let mut requests = Vec::new();
            while requests.len() < most {
                match exchange.next(true)? {
                    Next::Request(request) => requests.push(request),
                    // More comes of the answers to these.
                    Next::Later if !requests.is_empty() => break,
                    Next::Later => {}
                    Next::End => break,
                }
            }
            if requests.is_empty() {
                return Ok(Spent::default());
            }
            halves(&|requests| self.generate(requests), &requests, answered, exchange)?;
            answered += requests.len();
        }
    }
}

/// Answers to the requests from the `first` on. Where they do not fit into memory together, one half is tried after the other.
fn halves(
    generate: &impl Fn(&[Request]) -> Result<Vec<Vec<Completion>>>,
    requests: &[Request],
    first: usize,
    exchange: &mut dyn Exchange,
) -> Result<()> {
    match generate(requests) {
        Ok(answers) => answers.into_iter().zip(first..).try_for_each(|(a, i)| exchange.done(i, Ok(a))),
        Err(Error::OutOfMemory { .. }) if requests.len() > 1 => {
            let half = requests.len() / 2;
            halves(generate, &requests[..half], first, exchange)?;
            halves(generate, &requests[half..], first + half, exchange)
        }
        Err(error) if requests.len() == 1 => exchange.done(first, Err(error)),
        Err(error) => Err(error),
    }
}

/// Whatever loads and trains models.
pub trait Engine: Sync {
    fn load(&self, model: &Path, adapter: Option<&Path>, loading: Loading) -> Result<Box<dyn Answerer>>;

    /// What it computes on, for people.
    fn device(&self) -> String {
        "unknown".to_string()
    }

    /// The type of weights and activations that was asked for, if one was.
    fn dtype(&self) -> Option<DType> {
        None
    }

    /// See `train::fit::level`.
    fn level(&self, job: Job<'_>, on_step: OnStep<'_>) -> Result<FitReport>;

    /// What would stop a training of `model` before its first step, said hours earlier. `Error::Usage` is about what is to be trained.
    fn check(&self, _model: &Path, _pixels: PixelBounds, _trainable: &Trainable) -> Result<()> {
        Ok(())
    }

    /// Writes the checkpoint of a model with an adapter in its weights to `out`.
    fn merge(&self, model: &Path, _adapter: &Path, _out: &Path) -> Result<()> {
        Err(Error::input(model, "this engine merges no adapters"))
    }
}

/// How a model differs from what its folder says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Loading {
    /// Layers that are made int8 while it is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int8: Option<Parts>,
    #[serde(flatten)]
    pub pixels: PixelBounds,
    /// How keys and values are kept.
    #[serde(skip_serializing_if = "PageType::is_float")]
    pub kv_cache: PageType,
}

/// What a model and its adapter are (`models::contents`): folders keep their names when they are made anew.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contents {
    pub model_contents: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_contents: Option<String>,
}

/// What a model is trained on, how, and where the adapter goes.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    pub model: &'a Path,
    pub samples: &'a [Sample],
    pub trainable: &'a Trainable,
    pub options: &'a TrainOptions,
    pub out: &'a Path,
}

impl Answerer for Vlm {
    fn prepare(&self, requests: &mut [Request]) -> Result<()> {
        Vlm::prepare(self, requests)
    }

    fn generate(&self, requests: &[Request]) -> Result<Vec<Vec<Completion>>> {
        Vlm::generate(self, requests)
    }

    fn answer(&self, most: usize, exchange: &mut dyn Exchange) -> Result<Spent> {
        Vlm::answer(self, Limits::completions(most), exchange)
    }
}

/// This program's own models, and where they are.
pub struct Native(pub Place);

impl Native {
    pub fn cpu() -> Native {
        Native(Place::cpu())
    }

    /// A model where models are.
    pub fn vlm(&self, model: &Path, adapter: Option<&Path>, loading: Loading) -> Result<Vlm> {
        let name = model.to_str().ok_or_else(|| Error::input(model, "the path is not UTF-8"))?;
        let mut vlm = Vlm::load(name, adapter)?.with_pixels(loading.pixels)?;
        if let Some(parts) = loading.int8 {
            vlm.quantize(parts, &Folds::new(), int8::ROTATION)?;
        }
        vlm.pages = loading.kv_cache;
        vlm.to_place(&self.0)
    }
}

impl Engine for Native {
    fn device(&self) -> String {
        match &self.0.device {
            Device::Cpu => format!("CPU, {} threads", rayon::current_num_threads()),
            gpu => gpu.to_string(),
        }
    }

    fn dtype(&self) -> Option<DType> {
        (!self.0.keep).then_some(self.0.dtype)
    }

    fn load(&self, model: &Path, adapter: Option<&Path>, loading: Loading) -> Result<Box<dyn Answerer>> {
        Ok(Box::new(self.vlm(model, adapter, loading)?))
    }

    fn level(&self, job: Job<'_>, on_step: OnStep<'_>) -> Result<FitReport> {
        fit::level(job.model, job.samples, job.trainable, job.options, &self.0, job.out, on_step)
            .map_err(|e| e.of(job.model))
    }

    /// Weights are mapped, not read: this takes as long as the tokenizer does.
    fn check(&self, model: &Path, pixels: PixelBounds, trainable: &Trainable) -> Result<()> {
        let wrong = |e: Error| Error::input(model, e.to_string());
        let name = model.to_str().ok_or_else(|| Error::input(model, "the path is not UTF-8"))?;
        let mut vlm = Vlm::load(name, None)?.with_pixels(pixels).map_err(wrong)?;
        if vlm.is_int8() {
            let what = "is in int8, expected the model that it was made from, as it is to be trained";
            return Err(Error::input(model, what));
        }
        match trainable {
            // Whatever the rank, it goes to the same layers.
            Trainable::Lora(lora) => adapter::attach(&mut vlm, &LoraOptions { rank: 1, ..lora.clone() }, 0),
            Trainable::Full(towers) => match towers.iter().find(|tower| **tower != Tower::Text) {
                Some(_) if vlm.vision.is_none() => {
                    let what = "expected text alone, as the student takes no pictures";
                    Err(Error::Usage(format!("{what}, got {towers:?}").to_lowercase()))
                }
                _ => Ok(()),
            },
        }
    }

    fn merge(&self, model: &Path, adapter: &Path, out: &Path) -> Result<()> {
        let name = model.to_str().ok_or_else(|| Error::input(model, "the path is not UTF-8"))?;
        let mut vlm = Vlm::load(name, Some(adapter))?;
        adapter::merge(&mut vlm)?;
        vlm.save(out)
    }
}

/// A model that is loaded when it is first asked: a stage that is done needs none.
pub struct Lazy<'a> {
    engine: &'a dyn Engine,
    model: PathBuf,
    adapter: Option<PathBuf>,
    how: Loading,
    progress: &'a Progress,
    loaded: OnceLock<Box<dyn Answerer>>,
    loading: Mutex<()>,
    spent: Mutex<Spent>,
}

impl<'a> Lazy<'a> {
    pub fn new(
        engine: &'a dyn Engine,
        model: PathBuf,
        adapter: Option<PathBuf>,
        progress: &'a Progress,
    ) -> Self {
        let (loaded, loading, spent) = (OnceLock::new(), Mutex::new(()), Mutex::default());
        Lazy { engine, model, adapter, how: Loading::default(), progress, loaded, loading, spent }
    }

    /// The same, loaded in this way.
    pub fn loading(self, how: Loading) -> Self {
        Lazy { how, ..self }
    }

    /// What tells it from others.
    pub fn contents(&self) -> Result<Contents> {
        let adapter = self.adapter.as_deref().map(contents::of).transpose()?;
        Ok(Contents { model_contents: contents::of(&self.model)?, adapter_contents: adapter })
    }

    /// What its answers took since this was last asked.
    pub fn take_spent(&self) -> Spent {
        std::mem::take(&mut self.spent.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Lazy<'_> {
    fn model(&self) -> Result<&dyn Answerer> {
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if self.loaded.get().is_none() {
            self.progress.note(&format!("loading {}", self.model.display()));
            let adapter = self.adapter.as_deref();
            let model = self.engine.load(&self.model, adapter, self.how).map_err(|e| e.of(&self.model))?;
            // Empty, as just seen under the lock, so that nothing is lost.
            let _ = self.loaded.set(model);
        }
        match self.loaded.get() {
            Some(model) => Ok(model.as_ref()),
            None => Err(Error::Failure(format!("{}: not loaded", self.model.display()))),
        }
    }
}

impl Answerer for Lazy<'_> {
    fn prepare(&self, requests: &mut [Request]) -> Result<()> {
        self.model()?.prepare(requests)
    }

    fn generate(&self, requests: &[Request]) -> Result<Vec<Vec<Completion>>> {
        self.model()?.generate(requests).map_err(|e| e.of(&self.model))
    }

    fn answer(&self, most: usize, exchange: &mut dyn Exchange) -> Result<Spent> {
        let spent = self.model()?.answer(most, exchange).map_err(|e| e.of(&self.model))?;
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner) += spent;
        Ok(spent)
    }
}
