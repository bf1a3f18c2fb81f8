//! Rotations of the tokens of a pass, at hand for all of its blocks.

use crate::error::Result;
use crate::tensor::{Device, Tensor};

/// Where a token is, in time, height and width: the same number three times but in pictures of Qwen2-VL.
pub type Position = [u32; 3];

/// `len` tokens in a line.
pub fn line(start: u32, len: usize) -> impl Iterator<Item = Position> {
    (start..).take(len).map(|p| [p; 3])
}

/// cos and sin, [T, rotated / 2].
pub(super) struct Rope {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl Rope {
    pub fn new((cos, sin): (Tensor, Tensor), device: &Device) -> Result<Rope> {
        Ok(Rope { cos: cos.to_device(device)?, sin: sin.to_device(device)? })
    }
}
