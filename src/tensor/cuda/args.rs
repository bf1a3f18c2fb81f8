//! What a kernel is given: each argument as its bytes.

use super::DType;
use crate::error::{Error, Result};

/// An address on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ptr(pub u64);

impl Ptr {
    /// For an argument that a kernel may be given none of.
    pub const NULL: Ptr = Ptr(0);
}

/// The bytes of a tensor map, aligned as a kernel's parameter is.
#[derive(Clone)]
#[repr(C, align(128))]
pub(super) struct MapBytes(pub(super) [u8; 128]);

/// One argument of a kernel.
#[derive(Clone)]
pub struct Arg(Bytes);

#[derive(Clone)]
enum Bytes {
    /// The first `usize` bytes of these. The host driver compares the number with the parameter's size; NVIDIA's has no way to ask.
    Word([u8; 8], usize),
    Map(Box<MapBytes>),
}

impl Arg {
    fn word(bytes: &[u8]) -> Arg {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        Arg(Bytes::Word(word, bytes.len()))
    }

    pub(super) fn map(bytes: MapBytes) -> Arg {
        Arg(Bytes::Map(Box::new(bytes)))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Word(word, len) => &word[..*len],
            Bytes::Map(map) => &map.0,
        }
    }
}

impl From<Ptr> for Arg {
    fn from(ptr: Ptr) -> Arg {
        Arg::word(&ptr.0.to_ne_bytes())
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Arg {
        Arg::word(&value.to_ne_bytes())
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Arg {
        Arg::word(&value.to_ne_bytes())
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Arg {
        Arg::word(&value.to_ne_bytes())
    }
}

/// How a kernel's `tile_load` (kernels/hopper.cuh) cuts a box out of a tensor. Dimensions from the innermost, whose elements lie together, on.
#[derive(Clone, Debug)]
pub struct TensorMap {
    /// 16-byte aligned.
    pub base: Ptr,
    pub dtype: DType,
    /// Elements. What a box has beyond them comes as zeros.
    pub dims: Vec<usize>,
    /// Bytes from one to the next in each dimension but the innermost: multiples of 16.
    pub strides: Vec<usize>,
    /// Elements of a box, 256 at the most.
    pub tile: Vec<usize>,
    /// Bytes: 128, 64 or 32, which a row of the box then has; 0: none.
    pub swizzle: usize,
}

impl TensorMap {
    /// Refuses what cuTensorMapEncodeTiled would, and what wgmma_matrix (kernels/hopper.cuh) does not know, on every device.
    pub(super) fn check(&self) -> Result<()> {
        let rank = self.dims.len();
        let row = self.tile.first().map_or(0, |n| n * self.dtype.size());
        let good = (1..=5).contains(&rank)
            && self.strides.len() == rank - 1
            && self.tile.len() == rank
            && self.base.0.is_multiple_of(16)
            && self.dims.iter().all(|&n| (1..1 << 32).contains(&n))
            && self.strides.iter().all(|&n| n.is_multiple_of(16) && n < 1 << 40)
            && self.tile.iter().all(|n| (1..=256).contains(n))
            && row.is_multiple_of(16)
            && matches!(self.swizzle, 0 | 32 | 64 | 128)
            && (self.swizzle == 0 || row == self.swizzle);
        if good {
            Ok(())
        } else {
            Err(Error::op("tensor map", "what a tile load can do", format!("{self:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            base: Ptr(256),
            dtype: DType::Bf16,
            dims: vec![72, 3, 10],
            strides: vec![144, 432],
            tile: vec![64, 1, 128],
            swizzle: 128,
        }
    }

    #[test]
    fn what_no_tile_load_can_do_is_refused() {
        map().check().unwrap();
        let wrong: [fn(&mut TensorMap); 9] = [
            |m| m.base = Ptr(8),
            |m| m.dims[1] = 0,
            |m| m.dims.clear(),
            |m| m.strides[0] = 72,
            |m| m.strides.push(16),
            |m| m.tile[2] = 257,
            |m| m.tile[0] = 32,
            |m| m.swizzle = 16,
            |m| (m.tile[0], m.swizzle) = (4, 0),
        ];
        for change in wrong {
            let mut map = map();
            change(&mut map);
            let error = map.check().unwrap_err().to_string();
            assert!(error.starts_with("tensor map"), "{error}");
        }
    }

    #[test]
    fn arguments_are_as_long_as_their_types() {
        let lens = [Arg::from(Ptr(1)), 1i32.into(), 1f32.into(), 1u64.into(), Arg::map(MapBytes([7; 128]))]
            .map(|arg| arg.bytes().len());
        assert_eq!(lens, [8, 4, 4, 8, 128]);
        assert_eq!(Arg::from(0x01020304i32).bytes(), 0x01020304i32.to_ne_bytes());
    }
}
