//! Strict reading and writing of safetensors checkpoints: model.safetensors, or shards named by model.safetensors.index.json.
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;

pub use write::save;
pub(super) use write::{Announced, stream};

use super::config::read_text;
use super::int8::Scheme;
use crate::error::{Error, Result};
use crate::models::family::{Renames, renamed};
use crate::ops::quantize;
use crate::random;
use crate::tensor::{DType, Tensor};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Bytes of the largest index that is read: room for 100,000 tensors.
const MAX_INDEX: u64 = 16 << 20;
/// Bytes of the largest header that is read: room for 60,000 tensors in one file. What it takes parsed is several times as much.
const MAX_HEADER: usize = 8 << 20;

/// All tensors of a folder, memory-mapped; each is taken once.
pub struct Weights {
    /// The file or folder, for messages.
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// What modules are called in the files.
    renames: Renames,
    faults: Faults,
    /// Bytes that stand-ins for tensors not found may still take: as many as the files have, whatever the caller's shapes say.
    spare: usize,
    /// Whatever is taken is made up.
    random: Option<(DType, u64)>,
    /// Which layers are in int8.
    int8: Option<Scheme>,
}

/// Where a tensor lies.
struct Entry {
    map: Arc<Mmap>,
    start: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

#[derive(Default)]
struct Faults {
    missing: Vec<String>,
    misshaped: Vec<String>,
    mistyped: Vec<String>,
    not_int8: Vec<String>,
    unusable: Vec<String>,
}

/// What a tensor has to be.
#[derive(Clone, Copy)]
enum Kind {
    Float,
    Int8,
}

impl Weights {
    pub fn open(folder: &Path) -> Result<Weights> {
        if folder.join(SINGLE).exists() {
            return Weights::open_file(&folder.join(SINGLE));
        }
        if folder.join(INDEX).exists() {
            return Weights::open_shards(folder);
        }
        Err(Error::input(folder, format!("expected {SINGLE} or {INDEX} in this folder, found neither")))
    }

    /// One file (an adapter, a checkpoint's state).
    pub fn open_file(path: &Path) -> Result<Weights> {
        let mut weights = Weights::empty(path);
        weights.add_file(path)?;
        Ok(weights)
    }

    fn open_shards(folder: &Path) -> Result<Weights> {
        let places = read_index(folder)?;
        let mut weights = Weights::empty(folder);
        let mut origin: BTreeMap<String, String> = BTreeMap::new();
        for shard in places.values().collect::<BTreeSet<_>>() {
            for name in weights.add_file(&folder.join(shard))? {
                if let Some(other) = origin.insert(name.clone(), shard.clone()) {
                    return Err(Error::input(
                        folder,
                        format!("tensor {name} is both in {other} and in {shard}"),
                    ));
                }
            }
        }
        let absent: Vec<String> = places
            .iter()
            .filter(|(name, shard)| origin.get(*name) != Some(*shard))
            .map(|(name, shard)| format!("{name} in {shard}"))
            .collect();
        if absent.is_empty() {
            Ok(weights)
        } else {
            Err(Error::input(
                folder.join(INDEX),
                format!("names tensors that are not there: {}", absent.join(", ")),
            ))
        }
    }

    fn empty(path: &Path) -> Weights {
        Weights {
            path: path.to_path_buf(),
            entries: BTreeMap::new(),
            renames: &[],
            faults: Faults::default(),
            spare: 0,
            random: None,
            int8: None,
        }
    }

    /// From now on layers are taken as `scheme` says.
    pub fn expect_int8(&mut self, scheme: Option<Scheme>) {
        self.int8 = scheme;
    }

    /// Whether the layer `name` is in int8 here.
    pub fn is_int8(&self, name: &str) -> bool {
        self.random.is_none() && self.int8.as_ref().is_some_and(|scheme| scheme.covers(name, self.renames))
    }

    /// The rotation of the input of an int8 layer that is so wide (ops::quantize).
    pub(super) fn rotation(&self, cols: usize) -> usize {
        quantize::rotation(cols, self.int8.as_ref().map_or(1, |scheme| scheme.rotation))
    }

    /// No file: every tensor is there, in any shape. Norms are one, biases zero, matrices uniform with the deviation that keeps activations at
    /// their scale; a function of `seed` and the name.
    pub fn random(folder: &Path, dtype: DType, seed: u64) -> Weights {
        Weights { random: Some((dtype, seed)), ..Weights::empty(folder) }
    }

    /// Adds the tensors of a file; returns their names.
    fn add_file(&mut self, path: &Path) -> Result<Vec<String>> {
        let map = Arc::new(map_file(path)?);
        if let Some(Ok(length)) = map.get(..8).map(|head| head.try_into().map(u64::from_le_bytes))
            && length > MAX_HEADER as u64
        {
            let what = format!(
                "not a valid safetensors file: expected a header of at most {MAX_HEADER} bytes, got {length}"
            );
            return Err(Error::input(path, what));
        }
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| Error::input(path, format!("not a valid safetensors file: {e}")))?;
        let mut names = Vec::new();
        for (name, info) in metadata.tensors() {
            let entry = Entry {
                map: Arc::clone(&map),
                start: 8 + header + info.data_offsets.0,
                dtype: info.dtype,
                shape: info.shape.clone(),
            };
            names.push(name.clone());
            self.entries.insert(name, entry);
        }
        self.spare += map.len();
        Ok(names)
    }

    /// From now on names are those of modules, which the files may call otherwise; unless they have the modules' own.
    pub fn rename(&mut self, renames: Renames) {
        let own = |name: &String| renames.iter().any(|(module, _)| name.starts_with(module));
        self.renames = if self.entries.keys().any(own) { &[] } else { renames };
    }

    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(&renamed(name, self.renames))
    }

    /// Whether both are there, and are not the same bytes.
    pub(super) fn differ(&self, a: &str, b: &str) -> bool {
        match [a, b].map(|name| self.entries.get(&self.stored(name))) {
            [Some(a), Some(b)] => a.bytes() != b.bytes(),
            _ => false,
        }
    }

    /// From now on the weight `name`, if it is there, is called `other`.
    pub(super) fn call(&mut self, name: &str, other: &str) {
        if let Some(entry) = self.entries.remove(&self.stored(name)) {
            self.entries.insert(self.stored(other), entry);
        }
    }

    /// What the files call the weight `name`.
    pub(super) fn stored(&self, name: &str) -> String {
        renamed(name, self.renames)
    }

    /// Names not taken yet, sorted.
    pub fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// The tensor `name`, which must have `shape`. A missing or mis-shaped tensor, or one that is not f32, bf16 or f16, is
    /// remembered and reported by `finish`, together with all the others. Until then zeros of `shape` stand in, or an empty
    /// tensor once the stand-ins are as large as the file.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Tensor {
        if let Some((dtype, seed)) = self.random {
            return made_up(name, shape, dtype, seed).unwrap_or_else(|_| Tensor::zeros(&[0]));
        }
        self.take_of(name, shape, Kind::Float)
    }

    /// The same for one in int8.
    pub fn take_i8(&mut self, name: &str, shape: &[usize]) -> Tensor {
        self.take_of(name, shape, Kind::Int8)
    }

    /// The same for scales of `n` output channels, [n] or [n, 1], finite and not negative: f32 [n].
    pub fn take_scale(&mut self, name: &str, n: usize) -> Tensor {
        let column = self.entries.get(&renamed(name, self.renames));
        let column = column.is_some_and(|entry| entry.shape == [n, 1]);
        let stored = if column {
            self.take_of(name, &[n, 1], Kind::Float)
        } else {
            self.take_of(name, &[n], Kind::Float)
        };
        let scale = stored.to_f32().and_then(|scale| scale.reshape(&[n]));
        let Ok(scale) = scale else { return Tensor::zeros(&[0]) };
        if scale.f32s().is_ok_and(|scale| !scale.iter().all(|s| s.is_finite() && *s >= 0.0)) {
            self.faults.unusable.push(name.to_string());
        }
        scale
    }

    fn take_of(&mut self, name: &str, shape: &[usize], kind: Kind) -> Tensor {
        let stored = renamed(name, self.renames);
        let name = stored.as_str();
        match self.entries.remove(name) {
            None => self.faults.missing.push(name.to_string()),
            Some(entry) if entry.shape != shape => {
                self.faults.misshaped.push(format!("{name}: expected {shape:?}, got {:?}", entry.shape));
            }
            Some(entry) => match (entry.tensor(), kind) {
                (Ok(tensor), Kind::Float) if tensor.dtype() != DType::I8 => return tensor,
                (Ok(tensor), Kind::Int8) if tensor.dtype() == DType::I8 => return tensor,
                (_, Kind::Float) => self.faults.mistyped.push(format!("{name}: {}", entry.dtype)),
                (_, Kind::Int8) => self.faults.not_int8.push(format!("{name}: {}", entry.dtype)),
            },
        }
        self.stand_in(shape)
    }

    fn stand_in(&mut self, shape: &[usize]) -> Tensor {
        let bytes = shape.iter().try_fold(4usize, |n, &d| n.checked_mul(d));
        match bytes.and_then(|n| self.spare.checked_sub(n)) {
            Some(left) => {
                self.spare = left;
                Tensor::zeros(shape)
            }
            None => Tensor::zeros(&[0]),
        }
    }

    /// The tensor `name` whatever its shape.
    pub fn take_any(&mut self, name: &str) -> Result<Tensor> {
        match self.entries.remove(name) {
            None => Err(Error::input(&self.path, format!("no tensor {name}"))),
            Some(entry) => {
                entry.tensor().ok().filter(|tensor| tensor.dtype() != DType::I8).ok_or_else(|| {
                    Error::input(
                        &self.path,
                        format!("{name}: expected f32, bf16 or f16, got {}", entry.dtype),
                    )
                })
            }
        }
    }

    /// The tensor `name` as it is, to be looked at; it may be taken later.
    pub(super) fn view(&self, name: &str) -> Result<Tensor> {
        let entry = self.entries.get(name);
        let entry = entry.ok_or_else(|| Error::input(&self.path, format!("no tensor {name}")))?;
        entry.tensor().map_err(|_| {
            Error::input(&self.path, format!("{name}: expected floating point, got {}", entry.dtype))
        })
    }

    /// An error that lists every missing, unused, mis-shaped and mistyped name, if there is one.
    pub fn finish(self) -> Result<()> {
        let unused: Vec<String> = self.entries.into_keys().collect();
        let faults: Vec<String> = [
            ("missing", self.faults.missing),
            ("unused", unused),
            ("of another shape", self.faults.misshaped),
            ("not f32, bf16 or f16", self.faults.mistyped),
            ("not int8, which the quantization_config says", self.faults.not_int8),
            ("with scales that are negative or no numbers", self.faults.unusable),
        ]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(kind, names)| format!("{} {kind}: {}", names.len(), names.join(", ")))
        .collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Error::input(self.path, format!("the tensors do not fit the model; {}", faults.join("; "))))
        }
    }
}

fn made_up(name: &str, shape: &[usize], dtype: DType, seed: u64) -> Result<Tensor> {
    let len = shape.iter().product();
    let data = if shape.len() == 1 {
        vec![if name.ends_with("bias") { 0.0 } else { 1.0 }; len]
    } else {
        let key = random::mix(seed, &[random::hash(name)]);
        let inputs: usize = shape[1..].iter().product();
        let scale = if name.contains("embed") { 0.1 } else { (3.0 / inputs as f32).sqrt() };
        let uniform = |i: usize| (random::mix(key, &[i as u64]) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        (0..len).into_par_iter().map(|i| scale * uniform(i)).collect()
    };
    Tensor::from_vec(shape, data)?.to_dtype(dtype)
}

impl Entry {
    fn tensor(&self) -> Result<Tensor> {
        let dtype = match self.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::Bf16,
            Dtype::F16 => DType::F16,
            Dtype::I8 => DType::I8,
            other => return Err(Error::op("weights", "f32, bf16 or f16", other.to_string())),
        };
        Tensor::from_mapped(&self.shape, dtype, &self.map, self.start)
    }

    /// `None`: of a type that is not read.
    fn bytes(&self) -> Option<&[u8]> {
        let tensor = self.tensor().ok()?;
        self.map.get(self.start..self.start + tensor.len() * tensor.dtype().size())
    }
}

fn map_file(path: &Path) -> Result<Mmap> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        return Err(Error::input(path, "expected a file"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: types: the map is read as bytes, and as f32, bf16 and f16, for which every bit pattern is a value. Bounds: slices of
    // it are checked against its length. Aliasing: we never write through it; that nobody truncates or rewrites a weight file in
    // use is asked of the user, as every loader of mapped safetensors does; `save` replaces files and never writes into one.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// weight_map of a folder's index: tensor to shard.
pub(super) fn read_index(folder: &Path) -> Result<BTreeMap<String, String>> {
    let path = folder.join(INDEX);
    let text = read_text(&path, MAX_INDEX)?;
    let index: Index = serde_json::from_str(&text).map_err(|e| {
        Error::input(&path, format!("expected weight_map, an object of tensor names and shard files: {e}"))
    })?;
    match index.weight_map.iter().find(|(_, shard)| !is_file_name(shard)) {
        None => Ok(index.weight_map),
        Some((name, shard)) => Err(Error::input(
            path,
            format!("weight_map: {name}: expected a file in this folder, got {shard:?}"),
        )),
    }
}

/// A plain name that a file can have, so that no index leads out of its folder.
fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let alone = matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name);
    alone && name.len() <= 255 && !name.contains('\0')
}
