//! Tensors: a shape, an element type and the memory that holds the elements.
//! Row-major and contiguous, always. Only this module and `ops` know where memory lies.

mod device;
mod dtype;
mod storage;

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;

pub use device::Device;
pub use dtype::DType;
pub use storage::Elements;
use storage::Storage;

use crate::error::{Error, Result};

#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Storage,
}

impl Tensor {
    /// f32 zeros in main memory.
    pub fn zeros(shape: &[usize]) -> Self {
        Tensor { shape: shape.to_vec(), storage: Storage::F32(vec![0.0; shape.iter().product()]) }
    }

    /// f32 zeros of `shape` on the device that holds `self`: how model code makes its activations.
    pub fn like(&self, shape: &[usize]) -> Self {
        match self.device() {
            Device::Cpu => Tensor::zeros(shape),
        }
    }

    pub fn from_vec(shape: &[usize], data: Vec<f32>) -> Result<Self> {
        check_len(shape, data.len())?;
        Ok(Tensor { shape: shape.to_vec(), storage: Storage::F32(data) })
    }

    /// Elements of a mapped file without copying them; copied if the file does not align them.
    pub fn from_mapped(shape: &[usize], dtype: DType, map: &Arc<Mmap>, start: usize) -> Result<Self> {
        let bytes = shape
            .iter()
            .try_fold(dtype.size(), |n, &d| n.checked_mul(d))
            .filter(|n| start.checked_add(*n).is_some_and(|end| end <= map.len()))
            .ok_or_else(|| {
                Error::op(
                    "tensor",
                    format!("{dtype} {shape:?} at byte {start}"),
                    format!("a file of {} bytes", map.len()),
                )
            })?;
        let raw = &map[start..start + bytes];
        let storage = if (raw.as_ptr() as usize).is_multiple_of(dtype.size()) {
            Storage::Mapped { map: Arc::clone(map), start, bytes, dtype }
        } else {
            match dtype {
                DType::F32 => Storage::F32(bytemuck::pod_collect_to_vec(raw)),
                DType::Bf16 => Storage::Bf16(bytemuck::pod_collect_to_vec(raw)),
                DType::F16 => Storage::F16(bytemuck::pod_collect_to_vec(raw)),
            }
        };
        Ok(Tensor { shape: shape.to_vec(), storage })
    }

    pub fn device(&self) -> Device {
        Device::Cpu
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the last dimension; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        match self.shape.split_last() {
            Some((_, rest)) => rest.iter().product(),
            None => 1,
        }
    }

    pub fn elements(&self) -> Elements<'_> {
        self.storage.elements()
    }

    /// The elements, if they are f32.
    pub fn f32s(&self) -> Result<&[f32]> {
        match self.storage.elements() {
            Elements::F32(v) => Ok(v),
            _ => Err(Error::op("tensor", "f32", self.dtype().to_string())),
        }
    }

    /// The elements for writing: f32 in memory of our own (a mapped file is never written).
    pub fn f32s_mut(&mut self) -> Result<&mut [f32]> {
        let got = self.dtype();
        match &mut self.storage {
            Storage::F32(v) => Ok(v),
            _ => Err(Error::op("tensor", "writable f32", format!("{got} weights"))),
        }
    }

    /// An f32 copy in memory of our own.
    pub fn to_f32(&self) -> Tensor {
        let mut data = vec![0.0; self.len()];
        self.elements().widen(0, &mut data);
        Tensor { shape: self.shape.clone(), storage: Storage::F32(data) }
    }

    /// A copy rounded to `dtype` (to nearest, ties to even).
    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        let wide = self.to_f32();
        let storage = match (dtype, wide.storage) {
            (DType::Bf16, Storage::F32(v)) => Storage::Bf16(v.into_iter().map(bf16::from_f32).collect()),
            (DType::F16, Storage::F32(v)) => Storage::F16(v.into_iter().map(f16::from_f32).collect()),
            (_, storage) => storage,
        };
        Tensor { shape: wide.shape, storage }
    }

    /// The same elements under another shape.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Tensor> {
        check_len(shape, self.len())?;
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// The raw little-endian bytes, as a weight file holds them.
    pub fn bytes(&self) -> &[u8] {
        match self.storage.elements() {
            Elements::F32(v) => bytemuck::cast_slice(v),
            Elements::Bf16(v) => bytemuck::cast_slice(v),
            Elements::F16(v) => bytemuck::cast_slice(v),
        }
    }
}

fn check_len(shape: &[usize], len: usize) -> Result<()> {
    let want: usize = shape.iter().product();
    if want == len {
        Ok(())
    } else {
        Err(Error::op("tensor", format!("{want} elements for {shape:?}"), len.to_string()))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype(), self.shape)
    }
}
