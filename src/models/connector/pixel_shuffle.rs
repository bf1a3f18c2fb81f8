//! Pixel shuffle and a linear layer.

use crate::error::Result;
use crate::models::config::VisionConfig;
use crate::models::linear::{Linear, LinearSaved, Pass, VisitLinear};
use crate::models::param::Grads;
use crate::models::weights::Weights;
use crate::ops::pixel_shuffle;
use crate::tensor::Tensor;

const PROJECTION: &str = "model.connector.modality_projection.proj";

#[derive(Clone)]
pub(super) struct PixelShuffle {
    projection: Linear, // [C, C_vision * s * s]
    factor: usize,      // s
    patches: usize,     // P of one tile
}

pub struct PixelShuffleSaved {
    shuffled: Tensor, // [N * P/(s*s), C_vision * s * s]
    projection: LinearSaved,
}

impl PixelShuffle {
    pub(super) fn take(weights: &mut Weights, c: &VisionConfig, outputs: usize) -> Self {
        let inputs = c.hidden_size * c.merge.pow(2);
        PixelShuffle {
            projection: Linear::take(weights, PROJECTION, outputs, inputs, false),
            factor: c.merge,
            patches: c.tile_patches(),
        }
    }

    fn tile_rows(&self) -> usize {
        self.patches / self.factor.pow(2)
    }

    /// x [N*P, C_vision] -> [N * P/(s*s), C]
    pub(super) fn forward(&self, x: &Tensor, pass: Pass) -> Result<(Tensor, PixelShuffleSaved)> {
        let tiles = x.rows() / self.patches;
        let inputs = self.projection.inputs();
        let mut shuffled = x.like(&[tiles, self.tile_rows(), inputs])?;
        let grid = x.clone().reshape(&[tiles, self.patches, x.cols()])?;
        pixel_shuffle::forward(&mut shuffled, &grid, self.factor)?;
        let shuffled = shuffled.reshape(&[tiles * self.tile_rows(), inputs])?;
        let (out, projection) = self.projection.forward(&shuffled, pass)?;
        Ok((out, PixelShuffleSaved { shuffled, projection }))
    }

    /// The gradient of x if `need_dx`.
    pub(super) fn backward(
        &self,
        grads: &mut Grads,
        dy: &Tensor,
        saved: &PixelShuffleSaved,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        let mut dshuffled = need_dx.then(|| dy.like(saved.shuffled.shape())).transpose()?;
        self.projection.backward(grads, dshuffled.as_mut(), false, dy, &saved.shuffled, &saved.projection)?;
        let Some(dshuffled) = dshuffled else { return Ok(None) };
        let tiles = dy.rows() / self.tile_rows();
        let inputs = self.projection.inputs();
        let dshuffled = dshuffled.reshape(&[tiles, self.tile_rows(), inputs])?;
        let width = inputs / self.factor.pow(2);
        let mut dx = dy.like(&[tiles, self.patches, width])?;
        pixel_shuffle::backward(&mut dx, &dshuffled, self.factor)?;
        Ok(Some(dx.reshape(&[tiles * self.patches, width])?))
    }

    pub(super) fn is_trained(&self) -> bool {
        self.projection.is_trained()
    }

    pub(super) fn visit_linears(&mut self, f: VisitLinear) {
        f(PROJECTION, &mut self.projection);
    }
}
