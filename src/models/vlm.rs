//! A whole model: prompter, picture processor, vision tower, connector, text tower.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::models::adapter;
use crate::models::config::Config;
use crate::models::connector::Connector;
use crate::models::hub;
use crate::models::image::{ImageProcessor, Tiles};
use crate::models::int8::Scheme;
use crate::models::linear::{Pass, VisitLinear};
use crate::models::param::{Param, VisitParam};
use crate::models::prompt::{Message, Prompter};
use crate::models::text::Text;
use crate::models::vision::Vision;
use crate::models::weights::{self, Weights};
use crate::ops::attention::{Span, Spans};
use crate::ops::embedding;
use crate::ops::patch_embed::Pixels;
use crate::tensor::{DType, Device, Indices, Tensor};

/// Patches that go through the vision tower in one pass: bounds the memory of its activations.
const PATCHES_PER_PASS: usize = 16 * 1024;

pub struct Vlm {
    pub folder: PathBuf,
    pub config: Config,
    pub prompter: Prompter,
    pub images: ImageProcessor,
    pub vision: Vision,
    pub connector: Connector,
    pub text: Text,
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
        let vision = Vision::take(&mut weights, &config.vision);
        let connector = Connector::take(&mut weights, &config);
        let text = Text::take(&mut weights, &config.text);
        weights.finish()?;
        let prompter = Prompter::read(&folder, connector.tile_tokens())?;
        let images = ImageProcessor::read(&folder)?;
        Ok(Vlm { folder, config, prompter, images, vision, connector, text })
    }

    /// The model with all weights on `device`. On a GPU ops read them as `dtype`, in main memory they stay as they are.
    pub fn to_device(mut self, device: &Device, dtype: DType) -> Result<Vlm> {
        if *device == Device::Cpu {
            return Ok(self);
        }
        let mut outcome = Ok(());
        let mut place = |param: &mut Param| {
            if outcome.is_ok() {
                outcome = param.place(device, dtype);
            }
        };
        self.visit(&mut |_, param| place(param));
        self.visit_linears(&mut |_, linear| {
            if let Some(lora) = &mut linear.lora {
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
        self.prompter.encode(&self.prompter.expand(&text, grids)?, true)
    }

    /// Features of each picture, [tiles * tile_tokens, C]; the vision tower runs over many tiles at once.
    pub fn features(&self, pictures: &[&Tiles]) -> Result<Vec<Tensor>> {
        let vision = &self.config.vision;
        let tile_patches = (vision.image_size / vision.patch_size).pow(2);
        let per_pass = (PATCHES_PER_PASS / tile_patches).max(1);
        let mut features = Vec::with_capacity(pictures.len());
        let mut rest = pictures;
        while !rest.is_empty() {
            let mut tiles = 0;
            let count = rest
                .iter()
                .take_while(|p| {
                    tiles += p.pixels.count();
                    tiles <= per_pass
                })
                .count()
                .max(1);
            let (now, later) = rest.split_at(count);
            self.features_pass(now, &mut features)?;
            rest = later;
        }
        Ok(features)
    }

    fn features_pass(&self, pictures: &[&Tiles], features: &mut Vec<Tensor>) -> Result<()> {
        let pixels = Pixels::concat(&pictures.iter().map(|p| &p.pixels).collect::<Vec<_>>())?;
        let (hidden, _) = self.vision.forward(&pixels, Pass::Infer)?;
        let (out, _) = self.connector.forward(&hidden, Pass::Infer)?;
        let mut start = 0;
        for picture in pictures {
            let rows = picture.pixels.count() * self.connector.tile_tokens();
            features.push(out.slice(start..start + rows)?);
            start += rows;
        }
        Ok(())
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

    /// What the text tower makes of one prompt, [T, C], before the final norm.
    pub fn states(&self, prompt: &Prompt) -> Result<Tensor> {
        let len = prompt.ids.len();
        let positions: Vec<u32> = (0..len as u32).collect();
        let spans = Spans::from(vec![Span { q_start: 0, q_len: len, k_start: 0, k_len: len }]);
        let x = self.embed(std::slice::from_ref(prompt))?;
        let mut cache = self.text.cache(len)?;
        self.text.forward_cached(x, &positions, &(0..len as u32).collect(), &spans, &mut cache)
    }

    /// Indices of the picture tokens among `ids`.
    pub fn picture_tokens(&self, ids: &[u32]) -> Vec<u32> {
        let is_picture = |(i, &id): (usize, &u32)| (id == self.config.image_token_id).then_some(i as u32);
        ids.iter().enumerate().filter_map(is_picture).collect()
    }

    /// Every weight with its checkpoint name.
    pub fn visit(&mut self, f: VisitParam) {
        self.vision.visit(f);
        self.connector.visit(f);
        self.text.visit(f);
    }

    /// Every linear layer with its module name: where adapters can go.
    pub fn visit_linears(&mut self, f: VisitLinear) {
        self.vision.visit_linears(f);
        self.connector.visit_linears(f);
        self.text.visit_linears(f);
    }

    /// Writes a plain checkpoint folder: the weights as they are now, beside copies of the other files it was read from.
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        let scheme = Scheme::read(&self.folder)?;
        let mut as_read = true;
        self.visit_linears(&mut |name, linear| {
            as_read &= linear.weight.is_int8() == scheme.as_ref().is_some_and(|s| s.covers(name));
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
            Ok(value) => tensors.push((name.to_string(), value)),
            Err(error) => outcome = Err(error),
        });
        outcome?;
        let borrowed: Vec<(String, &Tensor)> = tensors.iter().map(|(n, t)| (n.clone(), t)).collect();
        weights::save(&folder.join("model.safetensors"), &borrowed)
    }
}
