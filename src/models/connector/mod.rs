//! From patches to tokens: a square of patches becomes one row of the text tower's width. By pixel shuffle and a linear layer (Idefics3), or by
//! the merger, a norm and an MLP over the square (Qwen2-VL).

mod merger;
mod pixel_shuffle;

use merger::{Merger, MergerSaved};
use pixel_shuffle::{PixelShuffle, PixelShuffleSaved};

use crate::error::{Error, Result};
use crate::models::config::VisionConfig;
use crate::models::family::Family;
use crate::models::linear::{Pass, VisitLinear};
use crate::models::param::{Grads, VisitParam};
use crate::models::weights::Weights;
use crate::tensor::Tensor;

#[derive(Clone)]
pub struct Connector {
    kind: Kind,
    merge: usize,
}

#[allow(clippy::large_enum_variant)] // There is one in a model.
#[derive(Clone)]
enum Kind {
    PixelShuffle(PixelShuffle),
    Merger(Merger),
}

#[allow(clippy::large_enum_variant)] // There is one in a pass.
pub enum ConnectorSaved {
    PixelShuffle(PixelShuffleSaved),
    Merger(MergerSaved),
}

impl Connector {
    /// `outputs`: the text tower's width.
    pub fn take(weights: &mut Weights, c: &VisionConfig, outputs: usize, family: Family) -> Self {
        let kind = match family {
            Family::Qwen2Vl => Kind::Merger(Merger::take(weights, c, outputs)),
            Family::Idefics3 | Family::Llama => Kind::PixelShuffle(PixelShuffle::take(weights, c, outputs)),
        };
        Connector { kind, merge: c.merge }
    }

    /// Rows that so many patches become.
    pub fn rows(&self, patches: usize) -> usize {
        patches / self.merge.pow(2)
    }

    /// x [T, C_vision] -> [rows(T), C]
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Result<(Tensor, ConnectorSaved)> {
        match &self.kind {
            Kind::PixelShuffle(c) => c.forward(x, pass).map(|(y, s)| (y, ConnectorSaved::PixelShuffle(s))),
            Kind::Merger(c) => c.forward(x, pass).map(|(y, s)| (y, ConnectorSaved::Merger(s))),
        }
    }

    /// The gradient of x if `need_dx`.
    pub fn backward(
        &self,
        grads: &mut Grads,
        dy: &Tensor,
        saved: &ConnectorSaved,
        need_dx: bool,
    ) -> Result<Option<Tensor>> {
        match (&self.kind, saved) {
            (Kind::PixelShuffle(c), ConnectorSaved::PixelShuffle(s)) => c.backward(grads, dy, s, need_dx),
            (Kind::Merger(c), ConnectorSaved::Merger(s)) => c.backward(grads, dy, s, need_dx),
            _ => Err(Error::Failure("activations of another connector".into())),
        }
    }

    pub fn is_trained(&self) -> bool {
        match &self.kind {
            Kind::PixelShuffle(c) => c.is_trained(),
            Kind::Merger(c) => c.is_trained(),
        }
    }

    pub fn visit(&mut self, f: VisitParam) {
        if let Kind::Merger(c) = &mut self.kind {
            c.visit_norm(f);
        }
        self.visit_linears(&mut |name, linear| linear.visit(name, f));
    }

    pub fn visit_linears(&mut self, f: VisitLinear) {
        match &mut self.kind {
            Kind::PixelShuffle(c) => c.visit_linears(f),
            Kind::Merger(c) => c.visit_linears(f),
        }
    }
}
