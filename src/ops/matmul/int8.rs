//! Sums of products of int8 matrices, in int32: the same whatever the processor.
use rayon::prelude::*;

/// Rows of W in a piece of work.
const W_ROWS: usize = 64;
/// Multiply-adds below which the calling thread does it all.
const SMALL: usize = 1 << 18;

/// For x [M, K] and W [N, K], row-major with elements in -127..=127: `finish(row, first column, out, sums)` for pieces of the rows of `out` [M, N].
pub(in crate::ops) fn products(
    out: &mut [f32],
    x: &[i8],
    weight: &[i8],
    [m, n, k]: [usize; 3],
    finish: impl Fn(usize, usize, &mut [f32], &[i32]) + Sync,
) {
    if m == 0 || n == 0 {
        return;
    }
    let piece = |(i, out): (usize, &mut [f32])| {
        let pieces = n.div_ceil(W_ROWS);
        let (row, first) = (i / pieces, i % pieces * W_ROWS);
        let x = &x[row * k..(row + 1) * k];
        let mut sums = [0; W_ROWS];
        for (j, sum) in sums.iter_mut().take(out.len()).enumerate() {
            *sum = dot(x, &weight[(first + j) * k..(first + j + 1) * k]);
        }
        finish(row, first, out, &sums[..out.len()]);
    };
    let mut parts: Vec<(usize, &mut [f32])> =
        out.chunks_exact_mut(n).flat_map(|row| row.chunks_mut(W_ROWS)).enumerate().collect();
    if m * n * k < SMALL {
        parts.drain(..).for_each(piece);
    } else {
        parts.into_par_iter().for_each(piece);
    }
}

fn dot(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}
