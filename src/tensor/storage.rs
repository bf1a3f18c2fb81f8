//! Where a tensor's elements lie: memory of our own, a range of a mapped weight file, or a device.

use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;

use super::DType;
use super::cuda::Buffer;
use super::recycled::Floats;

#[derive(Clone)]
pub(super) enum Storage {
    F32(Floats),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    /// Read-only elements of a file; the constructor has checked bounds and alignment.
    Mapped {
        map: Arc<Mmap>,
        start: usize,
        bytes: usize,
        dtype: DType,
    },
    /// Shared until one of its tensors is written.
    Device {
        buffer: Arc<Buffer>,
        dtype: DType,
    },
}

/// A borrowed view of the elements, by type.
#[derive(Clone, Copy)]
pub enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    U8(&'a [u8]),
    I8(&'a [i8]),
}

impl Storage {
    pub(super) fn dtype(&self) -> DType {
        match self {
            Storage::F32(_) => DType::F32,
            Storage::Bf16(_) => DType::Bf16,
            Storage::F16(_) => DType::F16,
            Storage::U8(_) => DType::U8,
            Storage::I8(_) => DType::I8,
            Storage::Mapped { dtype, .. } | Storage::Device { dtype, .. } => *dtype,
        }
    }

    /// `None` for a device's.
    pub(super) fn elements(&self) -> Option<Elements<'_>> {
        Some(match self {
            Storage::F32(v) => Elements::F32(v),
            Storage::Bf16(v) => Elements::Bf16(v),
            Storage::F16(v) => Elements::F16(v),
            Storage::U8(v) => Elements::U8(v),
            Storage::I8(v) => Elements::I8(v),
            Storage::Mapped { map, start, bytes, dtype } => {
                let raw = &map[*start..*start + *bytes];
                match dtype {
                    DType::F32 => Elements::F32(bytemuck::cast_slice(raw)),
                    DType::Bf16 => Elements::Bf16(bytemuck::cast_slice(raw)),
                    DType::F16 => Elements::F16(bytemuck::cast_slice(raw)),
                    DType::U8 => Elements::U8(raw),
                    DType::I8 => Elements::I8(bytemuck::cast_slice(raw)),
                }
            }
            Storage::Device { .. } => return None,
        })
    }

    /// Copies raw bytes into memory of our own.
    pub(super) fn from_bytes(dtype: DType, raw: &[u8]) -> Storage {
        match dtype {
            DType::F32 => Storage::F32(bytemuck::pod_collect_to_vec(raw).into()),
            DType::Bf16 => Storage::Bf16(bytemuck::pod_collect_to_vec(raw)),
            DType::F16 => Storage::F16(bytemuck::pod_collect_to_vec(raw)),
            DType::U8 => Storage::U8(raw.to_vec()),
            DType::I8 => Storage::I8(bytemuck::cast_slice(raw).to_vec()),
        }
    }
}

impl Elements<'_> {
    pub fn len(&self) -> usize {
        match self {
            Elements::F32(v) => v.len(),
            Elements::Bf16(v) => v.len(),
            Elements::F16(v) => v.len(),
            Elements::U8(v) => v.len(),
            Elements::I8(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes elements `start..start + out.len()` as f32; exact for all types.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        let end = start + out.len();
        match self {
            Elements::F32(v) => out.copy_from_slice(&v[start..end]),
            Elements::Bf16(v) => {
                for (o, &b) in out.iter_mut().zip(&v[start..end]) {
                    *o = f32::from_bits(u32::from(b.to_bits()) << 16);
                }
            }
            Elements::F16(v) => {
                use half::slice::HalfFloatSliceExt;
                v[start..end].convert_to_f32_slice(out);
            }
            Elements::U8(v) => {
                for (o, &b) in out.iter_mut().zip(&v[start..end]) {
                    *o = f32::from(b);
                }
            }
            Elements::I8(v) => {
                for (o, &b) in out.iter_mut().zip(&v[start..end]) {
                    *o = f32::from(b);
                }
            }
        }
    }
}
