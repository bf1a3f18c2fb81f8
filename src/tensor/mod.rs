//! Tensors: a shape, an element type and the memory that holds the elements.
//! Row-major and contiguous, always. Only this module and `ops` know where memory lies.

mod cuda;
mod device;
mod dtype;
mod recycled;
mod rows;
mod storage;
mod uploaded;

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;

pub use cuda::{
    Arg, Buffer, Card, Gpu, Graph, Launch, MATMUL_WORKSPACE, Mark, Matmul, MemoryUse, NO_KERNELS, Operand,
    Ptr, TensorMap, forbids_graphs, gpu_count, kernel_count,
};
pub use cuda::{GpuFacts, KernelResources, NVCC, cuda_libraries, gpus, kernel_resources, resources_table};
pub use device::{Backend, Device, Place, main_memory};
pub use dtype::DType;
use recycled::Floats;
pub use storage::Elements;
use storage::Storage;
pub use uploaded::{Indices, Upload, Uploaded};

use crate::error::{Error, Result};

#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Storage,
}

impl Tensor {
    /// f32 zeros in main memory.
    pub fn zeros(shape: &[usize]) -> Self {
        Tensor { shape: shape.to_vec(), storage: Storage::F32(vec![0.0; shape.iter().product()].into()) }
    }

    /// The same for what may be written only in part: no memory is taken for the rest.
    pub fn zeros_fresh(shape: &[usize]) -> Self {
        Tensor { shape: shape.to_vec(), storage: Storage::F32(Floats::fresh(shape.iter().product())) }
    }

    /// A tensor of `shape` on the device that holds `self`, holding anything: how model code makes its activations. In main memory these are f32, on a
    /// GPU they have the type of `self`.
    pub fn like(&self, shape: &[usize]) -> Result<Self> {
        self.like_as(shape, self.dtype())
    }

    /// The same in f32 wherever it is: for what is kept exact, like logits and log-sum-exps.
    pub fn like_f32(&self, shape: &[usize]) -> Result<Self> {
        self.like_as(shape, DType::F32)
    }

    /// f32 zeros on `device`.
    pub fn zeros_on(device: &Device, shape: &[usize]) -> Result<Self> {
        let Device::Cuda(gpu) = device else { return Ok(Tensor::zeros(shape)) };
        let mut zeros = Tensor::on_gpu(gpu, shape, DType::F32)?;
        zeros.clear()?;
        Ok(zeros)
    }

    /// Makes all elements zero, in place where no other tensor shares them.
    pub fn clear(&mut self) -> Result<()> {
        let Some(gpu) = self.gpu().cloned() else {
            self.f32s_mut()?.fill(0.0);
            return Ok(());
        };
        let at = self.ptr_mut(&gpu)?;
        gpu.zero(at, self.len() * self.dtype().size())
    }

    /// The same in i8 wherever it is: for what is quantised.
    pub fn like_i8(&self, shape: &[usize]) -> Result<Self> {
        match self.gpu() {
            Some(gpu) => Tensor::on_gpu(gpu, shape, DType::I8),
            None => Tensor::from_i8(shape, vec![0; shape.iter().product()]),
        }
    }

    fn like_as(&self, shape: &[usize], dtype: DType) -> Result<Self> {
        match &self.storage {
            Storage::Device { buffer, .. } => Tensor::on_gpu(buffer.gpu(), shape, dtype),
            _ => {
                let storage = Storage::F32(Floats::stale(shape.iter().product()));
                Ok(Tensor { shape: shape.to_vec(), storage })
            }
        }
    }

    /// One of the same shape and type on `gpu`, holding anything.
    pub(crate) fn blank_on(&self, gpu: &Arc<Gpu>) -> Result<Self> {
        Tensor::on_gpu(gpu, &self.shape, self.dtype())
    }

    /// On a GPU, holding anything.
    fn on_gpu(gpu: &Arc<Gpu>, shape: &[usize], dtype: DType) -> Result<Self> {
        let buffer = gpu.alloc(shape.iter().product::<usize>() * dtype.size())?;
        Ok(Tensor { shape: shape.to_vec(), storage: Storage::Device { buffer: Arc::new(buffer), dtype } })
    }

    pub fn from_vec(shape: &[usize], data: Vec<f32>) -> Result<Self> {
        check_len(shape, data.len())?;
        Ok(Tensor { shape: shape.to_vec(), storage: Storage::F32(data.into()) })
    }

    /// Pixels.
    pub fn from_u8(shape: &[usize], data: Vec<u8>) -> Result<Self> {
        check_len(shape, data.len())?;
        Ok(Tensor { shape: shape.to_vec(), storage: Storage::U8(data) })
    }

    /// Elements of a quantised matrix.
    pub fn from_i8(shape: &[usize], data: Vec<i8>) -> Result<Self> {
        check_len(shape, data.len())?;
        Ok(Tensor { shape: shape.to_vec(), storage: Storage::I8(data) })
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
            Storage::from_bytes(dtype, raw)
        };
        Ok(Tensor { shape: shape.to_vec(), storage })
    }

    pub fn device(&self) -> Device {
        self.gpu().map_or(Device::Cpu, |gpu| Device::Cuda(Arc::clone(gpu)))
    }

    /// The GPU that holds it; `None` for main memory.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        match &self.storage {
            Storage::Device { buffer, .. } => Some(buffer.gpu()),
            _ => None,
        }
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

    /// The elements, if they are in main memory.
    pub fn elements(&self) -> Result<Elements<'_>> {
        self.storage.elements().ok_or_else(|| Error::op("tensor", "main memory", self.device().to_string()))
    }

    /// The elements, if they are f32 in main memory.
    pub fn f32s(&self) -> Result<&[f32]> {
        match self.elements()? {
            Elements::F32(v) => Ok(v),
            _ => Err(Error::op("tensor", "f32", self.dtype().to_string())),
        }
    }

    /// The elements for writing: f32 in memory of our own (a mapped file is never written).
    pub fn f32s_mut(&mut self) -> Result<&mut [f32]> {
        let (got, device) = (self.dtype(), self.device());
        match &mut self.storage {
            Storage::F32(v) => Ok(v),
            _ => Err(Error::op("tensor", "writable f32 in main memory", format!("{got} on {device}"))),
        }
    }

    /// The elements, if they are bytes in main memory.
    pub fn u8s(&self) -> Result<&[u8]> {
        match self.elements()? {
            Elements::U8(v) => Ok(v),
            _ => Err(Error::op("tensor", "u8", self.dtype().to_string())),
        }
    }

    /// The elements, if they are i8 in main memory.
    pub fn i8s(&self) -> Result<&[i8]> {
        match self.elements()? {
            Elements::I8(v) => Ok(v),
            _ => Err(Error::op("tensor", "i8", self.dtype().to_string())),
        }
    }

    /// The same for writing.
    pub fn i8s_mut(&mut self) -> Result<&mut [i8]> {
        let (got, device) = (self.dtype(), self.device());
        match &mut self.storage {
            Storage::I8(v) => Ok(v),
            _ => Err(Error::op("tensor", "writable i8 in main memory", format!("{got} on {device}"))),
        }
    }

    /// Where the elements lie on `gpu`, for reading.
    pub fn ptr(&self, gpu: &Arc<Gpu>) -> Result<Ptr> {
        match &self.storage {
            Storage::Device { buffer, .. } if Arc::ptr_eq(buffer.gpu(), gpu) => Ok(buffer.ptr()),
            _ => Err(Error::op("tensor", gpu.name(), self.device().to_string())),
        }
    }

    /// Where the elements lie on `gpu`, for writing: no other tensor shares them.
    pub fn ptr_mut(&mut self, gpu: &Arc<Gpu>) -> Result<Ptr> {
        self.ptr(gpu)?;
        let Storage::Device { buffer, .. } = &mut self.storage else {
            return Err(Error::op("tensor", gpu.name(), "main memory"));
        };
        if Arc::get_mut(buffer).is_none() {
            let copy = gpu.alloc(buffer.bytes())?;
            gpu.copy(copy.ptr().0, buffer.ptr().0, buffer.bytes())?;
            *buffer = Arc::new(copy);
        }
        Ok(buffer.ptr())
    }

    /// Overwrites the elements with those of a tensor of the same shape and type in main memory; in place, unless another tensor shares them.
    pub fn write(&mut self, from: &Tensor) -> Result<()> {
        if from.shape != self.shape || from.dtype() != self.dtype() {
            return Err(Error::op("tensor", format!("{self:?}"), format!("{from:?}")));
        }
        let Some(gpu) = self.gpu().cloned() else {
            self.storage = from.storage.clone();
            return Ok(());
        };
        let to = self.ptr_mut(&gpu)?;
        gpu.write(to, from.bytes()?)
    }

    /// A copy on `device`, with the same elements.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        let storage = match device {
            _ if *device == self.device() => self.storage.clone(),
            Device::Cpu => self.download()?,
            Device::Cuda(gpu) => {
                let buffer = match &self.storage {
                    Storage::Device { .. } => gpu.upload(self.to_device(&Device::Cpu)?.bytes()?)?,
                    _ => gpu.upload(self.bytes()?)?,
                };
                Storage::Device { buffer: Arc::new(buffer), dtype: self.dtype() }
            }
        };
        Ok(Tensor { shape: self.shape.clone(), storage })
    }

    fn download(&self) -> Result<Storage> {
        let Storage::Device { buffer, dtype } = &self.storage else { return Ok(self.storage.clone()) };
        let mut raw = vec![0; self.len() * dtype.size()];
        buffer.gpu().download(&mut raw, buffer)?;
        Ok(Storage::from_bytes(*dtype, &raw))
    }

    /// An f32 copy in main memory.
    pub fn to_f32(&self) -> Result<Tensor> {
        let here = self.to_device(&Device::Cpu)?;
        if matches!(here.storage, Storage::F32(_)) {
            return Ok(here);
        }
        let mut data = vec![0.0; self.len()];
        here.elements()?.widen(0, &mut data);
        Ok(Tensor { shape: here.shape, storage: Storage::F32(data.into()) })
    }

    /// A copy in main memory, rounded to `dtype` (to nearest, ties to even).
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype() {
            return self.to_device(&Device::Cpu);
        }
        let wide = self.to_f32()?;
        let storage = match (dtype, wide.storage) {
            (DType::Bf16, Storage::F32(v)) => Storage::Bf16(v.iter().map(|&v| bf16::from_f32(v)).collect()),
            (DType::F16, Storage::F32(v)) => Storage::F16(v.iter().map(|&v| f16::from_f32(v)).collect()),
            (DType::U8 | DType::I8, _) => {
                return Err(Error::op("tensor", "f32, bf16 or f16 to round to", dtype.to_string()));
            }
            (_, storage) => storage,
        };
        Ok(Tensor { shape: wide.shape, storage })
    }

    /// The same elements under another shape.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Tensor> {
        check_len(shape, self.len())?;
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// The raw little-endian bytes, as a weight file holds them, if they are in main memory.
    pub fn bytes(&self) -> Result<&[u8]> {
        Ok(match self.elements()? {
            Elements::F32(v) => bytemuck::cast_slice(v),
            Elements::Bf16(v) => bytemuck::cast_slice(v),
            Elements::F16(v) => bytemuck::cast_slice(v),
            Elements::U8(v) => v,
            Elements::I8(v) => bytemuck::cast_slice(v),
        })
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
        write!(f, "{} {:?} on {}", self.dtype(), self.shape, self.device())
    }
}
