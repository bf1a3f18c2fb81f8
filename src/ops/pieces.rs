//! How loops are split over threads: in pieces of a size that the shape alone decides, so that results do not depend on the
//! number of threads. What fits in one piece is done on the calling thread, since waking another would cost more.

use std::borrow::Cow;

use rayon::prelude::*;

use super::add::add_to;
use crate::error::Result;
use crate::tensor::{Elements, Tensor};

/// Elements of one piece: some ten microseconds of simple arithmetic.
pub(super) const PIECE: usize = 16 * 1024;

/// Elements of as many whole rows of `cols` as make up one piece; at least one row.
pub(super) fn whole_rows(cols: usize) -> usize {
    let cols = cols.max(1);
    (PIECE / cols).max(1) * cols
}

/// Calls `f(start, piece)` for each `size` elements of `out`.
pub(super) fn each(out: &mut [f32], size: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if out.len() <= size {
        f(0, out);
    } else {
        out.par_chunks_mut(size).enumerate().for_each(|(i, piece)| f(i * size, piece));
    }
}

/// The same over two outputs of one length.
pub(super) fn each2(
    a: &mut [f32],
    b: &mut [f32],
    size: usize,
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    if a.len() <= size {
        f(0, a, b);
    } else {
        a.par_chunks_mut(size)
            .zip(b.par_chunks_mut(size))
            .enumerate()
            .for_each(|(i, (a, b))| f(i * size, a, b));
    }
}

/// Adds to `sums` what `f(start, piece, partial)` leaves in `partial` (as long as `sums`, first zero) for each `size` elements of
/// `out`; the partial sums are added in the order of the pieces.
pub(super) fn each_with_sums(
    out: &mut [f32],
    size: usize,
    sums: &mut [f32],
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let n = sums.len();
    let partial = |start, piece: &mut [f32]| {
        let mut partial = vec![0.0; n];
        f(start, piece, &mut partial);
        partial
    };
    let partials: Vec<Vec<f32>> = if out.len() <= size {
        vec![partial(0, out)]
    } else {
        out.par_chunks_mut(size).enumerate().map(|(i, piece)| partial(i * size, piece)).collect()
    };
    for partial in partials {
        add_to(sums, &partial);
    }
}

/// The elements as f32, copied only if they are of another type.
pub(super) fn widened(tensor: &Tensor) -> Result<Cow<'_, [f32]>> {
    match tensor.elements()? {
        Elements::F32(v) => Ok(Cow::Borrowed(v)),
        other => {
            let mut wide = vec![0.0; other.len()];
            other.widen(0, &mut wide);
            Ok(Cow::Owned(wide))
        }
    }
}
