//! The matrix product under linear, lora and attention: C = alpha A B (+ C), f32, through the `gemm` crate.
//! C is cut into pieces of a size that depends on the shape alone; each piece is one single-threaded gemm per `DEPTH` steps of k,
//! so the sum over k has one order whatever the number of threads. Where B is contiguous in k (and n > 1, k > 2) a row of C
//! also has the same bits among any number of rows: partial sums over DEPTH steps, added up in order. `deep` products are the exception.

pub(super) mod dot;
pub(super) mod packed;

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// A strided view: element (i, j) is data[i * rs + j * cs].
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub rs: usize,
    pub cs: usize,
}

impl<'a> View<'a> {
    /// The view whose element (0, 0) is (i, j) of this one; nothing is left of a matrix without elements.
    fn from(self, i: usize, j: usize) -> View<'a> {
        View { data: &self.data[(i * self.rs + j * self.cs).min(self.data.len())..], ..self }
    }
}

/// Multiply-adds below which the calling thread does it all (12 us; waking another thread costs about as much), and those that a
/// piece should have.
const PIECE: usize = 1 << 20;
/// Rows and columns of a piece, where its work allows; 192 divides the widths of the models at hand and the tile of the kernel underneath.
const TILE: usize = 192;
/// Longest partial sum over k. Up to here `gemm` keeps one running sum per element for any shape (tests/ops/matmul.rs holds it to that).
const DEPTH: usize = 512;

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
    let out = Shared::new(c);
    if deep(m, n, k) {
        return split_depth(m, n, k, &out, ldc, alpha, a, b, accumulate);
    }
    for_pieces(m, n, k, |rows, cols| {
        // SAFETY: `check` has bounded every element that m x n x k touch; the pieces of C are disjoint.
        unsafe {
            let c = out.at(rows.start * ldc + cols.start);
            block(
                rows.len(),
                cols.len(),
                k,
                c,
                ldc,
                alpha,
                a.from(rows.start, 0),
                b.from(0, cols.start),
                accumulate,
            );
        }
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

/// Calls `run(rows, columns)` for pieces that cover an m x n matrix whose elements take k multiply-adds each.
pub(super) fn for_pieces(m: usize, n: usize, k: usize, run: impl Fn(Range<usize>, Range<usize>) + Sync) {
    if m * n * k < PIECE {
        return run(0..m, 0..n);
    }
    let enough = |across: usize| (PIECE / (across * k)).next_multiple_of(TILE).max(TILE);
    let rows = enough(TILE.min(n)).min(m);
    let cols = enough(rows).min(n);
    let across = n.div_ceil(cols);
    (0..m.div_ceil(rows) * across).into_par_iter().for_each(|piece| {
        let (i, j) = (piece / across * rows, piece % across * cols);
        run(i..m.min(i + rows), j..n.min(j + cols));
    });
}

/// Whether C is so small and k so long that only cutting k makes pieces: the gradient of a small weight over many tokens.
fn deep(m: usize, n: usize, k: usize) -> bool {
    k >= 4 * DEPTH && m * n <= 2 * TILE * TILE
}

/// Cuts k, and adds the parts up in order.
#[allow(clippy::too_many_arguments)]
fn split_depth(
    m: usize,
    n: usize,
    k: usize,
    out: &Shared,
    ldc: usize,
    alpha: f32,
    a: View,
    b: View,
    accumulate: bool,
) {
    let depth = (PIECE / (m * n)).next_multiple_of(DEPTH);
    let mut parts = vec![0.0; k.div_ceil(depth) * m * n];
    parts.par_chunks_exact_mut(m * n).enumerate().for_each(|(i, part)| {
        let start = i * depth;
        let len = depth.min(k - start);
        // SAFETY: `part` is m x n and ours alone; `check` has bounded the elements of A and B.
        unsafe { block(m, n, len, part.as_mut_ptr(), n, alpha, a.from(0, start), b.from(start, 0), false) };
    });
    for (i, part) in parts.chunks_exact(n).enumerate() {
        // SAFETY: `check` has bounded the rows of C; this thread alone has it now.
        let row = unsafe { out.slice(i % m * ldc, n) };
        if i < m && !accumulate {
            row.copy_from_slice(part);
        } else {
            row.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
    }
}

/// The same on the calling thread.
pub(super) fn matmul_here(
    [m, n, k]: [usize; 3],
    c: &mut [f32],
    ldc: usize,
    alpha: f32,
    a: View,
    b: View,
    accumulate: bool,
) {
    if m > 0 && n > 0 {
        check(m, n, k, c, ldc, a, b);
        // SAFETY: `check` has bounded every element that m x n x k touch; C is borrowed mutably.
        unsafe { block(m, n, k, c.as_mut_ptr(), ldc, alpha, a, b, accumulate) };
    }
}

/// The same without checks, for a part of C.
///
/// # Safety
/// C has m rows of n elements, `ldc` apart, that nothing else touches meanwhile; A is m x k and B k x n.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn block(
    m: usize,
    n: usize,
    k: usize,
    c: *mut f32,
    ldc: usize,
    alpha: f32,
    a: View,
    b: View,
    accumulate: bool,
) {
    let (a, rs, cs) = spread(m, n, k, a, b);
    let mut start = 0;
    loop {
        let depth = DEPTH.min(k - start);
        // SAFETY: within bounds by the caller's contract; C does not alias A or B, which are shared borrows.
        unsafe {
            gemm::gemm(
                m,
                n,
                depth,
                c,
                1,
                ldc as isize,
                accumulate || start > 0,
                a.as_ptr().add(start * cs),
                cs as isize,
                rs as isize,
                b.data.as_ptr().add(start * b.rs),
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
        start += depth;
        if start == k {
            return;
        }
    }
}

/// A and its strides in a layout for which `gemm` takes its common path. It has others for few rows when both matrices are contiguous in k;
/// they sum in another order, so a row would change its bits with the number of rows.
fn spread<'a>(m: usize, n: usize, k: usize, a: View<'a>, b: View) -> (Cow<'a, [f32]>, usize, usize) {
    if a.cs != 1 || b.rs != 1 || (m > 1 && m * n > 256) {
        return (Cow::Borrowed(a.data), a.rs, a.cs);
    }
    let stride = m.max(2);
    let mut data = vec![0.0; k * stride];
    for (p, column) in data.chunks_exact_mut(stride).enumerate() {
        for (i, x) in column.iter_mut().take(m).enumerate() {
            *x = a.data[i * a.rs + p];
        }
    }
    (Cow::Owned(data), 1, stride)
}

/// A slice that several threads write, each its own elements.
pub(super) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for a `&mut [f32]`; `slice` and `at` oblige their callers to keep to disjoint elements.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(data: &'a mut [f32]) -> Self {
        Shared { data: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// # Safety
    /// No two slices alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)] // The point of this type; see the contract.
    pub(super) unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.len, "elements {start} + {len} of {}", self.len);
        // SAFETY: in bounds by the assertion, unaliased by the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }

    /// Where element `start` lies.
    ///
    /// # Safety
    /// What is reached from there obeys the contract of `slice`, and stays within bounds.
    pub(super) unsafe fn at(&self, start: usize) -> *mut f32 {
        assert!(start < self.len, "element {start} of {}", self.len);
        // SAFETY: in bounds by the assertion.
        unsafe { self.data.add(start) }
    }
}
