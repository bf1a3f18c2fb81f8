//! A matrix to int8, some rows at a time.
use crate::error::{Error, Result};
use crate::ops::quantize;
use crate::quant::Fold;
use crate::tensor::{Device, Tensor};

/// Elements of the rows that are widened at a time.
const PIECE: usize = 1 << 18;

/// i8 [N, K] and f32 [N] of a weight [N, K], after `fold` is multiplied into it, for an input that is rotated so (ops::quantize): the rows of the
/// weight are too, and their scales hold what both rotations together are too large by.
pub fn matrix(weight: &Tensor, fold: Option<&Fold>, rotation: usize) -> Result<(Tensor, Tensor)> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let mut q = Vec::with_capacity(weight.len());
    let mut scales = Vec::with_capacity(rows);
    pieces(weight, fold, rotation, |piece, scale| {
        q.extend_from_slice(piece);
        scales.extend_from_slice(scale);
    })?;
    Ok((Tensor::from_i8(&[rows, cols], q)?, Tensor::from_vec(&[rows], scales)?))
}

/// The second of the two alone.
pub fn scales(weight: &Tensor, fold: Option<&Fold>, rotation: usize) -> Result<Tensor> {
    let mut scales = Vec::with_capacity(weight.rows());
    pieces(weight, fold, rotation, |_, scale| scales.extend_from_slice(scale))?;
    Tensor::from_vec(&[weight.rows()], scales)
}

fn pieces(
    weight: &Tensor,
    fold: Option<&Fold>,
    rotation: usize,
    mut made: impl FnMut(&[i8], &[f32]),
) -> Result<()> {
    let here = weight.to_device(&Device::Cpu)?;
    let (rows, cols, elements) = (weight.rows(), weight.cols(), here.elements()?);
    let step = (PIECE / cols.max(1)).max(1);
    for first in (0..rows).step_by(step) {
        let count = step.min(rows - first);
        let mut wide = vec![0.0; count * cols];
        elements.widen(first * cols, &mut wide);
        if let Some(fold) = fold {
            fold.multiply(&mut wide, first, cols);
        }
        if let Some(i) = wide.iter().position(|v| !v.is_finite()) {
            let got = format!("{} in row {}, column {}", wide[i], first + i / cols, i % cols);
            return Err(Error::op("quantize", "finite weights", got));
        }
        let x = Tensor::from_vec(&[count, cols], wide)?;
        let mut q = x.like_i8(&[count, cols])?;
        let mut scale = Tensor::zeros(&[count]);
        quantize::forward(&mut q, &mut scale, &x, rotation)?;
        // Exact: a power of two.
        scale.f32s_mut()?.iter_mut().for_each(|scale| *scale /= rotation as f32);
        made(q.i8s()?, scale.f32s()?);
    }
    Ok(())
}
