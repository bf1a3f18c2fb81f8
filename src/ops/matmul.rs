//! The matrix product under linear, lora and attention: C = alpha A B (+ C), f32, through the `gemm` crate.
//! Rows (or, for few rows, columns) of C are cut into pieces of a size that depends on the shape alone; each piece is one single-threaded gemm,
//! so the sum over k has one order whatever the number of threads.

use rayon::prelude::*;

/// A strided view: element (i, j) is data[i * rs + j * cs].
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub rs: usize,
    pub cs: usize,
}

/// Multiply-adds below which the calling thread does it all: handing work to another costs about as much.
const SMALL: usize = 1 << 18;
/// Multiply-adds that a piece should have, so that its share of the overhead is small.
const PIECE: usize = 1 << 20;
/// Pieces are whole multiples of this many rows or columns, the tile of the kernel underneath.
const TILE: usize = 48;

/// c[i * ldc + j] = beta * c + alpha * sum_k a(i, k) b(k, j) for i < m, j < n; beta is 0 (c is not read) or 1.
/// Panics if a view is too short: callers have checked shapes. Large products are split over rayon's threads.
#[allow(clippy::too_many_arguments)]
pub fn matmul(
    m: usize,
    n: usize,
    k: usize,
    c: &mut [f32],
    ldc: usize,
    alpha: f32,
    a: View,
    b: View,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    check(m, n, k, c, ldc, a, b);
    let out = Out { data: c.as_mut_ptr(), ld: ldc };
    let run = |rows: std::ops::Range<usize>, cols: std::ops::Range<usize>| {
        // SAFETY: `check` has bounded every element that m x n x k touch; the pieces of C are disjoint.
        unsafe { piece(rows, cols, k, &out, alpha, a, b, accumulate) }
    };
    let work = m * n * k;
    if work < SMALL {
        run(0..m, 0..n);
        return;
    }
    let along_rows = m >= n;
    let (long, short) = if along_rows { (m, n) } else { (n, m) };
    let size = PIECE.div_ceil(short * k).next_multiple_of(TILE);
    (0..long.div_ceil(size)).into_par_iter().for_each(|i| {
        let range = i * size..long.min((i + 1) * size);
        if along_rows { run(range, 0..n) } else { run(0..m, range) }
    });
}

/// Panics unless all elements that the product touches exist and C's rows do not overlap.
fn check(m: usize, n: usize, k: usize, c: &[f32], ldc: usize, a: View, b: View) {
    let last = |v: View, i: usize, j: usize| (i - 1) * v.rs + (j - 1) * v.cs;
    assert!(m == 1 || ldc >= n, "matmul: rows of C overlap");
    assert!((m - 1) * ldc + n <= c.len(), "matmul: C is too short");
    assert!(k == 0 || last(a, m, k) < a.data.len(), "matmul: A is too short");
    assert!(k == 0 || last(b, k, n) < b.data.len(), "matmul: B is too short");
}

/// C, shared by pieces that write disjoint parts of it.
struct Out {
    data: *mut f32,
    ld: usize,
}

// SAFETY: the pointer comes from a `&mut [f32]` that outlives the parallel loop; pieces write disjoint elements.
unsafe impl Sync for Out {}

/// # Safety
/// Rows and columns lie within C, A and B (see `check`), and no other thread touches this part of C meanwhile.
#[allow(clippy::too_many_arguments)]
unsafe fn piece(
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    k: usize,
    out: &Out,
    alpha: f32,
    a: View,
    b: View,
    accumulate: bool,
) {
    // SAFETY: f32 elements within bounds by the caller's contract; C is borrowed mutably, so A and B do not alias it.
    unsafe {
        gemm::gemm(
            rows.len(),
            cols.len(),
            k,
            out.data.add(rows.start * out.ld + cols.start),
            1,
            out.ld as isize,
            accumulate,
            a.data.as_ptr().add(if k == 0 { 0 } else { rows.start * a.rs }),
            a.cs as isize,
            a.rs as isize,
            b.data.as_ptr().add(if k == 0 { 0 } else { cols.start * b.cs }),
            b.cs as isize,
            b.rs as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
