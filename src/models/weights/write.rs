//! Writing safetensors files.
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Tensor};

/// Writes a safetensors file (atomic: a temporary file beside it, fsync, rename), metadata {"format": "pt"}. The wider element type
/// comes first, so that every tensor is aligned; within a type tensors are in the order of their names. Same tensors, same bytes.
pub fn save(path: &Path, tensors: &[(String, &Tensor)]) -> Result<()> {
    let announced = tensors.iter().map(|(name, tensor)| Announced::of(name, tensor)).collect();
    let mut made = BTreeMap::new();
    for (name, tensor) in tensors {
        if made.insert(name.as_str(), *tensor).is_some() {
            return Err(Error::Failure(format!("{}: tensor {name} is given twice", path.display())));
        }
    }
    stream(path, announced, |name| match made.get(name) {
        Some(tensor) => tensor.to_device(&Device::Cpu),
        None => Err(Error::Failure(format!("no tensor {name}"))),
    })
}

/// A tensor that will be written.
pub(in crate::models) struct Announced {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl Announced {
    fn of(name: &str, tensor: &Tensor) -> Self {
        Announced { name: name.to_string(), dtype: tensor.dtype(), shape: tensor.shape().to_vec() }
    }

    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// The same with each tensor made when it is its turn, and dropped when it is written.
pub(in crate::models) fn stream(
    path: &Path,
    mut announced: Vec<Announced>,
    mut make: impl FnMut(&str) -> Result<Tensor>,
) -> Result<()> {
    announced.sort_by_key(|t| (std::cmp::Reverse(t.dtype.size()), t.dtype.to_string(), t.name.clone()));
    let header = header(path, &announced)?;
    let mut failure = None;
    let write = |file: &mut File| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for expected in &announced {
            let written = made(expected, &mut make)
                .and_then(|tensor| out.write_all(tensor.bytes()?).map_err(|e| Error::io(path, e)));
            if let Err(error) = written {
                failure = Some(error);
                return Err(std::io::ErrorKind::Other.into());
            }
        }
        out.flush()
    };
    let outcome = replace(path, write);
    match failure {
        Some(error) => Err(error),
        None => outcome.map_err(|e| Error::io(path, e)),
    }
}

fn made(expected: &Announced, make: &mut impl FnMut(&str) -> Result<Tensor>) -> Result<Tensor> {
    let tensor = make(&expected.name)?;
    if (tensor.dtype(), tensor.shape()) == (expected.dtype, &expected.shape[..]) {
        return Ok(tensor);
    }
    Err(Error::Failure(format!("{} was announced otherwise: {tensor:?}", expected.name)))
}

/// The JSON header, padded so that the data begin at a multiple of 8.
fn header(path: &Path, sorted: &[Announced]) -> Result<String> {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_string(), json!({"format": "pt"}));
    let mut start = 0;
    for tensor in sorted {
        let end = start + tensor.bytes();
        let info = json!({
            "dtype": tensor.dtype.to_string().to_uppercase(),
            "shape": tensor.shape,
            "data_offsets": [start, end],
        });
        if entries.insert(tensor.name.clone(), info).is_some() {
            return Err(Error::Failure(format!("{}: tensor {} is given twice", path.display(), tensor.name)));
        }
        start = end;
    }
    let mut header = Value::Object(entries).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    Ok(header)
}

/// Puts a file in the place of `path` whole: readers see the old bytes or the new ones, even after a crash. The temporary name is always the
/// same: what a killed process left is overwritten by the next.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut hidden = OsString::from(".");
    hidden.push(path.file_name().unwrap_or_default());
    hidden.push(".tmp");
    let temporary = folder.join(hidden);
    let mut file = File::create(&temporary)?;
    let written = write(&mut file).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        // The disk may be full; there is nothing to do if this fails too.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(folder)?.sync_all()
}
