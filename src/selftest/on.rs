//! Where a case runs, and its inputs: the same numbers wherever that is.

use rayon::prelude::*;

use crate::error::Result;
use crate::random;
use crate::tensor::{DType, Device, Tensor};

pub(super) struct On<'a> {
    device: &'a Device,
    /// What the device stores. The CPU computes in f32, from inputs of this type.
    pub dtype: DType,
    /// Tensors drawn so far.
    drawn: u64,
    /// On a dry device: only shapes matter.
    dry: bool,
}

impl<'a> On<'a> {
    pub fn new(device: &'a Device, dtype: DType) -> On<'a> {
        On { device, dtype, drawn: 0, dry: false }
    }

    /// For a dry device, whose tensors hold nothing.
    pub fn dry(device: &'a Device, dtype: DType) -> On<'a> {
        On { dry: true, ..On::new(device, dtype) }
    }

    /// Uniform in [-scale, scale), rounded to `dtype`.
    pub fn random(&mut self, shape: &[usize], scale: f32) -> Result<Tensor> {
        self.make(shape, self.dtype, |on| on.numbers(shape, scale)?.to_dtype(on.dtype))
    }

    /// The same in f32 wherever it is.
    pub fn random_f32(&mut self, shape: &[usize], scale: f32) -> Result<Tensor> {
        self.make(shape, DType::F32, |on| on.numbers(shape, scale))
    }

    /// Rounded to `dtype`, and f32 wherever it is.
    pub fn rounded_f32(&mut self, shape: &[usize], scale: f32) -> Result<Tensor> {
        self.make(shape, DType::F32, |on| on.numbers(shape, scale)?.to_dtype(on.dtype))
    }

    fn numbers(&self, shape: &[usize], scale: f32) -> Result<Tensor> {
        let number = |i: usize| {
            let bits = random::mix(self.drawn, &[i as u64]) >> 40;
            (bits as f32 / (1 << 23) as f32 - 1.0) * scale
        };
        Tensor::from_vec(shape, (0..shape.iter().product()).into_par_iter().map(number).collect())
    }

    /// Uniform in 0 .. n.
    pub fn indices(&mut self, len: usize, n: usize) -> Vec<u32> {
        self.drawn += 1;
        let (drawn, n) = (self.drawn, n.max(1) as u64);
        (0..len).into_par_iter().map(|i| (random::mix(drawn, &[i as u64]) % n) as u32).collect()
    }

    /// Of `dtype`, or f32 on the CPU; full of NaN: what is not overwritten shows.
    pub fn output(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.make(shape, self.dtype, |on| nan(shape)?.to_dtype(on.dtype))
    }

    pub fn output_f32(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.make(shape, DType::F32, |_| nan(shape))
    }

    /// What tensor code made in main memory, as it is.
    pub fn moved(&self, tensor: Tensor) -> Result<Tensor> {
        tensor.to_device(self.device)
    }

    /// What `numbers` gives, as `dtype` on the device.
    fn make(
        &mut self,
        shape: &[usize],
        dtype: DType,
        numbers: impl FnOnce(&On) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.dry {
            return Tensor::zeros(&[1]).to_dtype(dtype)?.to_device(self.device)?.like(shape);
        }
        let tensor = numbers(self)?;
        self.drawn += 1;
        match self.device {
            Device::Cpu => tensor.to_f32(),
            device => tensor.to_dtype(dtype)?.to_device(device),
        }
    }

    /// Whether this is the CPU that says what is right.
    pub fn is_reference(&self) -> bool {
        *self.device == Device::Cpu
    }

    /// An intermediate of the reference, as the device stores it.
    pub fn as_stored(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.to_dtype(self.dtype)?.to_f32()
    }
}

fn nan(shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(shape, vec![f32::NAN; shape.iter().product()])
}
