//! Rows of tensors, copied where they lie.

use std::ops::Range;

use super::{Storage, Tensor};
use crate::error::{Error, Result};

const OP: &str = "rows";

impl Tensor {
    /// [N_i, ...] -> [sum N_i, ...]; all of one type on one device.
    pub fn concat(parts: &[&Tensor]) -> Result<Tensor> {
        let Some(first) = parts.first() else { return Ok(Tensor::zeros(&[0])) };
        let inner = first.shape.get(1..).unwrap_or(&[]);
        let mut shape = first.shape.clone();
        shape[0] = 0;
        for part in parts {
            if part.shape.get(1..) != Some(inner) || part.dtype() != first.dtype() {
                let expected = format!("{} [N, {inner:?}]", first.dtype());
                return Err(Error::op("concat", expected, format!("{part:?}")));
            }
            shape[0] += part.shape[0];
        }
        let mut out = first.empty(&shape)?;
        let mut at = 0;
        for part in parts {
            out.put(at, part, 0..part.shape[0])?;
            at += part.shape[0];
        }
        Ok(out)
    }

    /// Rows of the first dimension.
    pub fn slice(&self, rows: Range<usize>) -> Result<Tensor> {
        if rows.start > rows.end || self.shape.first().is_none_or(|&n| rows.end > n) {
            return Err(Error::op(OP, format!("{rows:?} of {:?}", self.shape), "fewer rows"));
        }
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let mut out = self.empty(&shape)?;
        out.put(0, self, rows)?;
        Ok(out)
    }

    /// Copies `len` rows of the first dimension from row `from` on to row `to` on, which must not overlap.
    pub fn copy_rows(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        let rows = self.shape.first().copied().unwrap_or(0);
        if from.max(to) + len > rows || from.abs_diff(to) < len {
            let got = format!("{len} from {from} to {to}");
            return Err(Error::op(OP, format!("ranges apart from each other within {rows} rows"), got));
        }
        let size = self.row_bytes();
        if let Some(gpu) = self.gpu().cloned() {
            let base = self.ptr_mut(&gpu)?.0;
            return gpu.copy(base + (to * size) as u64, base + (from * size) as u64, len * size);
        }
        self.bytes_mut()?.copy_within(from * size..(from + len) * size, to * size);
        Ok(())
    }

    fn row_bytes(&self) -> usize {
        self.shape.get(1..).unwrap_or(&[]).iter().product::<usize>() * self.dtype().size()
    }

    /// Of the type and on the device of `self`, to be filled by `put`.
    fn empty(&self, shape: &[usize]) -> Result<Tensor> {
        let dtype = self.dtype();
        if let Some(gpu) = self.gpu() {
            return Tensor::on_gpu(gpu, shape, dtype);
        }
        let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
        Ok(Tensor { shape: shape.to_vec(), storage: Storage::from_bytes(dtype, &bytes) })
    }

    /// Copies rows of `from` to row `at` on; the caller has checked that they fit.
    fn put(&mut self, at: usize, from: &Tensor, rows: Range<usize>) -> Result<()> {
        let size = self.row_bytes();
        if let Some(gpu) = self.gpu().cloned() {
            let (to, from) = (self.ptr_mut(&gpu)?.0, from.ptr(&gpu)?.0);
            return gpu.copy(to + (at * size) as u64, from + (rows.start * size) as u64, rows.len() * size);
        }
        let from = &from.bytes()?[rows.start * size..rows.end * size];
        self.bytes_mut()?[at * size..at * size + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        match &mut self.storage {
            Storage::F32(v) => Ok(bytemuck::cast_slice_mut(v)),
            Storage::Bf16(v) => Ok(bytemuck::cast_slice_mut(v)),
            Storage::F16(v) => Ok(bytemuck::cast_slice_mut(v)),
            Storage::U8(v) => Ok(v),
            Storage::I8(v) => Ok(bytemuck::cast_slice_mut(v)),
            Storage::Mapped { .. } | Storage::Device { .. } => {
                Err(Error::op("tensor", "memory of our own", "a mapped file or a device"))
            }
        }
    }
}
