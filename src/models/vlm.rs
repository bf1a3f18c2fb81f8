//! A whole model: prompter, vision side, text tower.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::models::adapter;
use crate::models::config::Config;
use crate::models::family::renamed;
use crate::models::hub;
use crate::models::image::{PixelBounds, Tiles};
use crate::models::int8::Scheme;
use crate::models::linear::VisitLinear;
use crate::models::param::{Param, VisitParam};
use crate::models::prompt::{Content, Message, Placeholders, Prompter};
use crate::models::rope::Position;
use crate::models::text::Text;
use crate::models::vision_side::{PATCHES_PER_PASS, VisionSide};
use crate::models::weights::{self, Weights};
use crate::ops::attention::{PagedSpans, Span};
use crate::ops::embedding;
use crate::ops::kv_cache::{PAGE, PageType};
use crate::tensor::{DType, Device, Indices, Place, Tensor};

pub struct Vlm {
    pub folder: PathBuf,
    pub config: Config,
    pub prompter: Prompter,
    /// `None`: it takes no pictures.
    pub vision: Option<VisionSide>,
    pub text: Text,
    /// How keys and values are kept where there is a cache of them.
    pub pages: PageType,
}

/// A prompt as the text tower takes it: ids, and the features of its picture tokens in order.
pub struct Prompt<'a> {
    pub ids: &'a [u32],
    pub features: Vec<&'a Tensor>, // [F, C] each
}

impl Vlm {
    /// A checkpoint folder or hub id, with a PEFT adapter folder if given.
    pub fn load(model: &str, adapter: Option<&Path>) -> Result<Vlm> {
        let folder = hub::resolve(model)?;
        let weights = Weights::open(&folder)?;
        let mut vlm = Vlm::with_weights(folder, weights)?;
        if let Some(adapter) = adapter {
            adapter::load(&mut vlm, adapter)?;
        }
        Ok(vlm)
    }

    /// The settings of a checkpoint folder, with weights from wherever.
    pub fn with_weights(folder: PathBuf, mut weights: Weights) -> Result<Vlm> {
        let config = Config::read(&folder)?;
        weights.expect_int8(Scheme::read(&folder)?);
        weights.rename(config.family.renames());
        let vision = VisionSide::take(&mut weights, &folder, &config)?;
        let text = Text::take(&mut weights, &config.text, config.family.text());
        weights.finish()?;
        let prompter = Prompter::read(&folder, Placeholders::of(&config))?;
        Ok(Vlm { folder, config, prompter, vision, text, pages: PageType::default() })
    }

    /// The model with its weights where and as `place` says.
    pub fn to_place(self, place: &Place) -> Result<Vlm> {
        if place.device == Device::Cpu && place.keep {
            return Ok(self);
        }
        self.placed(&place.device, place.dtype)
    }

    /// The model with other bounds on the pixels of a picture.
    pub fn with_pixels(mut self, pixels: PixelBounds) -> Result<Vlm> {
        if !pixels.is_none() {
            self.vision()?;
        }
        if let Some(vision) = self.vision.take() {
            let images = vision.images.with_pixels(pixels)?;
            self.vision = Some(VisionSide { images, ..vision });
        }
        Ok(self)
    }

    /// The model with all weights on `device`. On a GPU ops read them as `dtype`, in main memory they stay as they are.
    pub fn to_device(self, device: &Device, dtype: DType) -> Result<Vlm> {
        if *device == Device::Cpu { Ok(self) } else { self.placed(device, dtype) }
    }

    fn placed(mut self, device: &Device, dtype: DType) -> Result<Vlm> {
        let mut outcome = Ok(());
        let mut place = |param: &mut Param| {
            if outcome.is_ok() {
                outcome = param.place(device, dtype);
            }
        };
        self.visit(&mut |_, param| place(param));
        self.visit_linears(&mut |_, linear| {
            // On a CPU activations are f32, and adapters with them.
            if let Some(lora) = linear.lora.as_mut().filter(|_| *device != Device::Cpu) {
                place(&mut lora.a);
                place(&mut lora.b);
            }
        });
        outcome?;
        Ok(self)
    }

    /// Token ids of a conversation whose pictures have these grids (`Tiles::grid`).
    pub fn encode(&self, messages: &[Message], grids: &[(usize, usize)], generate: bool) -> Result<Vec<u32>> {
        let text = self.prompter.render(messages, generate)?;
        self.prompter.encode_rendered(&self.prompter.expand(&text, grids)?)
    }

    /// The same with the assistant's answer and the end of its turn; and where the answer starts.
    pub fn encode_answered(
        &self,
        messages: &[Message],
        grids: &[(usize, usize)],
        answer: &str,
    ) -> Result<(Vec<u32>, usize)> {
        let prompt = self.encode(messages, grids, true)?;
        let mut messages = messages.to_vec();
        messages.push(Message::new("assistant", vec![Content::Text(answer.to_string())]));
        let mut ids = self.encode(&messages, grids, false)?;
        // The answer starts where the conversation leaves the prompt (a tokenizer may merge across the seam) and ends with the turn.
        let start = ids.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
        let is_end = |id: &u32| self.config.eos_token_ids.contains(id);
        if let Some(end) = ids.iter().rposition(is_end).filter(|&end| end >= start) {
            ids.truncate(end + 1);
        }
        Ok((ids, start))
    }

    /// What it sees with; an error if it takes no pictures.
    pub fn vision(&self) -> Result<&VisionSide> {
        self.vision.as_ref().ok_or_else(|| Error::input(&self.folder, "this model takes no pictures"))
    }

    /// Features of each picture, [F, C]; the vision tower runs over many at once.
    pub fn features(&self, pictures: &[&Tiles]) -> Result<Vec<Tensor>> {
        if pictures.is_empty() { Ok(Vec::new()) } else { self.vision()?.features(pictures, PATCHES_PER_PASS) }
    }

    /// Where each token is, and where the one behind them will be: one after the other; with M-RoPE the tokens of a picture, whose grid is the
    /// next of `grids`, lie in its plane, and what follows is as far on as the plane's longer side (Qwen2-VL, arXiv 2409.12191).
    pub fn positions(&self, ids: &[u32], grids: &[(usize, usize)]) -> Result<(Vec<Position>, u32)> {
        let image = self.image_token_id().filter(|_| self.config.text.mrope.is_some());
        let mut positions = Vec::with_capacity(ids.len());
        let (mut next, mut grids) = (0, grids.iter());
        while let Some(&id) = ids.get(positions.len()) {
            if Some(id) != image {
                positions.push([next; 3]);
                next += 1;
                continue;
            }
            let run = ids[positions.len()..].iter().take_while(|&&id| Some(id) == image).count();
            let Some(&(rows, cols)) = grids.next().filter(|(rows, cols)| (1..=run).contains(&(rows * cols)))
            else {
                return Err(Error::Failure(format!("{run} picture tokens that no picture has made")));
            };
            let plane = (0..rows * cols).map(|i| [0, i / cols, i % cols].map(|at| next + at as u32));
            positions.extend(plane);
            next += rows.max(cols) as u32;
        }
        Ok((positions, next))
    }

    /// Embeddings of packed prompts, [T, C], picture features in the places of picture tokens.
    pub fn embed(&self, prompts: &[Prompt]) -> Result<Tensor> {
        let ids: Indices = prompts.iter().flat_map(|p| p.ids).copied().collect();
        let mut x = self.text.embed(&ids)?;
        let mut start = 0;
        for prompt in prompts {
            let places = self.picture_tokens(prompt.ids);
            let rows: usize = prompt.features.iter().map(|f| f.rows()).sum();
            if places.len() != rows {
                return Err(Error::Failure(format!(
                    "a prompt has {} picture tokens for {rows} rows of picture features",
                    places.len()
                )));
            }
            let mut places = places.iter().map(|p| p + start);
            for features in &prompt.features {
                let sources: Indices = (0..features.rows() as u32).collect();
                let positions: Indices = places.by_ref().take(sources.len()).collect();
                embedding::splice(&mut x, features, &positions, &sources)?;
            }
            start += prompt.ids.len() as u32;
        }
        Ok(x)
    }

    /// What the text tower makes of one prompt, whose pictures have these grids: [T, C], before the final norm.
    pub fn states(&self, prompt: &Prompt, grids: &[(usize, usize)]) -> Result<Tensor> {
        let len = prompt.ids.len();
        let (positions, _) = self.positions(prompt.ids, grids)?;
        let table = (0..len.div_ceil(PAGE) as u32).collect();
        let spans = PagedSpans::new(vec![Span { q_start: 0, q_len: len, k_start: 0, k_len: len }], table);
        let x = self.embed(std::slice::from_ref(prompt))?;
        let mut cache = self.text.cache(len.div_ceil(PAGE), self.pages)?;
        self.text.forward_cached(x, &positions, &(0..len as u32).collect(), &spans, &mut cache)
    }

    /// Indices of the picture tokens among `ids`.
    pub fn picture_tokens(&self, ids: &[u32]) -> Vec<u32> {
        let image = self.image_token_id();
        let is_picture = |(i, &id): (usize, &u32)| (Some(id) == image).then_some(i as u32);
        ids.iter().enumerate().filter_map(is_picture).collect()
    }

    fn image_token_id(&self) -> Option<u32> {
        self.config.vision.as_ref().map(|vision| vision.image_token_id)
    }

    /// Every weight with its checkpoint name.
    pub fn visit(&mut self, f: VisitParam) {
        if let Some(vision) = &mut self.vision {
            vision.visit(f);
        }
        self.text.visit(f);
    }

    /// Every linear layer with its module name: where adapters can go.
    pub fn visit_linears(&mut self, f: VisitLinear) {
        if let Some(vision) = &mut self.vision {
            vision.visit_linears(f);
        }
        self.text.visit_linears(f);
    }

    /// Writes a plain checkpoint folder: the weights as they are now, beside copies of the other files it was read from.
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        let scheme = Scheme::read(&self.folder)?;
        let mut as_read = true;
        let renames = self.config.family.renames();
        self.visit_linears(&mut |name, linear| {
            as_read &= linear.weight.is_int8() == scheme.as_ref().is_some_and(|s| s.covers(name, renames));
        });
        if !as_read {
            let what = "this model was made int8 in memory: `mpa quantize` writes it as a folder";
            return Err(Error::Usage(format!("{}: {what}", self.folder.display())));
        }
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        for name in hub::SETTINGS {
            let path = self.folder.join(name);
            if path.exists() {
                std::fs::copy(&path, folder.join(name)).map_err(|e| Error::io(&path, e))?;
            }
        }
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        let mut outcome = Ok(());
        self.visit(&mut |name, param| match param.value.to_device(&Device::Cpu) {
            Ok(value) => tensors.push((renamed(name, renames), value)),
            Err(error) => outcome = Err(error),
        });
        outcome?;
        let borrowed: Vec<(String, &Tensor)> = tensors.iter().map(|(n, t)| (n.clone(), t)).collect();
        weights::save(&folder.join("model.safetensors"), &borrowed)
    }
}
