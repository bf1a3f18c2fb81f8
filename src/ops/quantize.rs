//! Symmetric int8 by row (Jacob et al. 2018, without zero points; per token as in Dettmers et al. 2022): scale = max|x| / 127,
//! q = round(x / scale), ties to even, in -127..=127. A row of zeros has scale 0 and is zero.
//! As the kernels do: x * (127 / max|x|), one product an element.
use rayon::prelude::*;

use super::vector_math::vectorised;
use super::{expect_f32, expect_shape, pieces};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Largest absolute value of an element: -128 is not used, so that a row and its negative have the same elements but for their signs.
pub const LEVELS: f32 = 127.0;

/// A row with nothing above it is zero: 127 / it must not overflow.
const TINY: f32 = 1e-36;

/// q i8 [M, K], scale f32 [M]; x [M, K]. A row with NaN or infinity gets scale NaN: what is made of it later is NaN as well.
pub fn forward(q: &mut Tensor, scale: &mut Tensor, x: &Tensor) -> Result<()> {
    const OP: &str = "quantize";
    let cols = x.cols();
    expect_shape(OP, "q", q, x.shape())?;
    expect_shape(OP, "scale", scale, &[x.rows()])?;
    expect_f32(OP, "scale", scale)?;
    if x.gpu().is_some() {
        return Err(Error::op(OP, "x in main memory", "a GPU"));
    }
    let (q, scale, x) = (q.i8s_mut()?, scale.f32s_mut()?, pieces::widened(x)?);
    if cols == 0 {
        scale.fill(0.0);
        return Ok(());
    }
    let rows = pieces::whole_rows(cols) / cols;
    let piece = |((q, scale), x): ((&mut [i8], &mut [f32]), &[f32])| {
        for ((q, scale), x) in q.chunks_exact_mut(cols).zip(scale).zip(x.chunks_exact(cols)) {
            *scale = row(q, x);
        }
    };
    if scale.len() <= rows {
        piece(((q, scale), &x));
    } else {
        let q = q.par_chunks_mut(rows * cols).zip(scale.par_chunks_mut(rows));
        q.zip(x.par_chunks(rows * cols)).for_each(piece);
    }
    Ok(())
}

vectorised! {
    /// Quantises one row; its scale.
    pub(super) fn row(q: &mut [i8], x: &[f32]) -> f32 {
        // An integer maximum over the bits of |x|: infinities and NaN lie above all numbers, and it has no order.
        let bits = x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
        let most = f32::from_bits(bits);
        if !most.is_finite() {
            q.fill(0);
            return f32::NAN;
        }
        if most < TINY {
            q.fill(0);
            return 0.0;
        }
        let inverse = LEVELS / most;
        for (q, x) in q.iter_mut().zip(x) {
            *q = (x * inverse).round_ties_even() as i8;
        }
        most / LEVELS
    }
}
