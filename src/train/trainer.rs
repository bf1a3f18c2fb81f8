//! One optimizer step: pack, forward, loss on the answers, backward, clip, AdamW.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::adapter::{self, LoraOptions};
use crate::models::linear::Pass;
use crate::models::param::{Grads, Param, Slots};
use crate::models::vision_side::{self, VisionSide};
use crate::models::vlm::Vlm;
use crate::ops::adamw::{Hyper, Plan};
use crate::ops::attention::Spans;
use crate::ops::{cross_entropy, embedding};
use crate::random;
use crate::tensor::{DType, Device, Indices, Tensor};
use crate::train::batch::{self, Kept, Packed, Prepared, Sample, Seen};
use crate::train::fit::TrainOptions;
use crate::train::optim::{Optimizer, Schedule, visit_trained};

/// Rows of logits that exist at a time.
const LOGIT_ROWS: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Tower {
    Vision,
    Connector,
    Text,
}

/// What is trained: adapters, or all weights of some towers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trainable {
    Lora(LoraOptions),
    Full(Vec<Tower>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean over the answer tokens of the step.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
}

pub struct Trainer {
    pub(super) vlm: Vlm,
    pub(super) optimizer: Optimizer,
    /// Steps taken.
    pub(super) steps: u64,
    trainable: Trainable,
    options: TrainOptions,
    grads: Grads,
}

impl Trainer {
    /// Adapters that the model has already are kept and trained on; without any, fresh ones are attached (`options.seed`).
    pub fn new(mut vlm: Vlm, trainable: Trainable, options: TrainOptions) -> Result<Trainer> {
        if vlm.is_int8() {
            let what = "training needs weights in floating point, and this model's are int8: take the one they were made from";
            return Err(Error::Usage(format!("{}: {what}", vlm.folder.display())));
        }
        let mut slots = Slots::default();
        let mut outcome = Ok(());
        let mut train = |param: &mut Param| {
            if outcome.is_ok() {
                outcome = param.train(&mut slots);
            }
        };
        match &trainable {
            Trainable::Lora(lora) => {
                let mut present = false;
                vlm.visit_linears(&mut |_, linear| present |= linear.lora.is_some());
                if !present {
                    adapter::attach(&mut vlm, lora, options.seed)?;
                }
                vlm.visit_linears(&mut |_, linear| {
                    if let Some(lora) = &mut linear.lora {
                        train(&mut lora.a);
                        train(&mut lora.b);
                    }
                });
            }
            Trainable::Full(towers) if towers.is_empty() => {
                return Err(Error::Usage("no tower to train, expected vision, connector or text".into()));
            }
            Trainable::Full(towers) => {
                let mut train = |_: &str, param: &mut Param| train(param);
                for tower in towers {
                    match (tower, &mut vlm.vision) {
                        (Tower::Vision, Some(vision)) => vision.tower.visit(&mut train),
                        (Tower::Connector, Some(vision)) => vision.connector.visit(&mut train),
                        (Tower::Text, _) => vlm.text.visit(&mut train),
                        (_, None) => {
                            return Err(Error::Usage("this model has no vision side to train".into()));
                        }
                    }
                }
            }
        }
        outcome?;
        let (optimizer, grads) = (Optimizer::new(&slots), slots.grads());
        Ok(Trainer { vlm, optimizer, steps: 0, trainable, options, grads })
    }

    /// Moves all to `device`; on a GPU activations, and the weights that meet them, are of type `dtype`.
    pub fn to_device(mut self, device: &Device, dtype: DType) -> Result<Trainer> {
        self.vlm = self.vlm.to_device(device, dtype)?;
        self.optimizer = self.optimizer.to_device(device)?;
        self.grads = self.grads.to_device(device)?;
        Ok(self)
    }

    pub fn model(&self) -> &Vlm {
        &self.vlm
    }

    pub fn into_model(self) -> Vlm {
        self.vlm
    }

    /// How many numbers are trained.
    pub fn trained(&self) -> usize {
        self.grads.tensors.iter().map(Tensor::len).sum()
    }

    /// Whether pictures give the same features in every step.
    pub fn vision_is_frozen(&self) -> bool {
        // An adapter on the vision side counts as trained.
        !self.vlm.vision.as_ref().is_some_and(VisionSide::is_trained)
    }

    /// Writes the adapter, or the whole checkpoint.
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        let mut outcome = Ok(());
        visit_trained(&mut self.vlm, &mut |name, param, _| {
            if outcome.is_ok() {
                outcome = finite(name, &param.value);
            }
        });
        outcome?;
        match &self.trainable {
            Trainable::Lora(lora) => adapter::save(&mut self.vlm, lora, folder),
            Trainable::Full(_) if self.vlm.text.gpu().is_none() => self.vlm.save(folder),
            Trainable::Full(_) => self.save_from_device(folder),
        }
    }

    /// What is not trained has been rounded on its way to the device: it is read again.
    fn save_from_device(&mut self, folder: &Path) -> Result<()> {
        let mut trained = HashMap::new();
        let mut outcome = Ok(());
        visit_trained(&mut self.vlm, &mut |name, param, _| match param.value.to_device(&Device::Cpu) {
            Ok(value) => drop(trained.insert(name.to_string(), value)),
            Err(error) => outcome = Err(error),
        });
        outcome?;
        let mut whole = Vlm::load(&self.vlm.folder.to_string_lossy(), None)?;
        whole.visit(&mut |name, param| {
            if let Some(value) = trained.remove(name) {
                param.value = value;
            }
        });
        whole.save(folder)
    }

    /// `kept`: this trainer's own, from one call to the next.
    pub fn prepare(&self, samples: &[&Sample], kept: &mut Kept) -> Result<Vec<Prepared>> {
        batch::prepare(&self.vlm, samples, self.vision_is_frozen().then_some(kept))
    }

    /// One step on fresh samples.
    pub fn step(&mut self, samples: &[Sample], lr: f64) -> Result<StepReport> {
        let prepared = self.prepare(&samples.iter().collect::<Vec<_>>(), &mut Kept::default())?;
        self.step_prepared(&prepared.into_iter().map(Arc::new).collect::<Vec<_>>(), lr)
    }

    /// One step at the rate `lr`.
    pub fn step_prepared(&mut self, batch: &[Arc<Prepared>], lr: f64) -> Result<StepReport> {
        let plan = Plan { schedule: Schedule::Constant, peak: lr, warmup: 0.0, ..self.plan(1) };
        self.step_planned(batch, plan)
    }

    /// The options' schedule over a run of `steps` steps.
    pub fn plan(&self, steps: usize) -> Plan {
        let o = &self.options;
        let hyper = Hyper {
            lr: o.lr as f32,
            beta1: o.beta1,
            beta2: o.beta2,
            eps: o.eps,
            weight_decay: o.weight_decay,
        };
        let max_norm = if o.max_grad_norm > 0.0 { o.max_grad_norm } else { f32::INFINITY };
        Plan { schedule: o.schedule, peak: o.lr, steps, warmup: o.warmup, max_norm, hyper }
    }

    /// One step of the run that `plan` is of. A GPU is waited for once, at its end.
    pub fn step_planned(&mut self, batch: &[Arc<Prepared>], plan: Plan) -> Result<StepReport> {
        let losses = self.backward(batch)?;
        self.optimizer.step(&mut self.vlm, &mut self.grads, plan, self.steps)?;
        let grad_norm = self.optimizer.norm()?;
        self.steps += 1;
        Ok(StepReport { loss: mean(&losses, batch)?, grad_norm })
    }

    /// Mean loss over the answer tokens; the gradients of it replace the last step's.
    pub fn gradients(&mut self, batch: &[Arc<Prepared>]) -> Result<f64> {
        let losses = self.backward(batch)?;
        mean(&losses, batch)
    }

    /// The gradients of the mean loss replace the last step's. Returns the answer tokens' losses, where they were computed.
    fn backward(&mut self, batch: &[Arc<Prepared>]) -> Result<Vec<Tensor>> {
        self.grads.clear()?;
        let tokens = answer_tokens(batch);
        if tokens == 0 {
            return Err(Error::Usage("a batch without a single answer token, nothing to learn".into()));
        }
        let micro = batch.len().div_ceil(self.options.accumulate.max(1));
        let recompute = self.options.recompute;
        let mut losses = Vec::new();
        for (i, part) in batch.chunks(micro).enumerate() {
            let seed = random::mix(self.options.seed, &[self.steps, i as u64]);
            let pass = Pass::Train { seed, recompute };
            self.micro_batch(&mut losses, part, 1.0 / tokens as f32, pass)?;
        }
        Ok(losses)
    }

    /// The trained weights' gradients, by name.
    pub fn named_gradients(&mut self) -> Vec<(String, Tensor)> {
        let mut named = Vec::new();
        let grads = &self.grads;
        visit_trained(&mut self.vlm, &mut |name, _, slot| {
            named.push((name.to_string(), grads.tensors[slot].clone()));
        });
        named
    }

    /// Keeps the losses of the answer tokens in `losses`; adds `scale` times the gradient of their sum.
    fn micro_batch(
        &mut self,
        losses: &mut Vec<Tensor>,
        batch: &[Arc<Prepared>],
        scale: f32,
        pass: Pass,
    ) -> Result<()> {
        let packed = batch::pack(&self.vlm, batch)?;
        let (features, vision) = self.features(&packed.pictures, pass)?;
        let indices = |list: &[u32]| Indices::from(list);
        let (places, sources) = (indices(&packed.places), indices(&packed.sources));
        let spans = Arc::new(Spans::from(packed.spans.as_slice()));
        let mut x = self.vlm.text.embed(&indices(&packed.ids))?;
        if let Some(features) = &features {
            embedding::splice(&mut x, features, &places, &sources)?;
        }
        let (hidden, saved) = self.vlm.text.forward(x, &packed.positions, &spans, pass)?;
        let dhidden = self.loss(losses, &hidden, &packed, scale, pass)?;

        let text = &self.vlm.text;
        let Some(mut dx) = text.backward(&mut self.grads, dhidden, saved, vision.is_some())? else {
            return Ok(());
        };
        if let Some(features) = features {
            let mut dfeatures = features.like(features.shape())?;
            dfeatures.clear()?;
            embedding::splice_backward(&mut dfeatures, &mut dx, &places, &sources)?;
            if let Some(saved) = vision {
                self.vlm.vision()?.backward(&mut self.grads, &dfeatures, saved)?;
            }
        }
        self.vlm.text.embed_backward(&mut self.grads, &packed.ids, &dx)
    }

    /// Features of the pictures, [F, C], and what the backward needs if the vision side is trained.
    fn features(
        &self,
        pictures: &[&Seen],
        pass: Pass,
    ) -> Result<(Option<Tensor>, Option<vision_side::Saved>)> {
        let device = self.vlm.text.device();
        let (mut pixels, mut rows) = (Vec::new(), Vec::new());
        for picture in pictures {
            match picture {
                Seen::Tiles(tiles) => pixels.push(&tiles.pixels),
                Seen::Features { rows: r, .. } => rows.push(r),
            }
        }
        if pixels.is_empty() {
            let features =
                (!rows.is_empty()).then(|| Tensor::concat(&rows)?.to_device(&device)).transpose()?;
            return Ok((features, None));
        }
        let (features, saved) = self.vlm.vision()?.forward(&pixels, pass)?;
        Ok((Some(features), Some(saved)))
    }

    /// The gradient of hidden [T, C], and the losses, kept in `losses`: only rows with a target meet the vocabulary, a few at a time.
    fn loss(
        &mut self,
        losses: &mut Vec<Tensor>,
        hidden: &Tensor,
        packed: &Packed,
        scale: f32,
        pass: Pass,
    ) -> Result<Tensor> {
        let mut dhidden = hidden.like(hidden.shape())?;
        dhidden.clear()?;
        let chunks = packed.target_rows.chunks(LOGIT_ROWS).zip(packed.targets.chunks(LOGIT_ROWS));
        for (rows, targets) in chunks {
            let (rows, targets) = (Indices::from(rows), Indices::from(targets));
            let mut picked = hidden.like(&[rows.len(), hidden.cols()])?;
            embedding::forward(&mut picked, &rows, hidden)?;
            let (logits, saved) = self.vlm.text.logits(picked, pass)?;
            let mut part = logits.like_f32(&[rows.len()])?;
            let mut dlogits = hidden.like(logits.shape())?;
            cross_entropy::forward(&mut part, Some(&mut dlogits), &logits, &targets, scale)?;
            losses.push(part);
            let dpicked = self.vlm.text.logits_backward(&mut self.grads, &dlogits, &saved)?;
            let sources: Indices = (0..rows.len() as u32).collect();
            embedding::splice(&mut dhidden, &dpicked, &rows, &sources)?;
        }
        Ok(dhidden)
    }
}

/// An error if training has left a weight that is no number.
fn finite(name: &str, weight: &Tensor) -> Result<()> {
    let weight = weight.to_device(&Device::Cpu)?.to_f32()?;
    match weight.f32s()?.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(bad) => Err(Error::Failure(format!(
            "the training came to {bad} in {name}, and is not saved: a smaller learning rate may help"
        ))),
    }
}

fn answer_tokens(batch: &[Arc<Prepared>]) -> usize {
    batch.iter().map(|s| s.targets.len()).sum()
}

/// Of the losses of a batch's answer tokens.
fn mean(losses: &[Tensor], batch: &[Arc<Prepared>]) -> Result<f64> {
    let mut sum = 0.0;
    for part in losses {
        sum += cross_entropy::sum(part)?;
    }
    Ok(sum / answer_tokens(batch) as f64)
}
