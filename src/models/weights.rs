//! Strict reading and writing of safetensors checkpoints: model.safetensors, or shards named by model.safetensors.index.json.
use std::path::Path;

use crate::error::Result;
use crate::tensor::Tensor;

/// All tensors of a folder, memory-mapped; each is taken once.
pub struct Weights {}

impl Weights {
    pub fn open(folder: &Path) -> Result<Weights> {
        todo!()
    }

    /// One file (an adapter, a checkpoint's state).
    pub fn open_file(path: &Path) -> Result<Weights> {
        todo!()
    }

    pub fn contains(&self, name: &str) -> bool {
        todo!()
    }

    /// Names not taken yet, sorted.
    pub fn names(&self) -> Vec<String> {
        todo!()
    }

    /// The tensor `name`, which must have `shape`. A missing or mis-shaped tensor is remembered and reported by `finish`,
    /// together with all the others; zeros of `shape` stand in until then.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Tensor {
        todo!()
    }

    /// The tensor `name` whatever its shape.
    pub fn take_any(&mut self, name: &str) -> Result<Tensor> {
        todo!()
    }

    /// An error that lists every missing, unused and mis-shaped name, if there is one.
    pub fn finish(self) -> Result<()> {
        todo!()
    }
}

/// Writes a safetensors file (atomic: a temporary file beside it, fsync, rename), tensors in the order of their names, metadata {"format": "pt"}.
pub fn save(path: &Path, tensors: &[(String, &Tensor)]) -> Result<()> {
    todo!()
}
