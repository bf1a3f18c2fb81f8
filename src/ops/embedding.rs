//! Row gather from a table, and the splice that puts picture features into the rows of picture tokens.
use super::expect_shape;
use crate::error::{Error, Result};
use crate::tensor::{Indices, Tensor};

/// An error unless all `ids` are below `rows`.
fn expect_below(op: &'static str, name: &str, ids: &[u32], rows: usize) -> Result<()> {
    match ids.iter().position(|&id| id as usize >= rows) {
        None => Ok(()),
        Some(i) => Err(Error::op(op, format!("{name} below {rows}"), format!("{} at {i}", ids[i]))),
    }
}

/// Row `i` of a row-major matrix.
fn row(i: u32, width: usize) -> std::ops::Range<usize> {
    let start = i as usize * width;
    start..start + width
}

/// out[t] = table[ids[t]]; out [T, C] f32, table [V, C] of any dtype. Also used to gather the rows of answer tokens.
pub fn forward(out: &mut Tensor, ids: &Indices, table: &Tensor) -> Result<()> {
    const OP: &str = "embedding forward";
    let width = table.cols();
    expect_shape(OP, "out", out, &[ids.len(), width])?;
    expect_below(OP, "ids", ids, table.rows())?;
    let (out, table) = (out.f32s_mut()?, table.elements()?);
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width.max(1))) {
        table.widen(id as usize * width, out);
    }
    Ok(())
}

/// dtable[ids[t]] += dy[t], in the order of t; dtable [V, C], dy [T, C].
pub fn backward(dtable: &mut Tensor, ids: &[u32], dy: &Tensor) -> Result<()> {
    const OP: &str = "embedding backward";
    let width = dtable.cols();
    expect_shape(OP, "dy", dy, &[ids.len(), width])?;
    expect_below(OP, "ids", ids, dtable.rows())?;
    let (dtable, dy) = (dtable.f32s_mut()?, dy.f32s()?);
    for (&id, dy) in ids.iter().zip(dy.chunks_exact(width.max(1))) {
        add(&mut dtable[row(id, width)], dy);
    }
    Ok(())
}

/// out[positions[i]] = features[sources[i]]; features [F, C]. A source may occur more than once (several questions on one picture).
pub fn splice(out: &mut Tensor, features: &Tensor, positions: &Indices, sources: &Indices) -> Result<()> {
    let width = expect_splice("embedding splice", out, features, positions, sources)?;
    let (out, features) = (out.f32s_mut()?, features.f32s()?);
    for (&position, &source) in positions.iter().zip(sources.iter()) {
        out[row(position, width)].copy_from_slice(&features[row(source, width)]);
    }
    Ok(())
}

/// dfeatures[sources[i]] += dy[positions[i]], and dy[positions[i]] becomes 0 (the token there got no embedding).
pub fn splice_backward(
    dfeatures: &mut Tensor,
    dy: &mut Tensor,
    positions: &[u32],
    sources: &[u32],
) -> Result<()> {
    let width = expect_splice("embedding splice_backward", dy, dfeatures, positions, sources)?;
    let (dfeatures, dy) = (dfeatures.f32s_mut()?, dy.f32s_mut()?);
    for (&position, &source) in positions.iter().zip(sources.iter()) {
        let dy = &mut dy[row(position, width)];
        add(&mut dfeatures[row(source, width)], dy);
        dy.fill(0.0);
    }
    Ok(())
}

/// The common width of tokens [T, C] and features [F, C], after all indices are checked.
fn expect_splice(
    op: &'static str,
    tokens: &Tensor,
    features: &Tensor,
    positions: &[u32],
    sources: &[u32],
) -> Result<usize> {
    let width = tokens.cols();
    expect_shape(op, "features", features, &[features.rows(), width])?;
    if positions.len() != sources.len() {
        return Err(Error::op(op, format!("{} sources", positions.len()), sources.len().to_string()));
    }
    expect_below(op, "positions", positions, tokens.rows())?;
    expect_below(op, "sources", sources, features.rows())?;
    Ok(width)
}

fn add(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}
