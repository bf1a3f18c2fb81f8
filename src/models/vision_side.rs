//! What a model sees with: the picture processor, the vision tower, the connector.

use std::path::Path;

use crate::error::Result;
use crate::models::config::Config;
use crate::models::connector::{Connector, ConnectorSaved};
use crate::models::image::{ImageProcessor, Tiles};
use crate::models::linear::{Pass, VisitLinear};
use crate::models::param::{Grads, VisitParam};
use crate::models::vision::{Vision, VisionSaved};
use crate::models::weights::Weights;
use crate::ops::patch_embed::Pixels;
use crate::tensor::Tensor;

/// Patches that go through the vision tower in one pass, unless told otherwise.
pub const PATCHES_PER_PASS: usize = 16 * 1024;

#[derive(Clone)]
pub struct VisionSide {
    pub images: ImageProcessor,
    pub tower: Vision,
    pub connector: Connector,
}

/// Activations of a pass.
pub struct Saved {
    tower: VisionSaved,
    connector: ConnectorSaved,
}

impl VisionSide {
    /// `None`: the model takes no pictures.
    pub fn take(weights: &mut Weights, folder: &Path, config: &Config) -> Result<Option<VisionSide>> {
        let Some(vision) = &config.vision else { return Ok(None) };
        Ok(Some(VisionSide {
            images: ImageProcessor::read_for(folder, vision)?,
            tower: Vision::take(weights, vision, config.family),
            connector: Connector::take(weights, vision, config.text.hidden_size, config.family),
        }))
    }

    /// Tokens that a picture becomes.
    pub fn rows(&self, picture: &Tiles) -> Result<usize> {
        Ok(self.connector.rows(self.tower.patches(&picture.pixels)?))
    }

    /// Features of pictures, [F, C]: the rows of one after those of the other.
    pub fn forward(&self, pictures: &[&Pixels], pass: Pass) -> Result<(Tensor, Saved)> {
        let (hidden, tower) = self.tower.forward(pictures, pass)?;
        let (features, connector) = self.connector.forward(&hidden, pass)?;
        Ok((features, Saved { tower, connector }))
    }

    pub fn backward(&self, grads: &mut Grads, dfeatures: &Tensor, saved: Saved) -> Result<()> {
        let need_dx = self.tower.is_trained();
        match self.connector.backward(grads, dfeatures, &saved.connector, need_dx)? {
            Some(dx) => self.tower.backward(grads, &dx, saved.tower),
            None => Ok(()),
        }
    }

    /// Features of each picture; the vision tower runs over many at once, up to `most` patches, which bounds the memory of its activations.
    pub fn features(&self, pictures: &[&Tiles], most: usize) -> Result<Vec<Tensor>> {
        let mut features = Vec::with_capacity(pictures.len());
        let mut rest = pictures;
        while !rest.is_empty() {
            let (mut patches, mut count) = (0, 0);
            for picture in rest {
                patches += self.tower.patches(&picture.pixels)?;
                if count > 0 && patches > most {
                    break;
                }
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            let pixels: Vec<&Pixels> = now.iter().map(|p| &p.pixels).collect();
            let (out, _) = self.forward(&pixels, Pass::Infer)?;
            let mut start = 0;
            for picture in now {
                let rows = self.rows(picture)?;
                features.push(out.slice(start..start + rows)?);
                start += rows;
            }
            rest = later;
        }
        Ok(features)
    }

    pub fn patches(&self, picture: &Tiles) -> Result<usize> {
        self.tower.patches(&picture.pixels)
    }

    /// Of the largest picture that there can be.
    pub fn most_patches(&self) -> usize {
        self.images.most_pixels() / self.tower.patch_size().pow(2)
    }

    /// A picture without content that has `patches` patches, or up to what makes its tiles, or tokens, whole.
    pub(super) fn blank(&self, patches: usize) -> Result<Tiles> {
        let pixels = self.images.blank(patches * self.tower.patch_size().pow(2))?;
        Ok(Tiles { rows: 0, cols: 0, pixels })
    }

    /// An adapter counts as trained.
    pub fn is_trained(&self) -> bool {
        self.tower.is_trained() || self.connector.is_trained()
    }

    pub fn visit(&mut self, f: VisitParam) {
        self.tower.visit(f);
        self.connector.visit(f);
    }

    pub fn visit_linears(&mut self, f: VisitLinear) {
        self.tower.visit_linears(f);
        self.connector.visit_linears(f);
    }
}
