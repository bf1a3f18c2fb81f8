//! Writes a model's int8 folder, tensor by tensor: what is held at a time is one tensor, and the pages of the file it comes from.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::{Parts, scheme};
use crate::error::{Error, Result};
use crate::models::config::read_json;
use crate::models::family::Renames;
use crate::models::hub;
use crate::models::text::HEAD;
use crate::models::vlm::Vlm;
use crate::models::weight::SCALE;
use crate::models::weights::{self, Announced, INDEX, SINGLE, Weights};
use crate::ops::quantize;
use crate::quant::{self, Fold, Folds};
use crate::tensor::{DType, Tensor};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Written {
    pub layers: usize,
    pub shards: usize,
    pub bytes_before: u64,
    pub bytes: u64,
}

/// How a tensor of the new folder comes of one of the old.
enum Origin {
    Copied,
    Folded(Fold),
    Matrix(Option<Fold>, usize),
    Scales(Option<Fold>, usize),
}

/// Writes `vlm`, as its folder has it, into `out` with the layers of `parts` in int8, as `Vlm::quantize` makes them.
pub fn write(vlm: &mut Vlm, parts: Parts, folds: &Folds, rotation: usize, out: &Path) -> Result<Written> {
    let (tied, says_tied) = (vlm.text.is_tied(), vlm.config.text.tie_word_embeddings);
    let layers = vlm.int8_layers(parts)?;
    let mut dense = Vec::new();
    vlm.visit_linears(&mut |name, _| {
        if !layers.contains(name) {
            dense.push(name.to_string());
        }
    });
    if tied && parts == Parts::Text {
        // No layer here, but one to transformers, which would want its scales.
        dense.push(HEAD.to_string());
    }
    let mut names = Vec::new();
    vlm.visit(&mut |name, _| names.push(name.to_string()));
    let mut plan = Plan {
        names,
        renames: vlm.config.family.renames(),
        layers: &layers,
        folds,
        rotation,
        embedding: tied.then(|| vlm.text.embedding_name()),
        head_alone: false,
    };
    let from = vlm.folder.clone();
    let sharded = !from.join(SINGLE).exists();
    let shards: BTreeSet<String> = match sharded {
        true => weights::read_index(&from)?.into_values().collect(),
        false => BTreeSet::from([SINGLE.to_string()]),
    };
    plan.head_alone = plan.has_no_embedding(shards.iter().map(|shard| from.join(shard)))?;
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let mut written = Written { layers: layers.len(), shards: shards.len(), bytes_before: 0, bytes: 0 };
    let (mut places, mut total) = (BTreeMap::new(), 0);
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).map_err(|e| Error::io(path, e));
    for shard in &shards {
        let (source, target) = (from.join(shard), out.join(shard));
        for (name, bytes) in plan.shard(&source, &target)? {
            places.insert(name, shard.clone());
            total += bytes;
        }
        written.bytes_before += size(&source)?;
        written.bytes += size(&target)?;
    }
    if sharded {
        let index = json!({"metadata": {"total_size": total}, "weight_map": places});
        save_json(&out.join(INDEX), &index)?;
    }
    // The settings come last: without a config.json the folder is no model.
    for name in hub::SETTINGS.iter().rev().filter(|name| from.join(name).exists()) {
        let path = from.join(name);
        if *name == "config.json" {
            save_json(
                &out.join(name),
                &config(&path, scheme::section(&dense, rotation), says_tied && parts != Parts::Text)?,
            )?;
        } else {
            std::fs::copy(&path, out.join(name)).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(written)
}

struct Plan<'a> {
    /// Of all weights, as the modules have them.
    names: Vec<String>,
    renames: Renames,
    layers: &'a BTreeSet<String>,
    folds: &'a Folds,
    /// The largest.
    rotation: usize,
    /// The name of the embedding that is the head as well.
    embedding: Option<String>,
    /// Of the two the head is stored.
    head_alone: bool,
}

impl Plan<'_> {
    /// Whether an embedding is wanted that no file has.
    fn has_no_embedding(&self, mut files: impl Iterator<Item = PathBuf>) -> Result<bool> {
        let Some(embedding) = &self.embedding else { return Ok(false) };
        let has = |path: PathBuf| -> Result<bool> {
            let mut file = Weights::open_file(&path)?;
            file.rename(self.renames);
            Ok(file.contains(embedding))
        };
        files.try_fold(true, |none, file| Ok(none && !has(file)?))
    }

    /// Writes one file; the tensors in it and their bytes.
    fn shard(&self, source: &Path, target: &Path) -> Result<BTreeMap<String, usize>> {
        let mut file = Weights::open_file(source)?;
        file.rename(self.renames);
        let modules: BTreeMap<String, &str> =
            self.names.iter().map(|name| (file.stored(name), name.as_str())).collect();
        let (mut announced, mut origins) = (Vec::new(), BTreeMap::new());
        for name in file.names() {
            let tensor = file.view(&name)?;
            let module = modules.get(&name).copied().unwrap_or(&name);
            for (to, origin) in self.becomes(module) {
                let to = file.stored(&to);
                let (dtype, shape) = match &origin {
                    Origin::Copied => (tensor.dtype(), tensor.shape().to_vec()),
                    Origin::Folded(_) => (Fold::dtype(tensor.dtype()), tensor.shape().to_vec()),
                    Origin::Matrix(..) => (DType::I8, tensor.shape().to_vec()),
                    Origin::Scales(..) => (DType::F32, vec![tensor.rows(), 1]),
                };
                announced.push(Announced { name: to.clone(), dtype, shape });
                origins.insert(to, (name.clone(), origin));
            }
        }
        let sizes = announced.iter().map(|t| (t.name.clone(), t.bytes())).collect();
        weights::stream(target, announced, |name| match origins.get(name) {
            Some((from, origin)) => origin.make(&file.view(from)?).map_err(|error| match error {
                Error::Op { .. } => Error::input(source, format!("{from}: {error}")),
                other => other,
            }),
            None => Err(Error::Failure(format!("no tensor {name}"))),
        })?;
        Ok(sizes)
    }

    /// The names of what comes of a tensor.
    fn becomes(&self, name: &str) -> Vec<(String, Origin)> {
        let head = self.layers.iter().find(|layer| layer.as_str() == HEAD);
        let name = match &self.embedding {
            Some(embedding) if name == format!("{HEAD}.weight") => match self.head_alone {
                true => embedding.as_str(),
                // Stored although the embedding counts.
                false => return Vec::new(),
            },
            _ => name,
        };
        let mut all = match name.strip_suffix(".weight").filter(|layer| self.layers.contains(*layer)) {
            Some(layer) => self.int8(layer),
            None => {
                vec![(name.to_string(), self.folds.get(name).cloned().map_or(Origin::Copied, Origin::Folded))]
            }
        };
        if let Some(head) = head.filter(|_| self.embedding.as_deref() == Some(name)) {
            all.extend(self.int8(head));
        }
        all
    }

    fn int8(&self, layer: &str) -> Vec<(String, Origin)> {
        let fold = self.folds.get(&format!("{layer}.weight"));
        vec![
            (format!("{layer}.weight"), Origin::Matrix(fold.cloned(), self.rotation)),
            (format!("{layer}.{SCALE}"), Origin::Scales(fold.cloned(), self.rotation)),
        ]
    }
}

impl Origin {
    fn make(&self, tensor: &Tensor) -> Result<Tensor> {
        match self {
            Origin::Copied => Ok(tensor.clone()),
            Origin::Folded(fold) => fold.apply(tensor),
            Origin::Matrix(fold, most) => {
                let rotation = quantize::rotation(tensor.cols(), *most);
                Ok(quant::matrix(tensor, fold.as_ref(), rotation)?.0)
            }
            Origin::Scales(fold, most) => {
                let rotation = quantize::rotation(tensor.cols(), *most);
                quant::scales(tensor, fold.as_ref(), rotation)?.reshape(&[tensor.rows(), 1])
            }
        }
    }
}

/// The old config with what `scheme` says of the layers; `untied`: its embedding is no longer the head.
fn config(path: &Path, scheme: Value, untied: bool) -> Result<Value> {
    let mut config = read_json(path)?;
    config.insert("quantization_config".to_string(), scheme);
    if untied {
        config.insert("tie_word_embeddings".to_string(), json!(false));
        if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
            text.insert("tie_word_embeddings".to_string(), json!(false));
        }
    }
    Ok(Value::Object(config))
}

fn save_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|e| Error::io(path, e))
}
