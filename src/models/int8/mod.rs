//! A model with int8 layers: which they are (`Parts`), made of one in memory (`Vlm::quantize`), or shard by shard into a folder (`write`), both
//! with the same bits. `scheme.rs` is how a folder says so, `calibrate.rs` finds what SmoothQuant needs. The arithmetic is `quant`'s.

mod calibrate;
mod scheme;
mod write;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use calibrate::{Example, calibrate};
pub use scheme::Scheme;
pub use write::{Written, write};

use crate::error::{Error, Result};
use crate::models::vlm::Vlm;
use crate::ops::quantize;
use crate::quant::Folds;

/// Which linear layers are int8. Norms, embeddings and the patch embedding stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Parts {
    /// Those of the text tower's blocks.
    #[default]
    #[value(name = "text")]
    #[serde(rename = "text")]
    Text,
    /// These and the head. An embedding that is the head as well stays beside it, for the lookup.
    #[value(name = "text+head")]
    #[serde(rename = "text+head")]
    TextHead,
    /// These, the vision tower and the connector.
    #[value(name = "all")]
    #[serde(rename = "all")]
    All,
}

/// The largest rotation of a layer's input (ops::quantize) if nothing else is asked for: a layer's is the largest that divides its width. 1: none.
pub const ROTATION: usize = quantize::MOST_ROTATED;

impl Vlm {
    /// Makes the layers of `parts` int8, one after the other, with `folds` (of a calibration; empty without one) multiplied into the weights, and inputs
    /// rotated up to `rotation`. In main memory: before `to_device`.
    pub fn quantize(&mut self, parts: Parts, folds: &Folds, rotation: usize) -> Result<()> {
        let layers = self.int8_layers(parts)?;
        let mut outcome = Ok(());
        self.visit(&mut |name, param| {
            let weight = name.strip_suffix(".weight").is_some_and(|layer| layers.contains(layer));
            if let Some(fold) = folds.get(name).filter(|_| !weight && outcome.is_ok()) {
                match fold.apply(&param.value) {
                    Ok(value) => param.value = value,
                    Err(error) => outcome = Err(error),
                }
            }
        });
        outcome?;
        let mut outcome = Ok(());
        self.visit_linears(&mut |name, linear| {
            if outcome.is_ok() && layers.contains(name) {
                outcome = linear.weight.quantize(folds.get(&format!("{name}.weight")), rotation);
            }
        });
        outcome
    }

    /// Names of the layers of `parts`; the head becomes a layer of its own, if it is one of them.
    pub(super) fn int8_layers(&mut self, parts: Parts) -> Result<BTreeSet<String>> {
        if self.is_int8() {
            return Err(Error::Usage(format!("{}: this model is int8 already", self.folder.display())));
        }
        if parts != Parts::Text {
            self.text.untie();
            self.config.text.tie_word_embeddings = false;
        }
        let mut layers = BTreeSet::new();
        self.text.visit_linears(&mut |name, _| {
            layers.insert(name.to_string());
        });
        if parts == Parts::Text {
            layers.retain(|name| !self.text.is_head(name));
        }
        if parts == Parts::All {
            self.visit_linears(&mut |name, _| {
                layers.insert(name.to_string());
            });
        }
        Ok(layers)
    }

    /// Whether a layer is int8.
    pub fn is_int8(&mut self) -> bool {
        let mut found = false;
        self.visit_linears(&mut |_, linear| found |= linear.weight.is_int8());
        found
    }
}
