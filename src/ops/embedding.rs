//! Row gather from a table, and the splice that puts picture features into the rows of picture tokens.
use crate::error::Result;
use crate::tensor::Tensor;

/// out[t] = table[ids[t]]; out [T, C] f32, table [V, C] of any dtype. Also used to gather the rows of answer tokens.
pub fn forward(out: &mut Tensor, ids: &[u32], table: &Tensor) -> Result<()> {
    todo!()
}

/// dtable[ids[t]] += dy[t], in the order of t; dtable [V, C], dy [T, C].
pub fn backward(dtable: &mut Tensor, ids: &[u32], dy: &Tensor) -> Result<()> {
    todo!()
}

/// out[positions[i]] = features[sources[i]]; features [F, C]. A source may occur more than once (several questions on one picture).
pub fn splice(out: &mut Tensor, features: &Tensor, positions: &[u32], sources: &[u32]) -> Result<()> {
    todo!()
}

/// dfeatures[sources[i]] += dy[positions[i]], and dy[positions[i]] becomes 0 (the token there got no embedding).
pub fn splice_backward(
    dfeatures: &mut Tensor,
    dy: &mut Tensor,
    positions: &[u32],
    sources: &[u32],
) -> Result<()> {
    todo!()
}
