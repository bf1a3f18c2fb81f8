//! Symmetric int8 by row (Jacob et al. 2018, without zero points; per token as in Dettmers et al. 2022): scale = max|x| / 127,
//! q = round(x / scale), ties to even, in -127..=127. A row of zeros has scale 0 and is zero.
//! As the kernels do: x * (127 / max|x|), one product an element. Both give the same bits.
use std::sync::Arc;

use rayon::prelude::*;

use super::vector_math::vectorised;
use super::{expect_f32, expect_shape, int, kernel_dtype, pieces};
use crate::error::{Error, Result};
use crate::tensor::{DType, Gpu, Launch, Ptr, Tensor};

/// Largest absolute value of an element: -128 is not used, so that a row and its negative have the same elements but for their signs.
pub const LEVELS: f32 = 127.0;

/// A row with nothing above it is zero: 127 / it must not overflow.
const TINY: f32 = 1e-36;

const OP: &str = "quantize";

/// q i8 [M, K], scale f32 [M]; x [M, K]. A row with NaN or infinity gets scale NaN: what is made of it later is NaN as well.
pub fn forward(q: &mut Tensor, scale: &mut Tensor, x: &Tensor) -> Result<()> {
    let cols = x.cols();
    expect_outputs(OP, q, scale, x.shape())?;
    if let Some(gpu) = x.gpu() {
        return launch(gpu, q, scale, x);
    }
    let x = pieces::widened(x)?;
    each_row(q, scale, |i, q| row(q, &x[i * cols..][..cols]))
}

/// `Ok` if q and scale can hold what is made of rows of this shape.
pub(super) fn expect_outputs(op: &'static str, q: &Tensor, scale: &Tensor, shape: &[usize]) -> Result<()> {
    expect_shape(op, "q", q, shape)?;
    expect_shape(op, "scale", scale, &[q.rows()])?;
    expect_f32(op, "scale", scale)?;
    if q.dtype() == DType::I8 {
        return Ok(());
    }
    Err(Error::op(op, "q in i8", q.dtype().to_string()))
}

/// scale[i] = row(i, row i of q), for all rows of q, in main memory.
pub(super) fn each_row(
    q: &mut Tensor,
    scale: &mut Tensor,
    row: impl Fn(usize, &mut [i8]) -> f32 + Sync,
) -> Result<()> {
    let cols = q.cols();
    let (q, scale) = (q.i8s_mut()?, scale.f32s_mut()?);
    if cols == 0 {
        scale.fill(0.0);
        return Ok(());
    }
    let rows = pieces::whole_rows(cols) / cols;
    let piece = |(first, (q, scale)): (usize, (&mut [i8], &mut [f32]))| {
        for (i, (q, scale)) in q.chunks_exact_mut(cols).zip(scale).enumerate() {
            *scale = row(first * rows + i, q);
        }
    };
    if scale.len() <= rows {
        piece((0, (q, scale)));
    } else {
        q.par_chunks_mut(rows * cols).zip(scale.par_chunks_mut(rows)).enumerate().for_each(piece);
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

/// Threads of a block, and its shared memory: a number a warp.
const THREADS: usize = 256;
const SHARED: usize = 32 * size_of::<u32>();

/// kernels/quantize.cu
fn launch(gpu: &Arc<Gpu>, q: &mut Tensor, scale: &mut Tensor, x: &Tensor) -> Result<()> {
    let dtype = kernel_dtype(OP, &[x])?;
    let at = Launch { grid: [x.rows(), 1, 1], block: THREADS as u32, shared: SHARED };
    let args =
        [q.ptr_mut(gpu)?.into(), scale.ptr_mut(gpu)?.into(), x.ptr(gpu)?.into(), int(OP, x.cols())?.into()];
    gpu.launch(&format!("quantize_forward_{dtype}"), at, &args)
}

/// The same for bf16 at `x`, whose rows' largest magnitudes, as f32, are known.
pub(super) fn launch_known(
    gpu: &Arc<Gpu>,
    q: &mut Tensor,
    scale: &mut Tensor,
    x: Ptr,
    most: &Tensor,
) -> Result<()> {
    /// Elements of a row that a block takes at a time.
    const STRETCH: usize = 8 * THREADS;
    let grid = [q.rows(), q.cols().div_ceil(STRETCH).max(1), 1];
    let at = Launch { grid, block: THREADS as u32, shared: 0 };
    let args = [
        q.ptr_mut(gpu)?.into(),
        scale.ptr_mut(gpu)?.into(),
        x.into(),
        most.ptr(gpu)?.into(),
        int(OP, q.cols())?.into(),
    ];
    gpu.launch("quantize_known_forward_bf16", at, &args)
}

/// How the kernels of norms that quantise are launched: a block a row.
pub(super) fn norm_at(rows: usize) -> Launch {
    Launch { grid: [rows, 1, 1], block: 128, shared: 2 * SHARED }
}
