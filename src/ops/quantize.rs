//! Symmetric int8 by row (Jacob et al. 2018, without zero points; per token as in Dettmers et al. 2022): scale = max|x| / 127,
//! q = round(x / scale), ties to even, in -127..=127. A row of zeros has scale 0 and is zero.
//! As the kernels do: x * (127 / max|x|), one product an element. Both give the same bits.
//!
//! Rows can be rotated first (QuaRot, Ashkboos et al. 2024): each `rotation` columns, a power of two, are multiplied by the Hadamard matrix of that
//! size, entries 1 and -1. That spreads an outlier over all of them, so that the largest is nearer to the rest. H H^T = `rotation` I: where the rows of
//! x and of W are rotated, a product over K is `rotation` times what it was. Nothing but sums and differences of two, in one order: the same bits too.
use std::array::from_fn;
use std::cell::RefCell;
use std::hint::black_box;
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

thread_local! {
    static ROTATED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The largest rotation: a warp's, of four bytes a column and 16 a lane.
pub const MOST_ROTATED: usize = 128;

/// The rotation of rows of so many columns: the largest that divides them, and is no larger than `most`.
pub fn rotation(cols: usize, most: usize) -> usize {
    (1 << cols.max(1).trailing_zeros()).min(most)
}

/// q i8 [M, K], scale f32 [M]; x [M, K]. A row with NaN or infinity, or whose rotation has one, gets scale NaN: what is made of it later is NaN as well.
/// `rotation` is a power of two that divides K, up to `MOST_ROTATED`; 1 leaves x as it is.
pub fn forward(q: &mut Tensor, scale: &mut Tensor, x: &Tensor, rotation: usize) -> Result<()> {
    let cols = x.cols();
    expect_outputs(OP, q, scale, x.shape())?;
    expect_rotation(OP, rotation, cols)?;
    if let Some(gpu) = x.gpu() {
        let dtype = kernel_dtype(OP, &[x])?;
        return launch(gpu, q, scale, (x.ptr(gpu)?, dtype), rotation);
    }
    let x = pieces::widened(x)?;
    each_row(q, scale, |i, q| {
        let x = &x[i * cols..][..cols];
        if rotation == 1 {
            return row(q, x);
        }
        ROTATED.with_borrow_mut(|rotated| {
            rotated.clear();
            rotated.extend_from_slice(x);
            rotate(rotated, rotation);
            row(q, rotated)
        })
    })
}

/// `Ok` if rows of so many columns can be rotated so.
pub(super) fn expect_rotation(op: &'static str, rotation: usize, cols: usize) -> Result<()> {
    if rotation.is_power_of_two() && rotation <= MOST_ROTATED && cols.is_multiple_of(rotation) {
        return Ok(());
    }
    let expected = format!("a rotation of 1, 2, 4, .. or {MOST_ROTATED} that divides {cols} columns");
    Err(Error::op(op, expected, rotation.to_string()))
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
        // Adding 1.5 * 2^23 rounds to an integer, ties to even, whose lowest byte is the sum's: what is at most 127 needs no more.
        const ROUND: f32 = 12_582_912.0;
        let inverse = LEVELS / most;
        for (q, x) in q.iter_mut().zip(x) {
            *q = (x * inverse + ROUND).to_bits() as i8;
        }
        most / LEVELS
    }
}

/// Columns that a stage with small strides has at hand.
const NEAR: usize = 16;

vectorised! {
    /// Each `rotation` elements of x times the Hadamard matrix in Sylvester's order: sums and differences of elements 1 apart, then 2, 4, ...
    pub(super) fn rotate(x: &mut [f32], rotation: usize) {
        let mut stride = 1;
        if rotation >= NEAR {
            for near in x.as_chunks_mut::<NEAR>().0 {
                // Opaque, so that the compiler makes vectors of these elements, and not of those of many chunks, which lie apart.
                let near = black_box(near);
                *near = apart::<8>(&apart::<4>(&apart::<2>(&apart::<1>(near))));
            }
            stride = NEAR;
        }
        while stride < rotation {
            for pair in x.chunks_exact_mut(2 * stride) {
                let (a, b) = pair.split_at_mut(stride);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            stride *= 2;
        }
    }
}

/// A stage within a vector's reach.
#[inline(always)]
fn apart<const STRIDE: usize>(x: &[f32; NEAR]) -> [f32; NEAR] {
    // a - b is a + (-b): one exchange of elements, and one sum.
    from_fn(|i| x[i ^ STRIDE] + if i & STRIDE == 0 { x[i] } else { -x[i] })
}

/// Threads of a block where there are as many rows as multiprocessors, and where there are fewer.
const THREADS: usize = 256;
const THREADS_OF_FEW: usize = 1024;
/// Shared memory of a block: a number a warp.
const SHARED: usize = 32 * size_of::<u32>();

/// kernels/quantize.cu; x, of the shape of q and this type, lies at the address. Shapes have been checked.
pub(super) fn launch(
    gpu: &Arc<Gpu>,
    q: &mut Tensor,
    scale: &mut Tensor,
    (x, dtype): (Ptr, DType),
    rotation: usize,
) -> Result<()> {
    let threads = if q.rows() < gpu.card().multiprocessors { THREADS_OF_FEW } else { THREADS };
    let at = Launch { grid: [q.rows(), 1, 1], block: threads as u32, shared: SHARED };
    let (cols, rotation) = (int(OP, q.cols())?, int(OP, rotation)?);
    let args = [q.ptr_mut(gpu)?.into(), scale.ptr_mut(gpu)?.into(), x.into(), cols.into(), rotation.into()];
    gpu.launch(&format!("quantize_forward_{dtype}"), at, &args)
}

/// How the kernels of norms that quantise are launched: a block a row.
pub(super) fn norm_at(rows: usize) -> Launch {
    Launch { grid: [rows, 1, 1], block: 128, shared: 2 * SHARED }
}
