//! Vision features to text embeddings: pixel shuffle, then a linear layer.

use crate::error::Result;
use crate::models::config::Config;
use crate::models::linear::{Linear, LinearSaved, Pass, VisitLinear};
use crate::models::param::{Grads, VisitParam};
use crate::models::weights::Weights;
use crate::ops::pixel_shuffle;
use crate::tensor::Tensor;

const PROJECTION: &str = "model.connector.modality_projection.proj";

pub struct Connector {
    projection: Linear, // [C, C_vision * s * s]
    factor: usize,      // s
    patches: usize,     // P of one tile
}

pub struct ConnectorSaved {
    shuffled: Tensor, // [N * P/(s*s), C_vision * s * s]
    projection: LinearSaved,
}

impl Connector {
    pub fn take(weights: &mut Weights, c: &Config) -> Self {
        let inputs = c.vision.hidden_size * c.scale_factor.pow(2);
        Connector {
            projection: Linear::take(weights, PROJECTION, c.text.hidden_size, inputs, false),
            factor: c.scale_factor,
            patches: (c.vision.image_size / c.vision.patch_size).pow(2),
        }
    }

    /// Tokens that one tile becomes.
    pub fn tile_tokens(&self) -> usize {
        self.patches / self.factor.pow(2)
    }

    /// x [N*P, C_vision] -> [N * tile_tokens, C]
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Result<(Tensor, ConnectorSaved)> {
        let tiles = x.rows() / self.patches;
        let inputs = self.projection.inputs();
        let mut shuffled = x.like(&[tiles, self.tile_tokens(), inputs])?;
        let grid = x.clone().reshape(&[tiles, self.patches, x.cols()])?;
        pixel_shuffle::forward(&mut shuffled, &grid, self.factor)?;
        let shuffled = shuffled.reshape(&[tiles * self.tile_tokens(), inputs])?;
        let (out, projection) = self.projection.forward(&shuffled, pass)?;
        Ok((out, ConnectorSaved { shuffled, projection }))
    }

    /// The gradient of x if `need_dx`.
    pub fn backward(
        &self,
        grads: &mut Grads,
        dy: &Tensor,
        saved: &ConnectorSaved,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let mut dshuffled = need_dx.then(|| dy.like(saved.shuffled.shape())).transpose()?;
        self.projection.backward(grads, dshuffled.as_mut(), false, dy, &saved.shuffled, &saved.projection)?;
        let Some(dshuffled) = dshuffled else { return Ok(None) };
        let tiles = dy.rows() / self.tile_tokens();
        let inputs = self.projection.inputs();
        let dshuffled = dshuffled.reshape(&[tiles, self.tile_tokens(), inputs])?;
        let width = inputs / self.factor.pow(2);
        let mut dx = dy.like(&[tiles, self.patches, width])?;
        pixel_shuffle::backward(&mut dx, &dshuffled, self.factor)?;
        Ok(Some(dx.reshape(&[tiles * self.patches, width])?))
    }

    pub fn is_trained(&self) -> bool {
        self.projection.is_trained()
    }

    pub fn visit(&mut self, f: VisitParam) {
        self.projection.visit(PROJECTION, f);
    }

    pub fn visit_linears(&mut self, f: VisitLinear) {
        f(PROJECTION, &mut self.projection);
    }
}
