//! sums += X W^T where the rows of X and W are contiguous: tiles of dot products held in vector registers.
//! An element is the same sum in the same order wherever it lies and however many rows X and W have: a row does not depend on its neighbours.

// Loops over constant bounds become registers. Iterators would need closures, which are not compiled for the vector unit at hand.
#![allow(clippy::needless_range_loop)]

use pulp::{Arch, Simd, WithSimd};

/// Longest partial sum over k: the rows of a tile of this length stay in the first-level cache.
pub const DEPTH: usize = 512;

/// Columns of a tile; it has up to `MOST` rows where there are 32 vector registers.
const COLS: usize = 4;
const MOST: usize = 6;

/// Floats in the widest vector register and in a cache line.
const LINE: usize = 16;

/// Rows of up to DEPTH elements, each at the start of a cache line and filled up with zeros: what vector loads like best.
#[derive(Default)]
pub struct Panel {
    data: Vec<f32>,
    offset: usize,
    rows: usize,
    stride: usize,
}

impl Panel {
    /// Makes room for `rows` rows of `k` elements and has `fill(row, elements)` write each.
    #[inline(always)]
    pub fn fill(&mut self, rows: usize, k: usize, fill: impl Fn(usize, &mut [f32])) {
        self.stride = k.next_multiple_of(LINE);
        self.rows = rows;
        let len = rows * self.stride + LINE;
        if self.data.len() < len {
            self.data = vec![0.0; len];
            self.offset = self.data.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        }
        for (i, row) in self.data[self.offset..].chunks_exact_mut(self.stride).take(rows).enumerate() {
            let (row, padding) = row.split_at_mut(k);
            fill(i, row);
            padding.fill(0.0);
        }
    }

    #[inline(always)]
    fn row<S: Simd>(&self, i: usize) -> &[S::f32s] {
        S::as_simd_f32s(&self.data[self.offset + i * self.stride..][..self.stride]).0
    }
}

/// Rows of X: element (i, k) is data[i * stride + k].
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// Where the sums go: element (i, j) is data[i * stride + j].
#[derive(Clone, Copy)]
pub struct Sums {
    pub data: *mut f32,
    pub stride: usize,
}

/// sums(i, j) += sum_k x(i, k) w(j, k) for `m` rows of x and all of w, over `k` <= DEPTH elements.
///
/// # Safety
/// `sums` points to m x w.rows elements that nothing else reads or writes meanwhile.
pub unsafe fn add_products(sums: Sums, m: usize, k: usize, x: Rows, w: &Panel) {
    Arch::new().dispatch(Product { sums, m, k, x, w });
}

struct Product<'a> {
    sums: Sums,
    m: usize,
    k: usize,
    x: Rows<'a>,
    w: &'a Panel,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let most = if S::REGISTER_COUNT >= 32 { MOST } else { 2 };
        let mut panel = Panel::default();
        let mut i = 0;
        while i < self.m {
            let rows = most.min(self.m - i);
            panel.fill(rows, self.k, |r, to| {
                to.copy_from_slice(&self.x.data[(i + r) * self.x.stride..][..self.k])
            });
            match rows {
                1 => self.stripe::<S, 1>(simd, i, &panel),
                2 => self.stripe::<S, 2>(simd, i, &panel),
                3 => self.stripe::<S, 3>(simd, i, &panel),
                4 => self.stripe::<S, 4>(simd, i, &panel),
                5 => self.stripe::<S, 5>(simd, i, &panel),
                _ => self.stripe::<S, MOST>(simd, i, &panel),
            }
            i += rows;
        }
    }
}

impl Product<'_> {
    /// Rows i .. i + R.
    #[inline(always)]
    fn stripe<S: Simd, const R: usize>(&self, simd: S, i: usize, panel: &Panel) {
        let mut x: [&[S::f32s]; R] = [&[]; R];
        for r in 0..R {
            x[r] = panel.row::<S>(r);
        }
        let mut j = 0;
        while j < self.w.rows {
            let cols = COLS.min(self.w.rows - j);
            // Beyond the edge the last row is read again and its sums are dropped.
            let mut w: [&[S::f32s]; COLS] = [&[]; COLS];
            for c in 0..COLS {
                w[c] = self.w.row::<S>(j + c.min(cols - 1));
            }
            let tile = tile(simd, x, w);
            for r in 0..R {
                for c in 0..cols {
                    // SAFETY: i + r < m and j + c < w.rows; `add_products` obliges its caller to have them there, for us alone.
                    unsafe { *self.sums.data.add((i + r) * self.sums.stride + j + c) += tile[r][c] };
                }
            }
            j += cols;
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const R: usize>(simd: S, x: [&[S::f32s]; R], w: [&[S::f32s]; COLS]) -> [[f32; COLS]; R] {
    let mut sums = [[simd.splat_f32s(0.0); COLS]; R];
    let vectors = w[0].len();
    let (mut x, mut w) = (x, w);
    for r in 0..R {
        x[r] = &x[r][..vectors];
    }
    for c in 0..COLS {
        w[c] = &w[c][..vectors];
    }
    for p in 0..vectors {
        let w = [w[0][p], w[1][p], w[2][p], w[3][p]];
        for r in 0..R {
            let x = x[r][p];
            for c in 0..COLS {
                sums[r][c] = simd.mul_add_f32s(x, w[c], sums[r][c]);
            }
        }
    }
    let mut out = [[0.0; COLS]; R];
    for r in 0..R {
        for c in 0..COLS {
            out[r][c] = simd.reduce_sum_f32s(sums[r][c]);
        }
    }
    out
}
