//! Y = X W^T for rows of X and W that are contiguous in k: tiles of Y held in vector registers, over panels of W and strips of X in a layout of our own.
//! Both are seen as rows of dwords: one f32, two bf16 or 16-bit integers, or four bytes. A panel is [depth][columns] dwords, a strip [depth][rows], so that
//! a step in depth multiplies a vector of columns by one broadcast dword a row, and nothing is summed up across lanes.
//!
//! An element of Y is one running sum over k, in order, from 0 on: it has the same bits whatever other rows and columns there are, however the work is
//! cut, and on any number of threads. With few rows the panels are small enough for the first-level cache: W is read once, as it lies.
//!
//! One thread of a Zen 4 (EPYC, 2026-11-25, e4711b7, busy with other work: the fastest of 40), [512, 576] by [576, 576]: 106 GFLOP/s in f32, 209 in bf16, 386
//! GOP/s in int8, of peaks of 116, 233 and 468. One row by [1536, 576] from memory: 18, 19 and 24 GB/s, of 30 that two threads can read together.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod float;
mod int8;
mod portable;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

pub(in crate::ops) use float::products;
pub(in crate::ops) use int8::products_int8;

/// What attention makes its own tiles of.
pub(in crate::ops) mod parts {
    pub use super::float::{Method, methods};
    pub use super::{Buffer, Bytes, Kernel};
}

/// Adds to (with `resume`) or overwrites `sums` [rows][vectors * lanes] with the products of a strip and a panel.
pub type Tile<A> = unsafe fn(sums: *mut A, strip: *const u32, panel: *const u32, depth: usize, resume: bool);

/// Writes dword d of row r to `to[d * stride + r]`, its bits exchanged where those of `flip` are set; what is between the rows may be anything afterwards, and
/// with a stride of `lanes` or more so may `lanes` dwords of each. Rows are `bytes` long, one or more, at most `lanes`, and `row_bytes` apart; what is missing
/// of the last dword is 0 before the exchange.
pub type Pack = unsafe fn(to: *mut u32, stride: usize, from: Bytes, rows: usize, bytes: usize, flip: u32);

/// Overwrites GROUP sums with the products of one row, `x`, and at most GROUP rows of W as they lie, as `Pack` takes them: those of `Tile`, bit by bit.
/// For bytes, W is what `flip` makes it.
type Row<A> = unsafe fn(sums: *mut A, x: *const u32, w: Bytes, rows: usize, bytes: usize);

/// Rows of bytes.
#[derive(Clone, Copy)]
pub struct Bytes {
    pub data: *const u8,
    pub row_bytes: usize,
}

/// What a processor can do best for one type of sums, A: f32 or i32.
pub struct Kernel<A: 'static> {
    /// Columns that a vector has.
    pub lanes: usize,
    /// By vectors of columns, less one, and rows, less one.
    pub tiles: [&'static [Tile<A>]; 2],
    pub pack: Pack,
    /// What is quicker than a tile for a single row of X: no panel lies between W and the registers.
    row: Option<Row<A>>,
    /// Both for rows of which every two bytes become a dword: a bf16 an f32, two bytes two 16-bit integers.
    half: Option<Half<A>>,
}

struct Half<A: 'static> {
    pack: Pack,
    row: Row<A>,
}

/// Copies a part of a row, which is short: mostly of two vectors.
#[inline(always)]
pub(in crate::ops) fn copy(to: &mut [f32], from: &[f32]) {
    fn whole<const N: usize>(to: &mut [f32], from: &[f32]) -> bool {
        let pair = (<&mut [f32; N]>::try_from(to).ok(), <&[f32; N]>::try_from(from).ok());
        if let (Some(to), Some(from)) = pair {
            *to = *from;
            return true;
        }
        false
    }
    if !whole::<32>(to, from) && !whole::<16>(to, from) {
        to.copy_from_slice(from);
    }
}

/// Most rows of W that a single row of X meets at a time; no vector has more lanes.
const GROUP: usize = 16;
/// Dwords of depth of a panel: for the second-level cache, and for the first where X has few rows, at most GROUP.
const DEPTH: usize = 512;
const SHALLOW: usize = 128;
/// Rows of X that are packed at a time, and those of a piece of work: enough for the packing of W to be cheap.
const CHUNK: usize = 1024;
const PIECE_ROWS: usize = 340;
/// Dwords of W, and multiply-adds of dwords, below which the calling thread does it all.
const SMALL: (usize, usize) = (1 << 15, 1 << 19);

/// A matrix as rows of dwords.
struct Operand<'a> {
    rows: usize,
    /// Dwords of a row.
    depth: usize,
    source: Source<'a>,
    /// See `Pack`.
    flip: u32,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    /// Rows of so many bytes, as they lie.
    Raw(&'a [u8], usize),
    /// The same for a kernel's `half`.
    Half(&'a [u8], usize),
    /// `f(row, start, dwords)` makes the dwords of a row from dword `start` on.
    Made(&'a (dyn Fn(usize, usize, &mut [u32]) + Sync)),
}

impl Operand<'_> {
    /// Packs some rows, at most as many as a vector has lanes, from dword `range.start` to `range.end`.
    ///
    /// # Safety
    /// `to` has `range.len()` rows of `stride` dwords, the last one at least `rows.len()`, and a vector if the others are as long; the processor has what
    /// the kernel needs.
    unsafe fn pack<A>(
        &self,
        kernel: &Kernel<A>,
        to: *mut u32,
        stride: usize,
        rows: Range<usize>,
        range: Range<usize>,
    ) {
        assert!(rows.end <= self.rows && range.end <= self.depth && rows.len() <= kernel.lanes);
        let n = range.len();
        if n == 0 {
            return;
        }
        if let Some((from, bytes, pack, _)) = self.there(kernel, rows.clone(), range.clone()) {
            // SAFETY: `there` has all bytes within the operand; the rest is the caller's contract.
            unsafe { pack(to, stride, from, rows.len(), bytes, self.flip) };
        }
        if let Source::Made(make) = self.source {
            MADE.with_borrow_mut(|made| {
                made.resize(made.len().max(kernel.lanes * n), 0);
                let count = rows.len();
                for (row, to) in rows.zip(made.chunks_exact_mut(n)) {
                    make(row, range.start, to);
                }
                let from = Bytes { data: made.as_ptr().cast(), row_bytes: n * 4 };
                // SAFETY: `made` has a vector of rows of n dwords; the rest is the caller's contract.
                unsafe { (kernel.pack)(to, stride, from, count, n * 4, self.flip) };
            });
        }
    }

    /// If the rows lie in memory: their bytes from dword `range.start` to `range.end`, how many a row has of them, and what reads them.
    fn there<A>(
        &self,
        kernel: &Kernel<A>,
        rows: Range<usize>,
        range: Range<usize>,
    ) -> Option<(Bytes, usize, Pack, Option<Row<A>>)> {
        let (data, row_bytes, dword, pack, row) = match (self.source, &kernel.half) {
            (Source::Raw(data, row_bytes), _) => (data, row_bytes, 4, kernel.pack, kernel.row),
            (Source::Half(data, row_bytes), Some(half)) => (data, row_bytes, 2, half.pack, Some(half.row)),
            (Source::Half(..), None) | (Source::Made(_), _) => return None,
        };
        let bytes = row_bytes.min(range.end * dword) - range.start * dword;
        let start = rows.start * row_bytes + range.start * dword;
        assert!(rows.is_empty() || start + (rows.len() - 1) * row_bytes + bytes <= data.len());
        Some((Bytes { data: data[start..].as_ptr(), row_bytes }, bytes, pack, row))
    }
}

/// Dwords that begin at a cache line.
#[derive(Default)]
pub struct Buffer(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Buffer {
    /// So many dwords, holding anything.
    pub fn get(&mut self, len: usize) -> *mut u32 {
        if self.0.len() * 16 < len {
            self.0 = vec![Line([0; 16]); len.div_ceil(16)];
        }
        self.0.as_mut_ptr().cast()
    }

    pub fn slice(&mut self, len: usize) -> &mut [u32] {
        // SAFETY: `get` has made room for them.
        unsafe { std::slice::from_raw_parts_mut(self.get(len), len) }
    }
}

thread_local! {
    /// A panel of W and the sums of a piece.
    static PIECE: RefCell<(Buffer, Buffer)> = const { RefCell::new((Buffer(Vec::new()), Buffer(Vec::new()))) };
    /// The strips of X.
    static STRIPS: RefCell<Buffer> = const { RefCell::new(Buffer(Vec::new())) };
    /// Rows on their way into a panel or a strip.
    static MADE: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Packed rows of X: strips of `height` rows, the last one of what is left.
struct Strips {
    data: *const u32,
    rows: usize,
    height: usize,
    depth: usize,
}

// SAFETY: it stands for a shared slice, which `run` keeps alive and does not write while others see it.
unsafe impl Sync for Strips {}

impl Strips {
    fn count(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// Of strip `i`: its rows, and where dword `d` of them lies.
    fn at(&self, i: usize, d: usize) -> (usize, *const u32) {
        let rows = self.height.min(self.rows - i * self.height);
        // SAFETY: strip i is `rows` x `depth` dwords from there on, and d <= depth.
        (rows, unsafe { self.data.add(i * self.height * self.depth + d * rows) })
    }
}

/// A panel's place: which W, and its columns of Y.
#[derive(Clone, Copy)]
struct Place {
    weight: usize,
    col: usize,
    cols: usize,
}

/// Y = X W^T for each of `weights`, which are as deep as x. `finish(weight, row, column, sums)` gets every element once, in parts of rows.
fn run<A: Copy>(
    kernel: &Kernel<A>,
    x: &Operand,
    weights: &[Operand],
    finish: &(impl Fn(usize, usize, usize, &mut [A]) + Sync),
) {
    const { assert!(size_of::<A>() == size_of::<u32>()) };
    let width = 2 * kernel.lanes;
    let places: Vec<Place> = weights
        .iter()
        .enumerate()
        .flat_map(|(weight, w)| {
            assert_eq!(w.depth, x.depth, "matrices of one depth");
            (0..w.rows).step_by(width).map(move |col| Place { weight, col, cols: width.min(w.rows - col) })
        })
        .collect();
    let columns: usize = weights.iter().map(|w| w.rows).sum();
    let small = columns * x.depth < SMALL.0 && x.rows * columns * x.depth < SMALL.1;
    let mut buffer = STRIPS.take();
    for start in (0..x.rows).step_by(CHUNK) {
        let rows = start..x.rows.min(start + CHUNK);
        let strips = pack_strips(kernel, &mut buffer, x, rows.clone(), small);
        let blocks = rows.len().div_ceil(PIECE_ROWS);
        let per_block = strips.count().div_ceil(blocks);
        let piece = |i: usize| {
            let first = i % blocks * per_block;
            let some = first..strips.count().min(first + per_block);
            let Place { weight, col, cols } = places[i / blocks];
            multiply(kernel, &strips, some, &weights[weight], col..col + cols, &|row, sums| {
                finish(weight, start + row, col, sums)
            });
        };
        if small {
            (0..blocks * places.len()).for_each(piece);
        } else {
            (0..blocks * places.len()).into_par_iter().for_each(piece);
        }
    }
    STRIPS.set(buffer);
}

fn pack_strips<A>(
    kernel: &Kernel<A>,
    buffer: &mut Buffer,
    x: &Operand,
    rows: Range<usize>,
    small: bool,
) -> Strips {
    /// Dwords that one thread packs in some ten microseconds.
    const ENOUGH: usize = 1 << 15;
    let most = kernel.tiles[0].len();
    let height = rows.len().div_ceil(rows.len().div_ceil(most));
    let len = rows.len() * x.depth;
    let strips = Strips { data: buffer.get(len), rows: rows.len(), height, depth: x.depth };
    let pack = |i: usize| {
        let (some, to) = strips.at(i, 0);
        let first = rows.start + i * height;
        // SAFETY: a strip is depth x rows dwords, written by this call alone; kernels are chosen by what the processor has.
        unsafe { x.pack(kernel, to.cast_mut(), some, first..first + some, 0..x.depth) };
    };
    if small || len < ENOUGH {
        (0..strips.count()).for_each(pack);
    } else {
        (0..strips.count()).into_par_iter().for_each(pack);
    }
    strips
}

/// The columns `cols`, at most two vectors, of the products of some strips. `finish` gets rows counted from the first strip of all.
fn multiply<A: Copy>(
    kernel: &Kernel<A>,
    strips: &Strips,
    some: Range<usize>,
    weight: &Operand,
    cols: Range<usize>,
    finish: &impl Fn(usize, &mut [A]),
) {
    if strips.rows == 1
        && let Some(mut sums) = single(kernel, strips.data, weight, cols.clone())
    {
        // SAFETY: dwords are sums, of which two lines have as many as two vectors or more.
        return finish(0, unsafe { std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast(), cols.len()) });
    }
    let vectors = cols.len().div_ceil(kernel.lanes);
    let (stride, depth) = (vectors * kernel.lanes, weight.depth);
    let step = if strips.rows <= GROUP { SHALLOW } else { DEPTH };
    let top = some.start * strips.height;
    let rows = strips.rows.min(some.end * strips.height) - top.min(strips.rows);
    PIECE.with_borrow_mut(|(panel, sums)| {
        let (panel, sums) = (panel.get(step.min(depth) * stride), sums.get(rows * stride).cast::<A>());
        // Without depth there is one step, of which sums of 0 come.
        for start in (0..depth.max(1)).step_by(step) {
            let range = start..depth.min(start + step);
            for group in (0..cols.len()).step_by(kernel.lanes) {
                let columns = cols.start + group..cols.end.min(cols.start + group + kernel.lanes);
                // SAFETY: the panel has a row of `stride` dwords for each step in depth; kernels are chosen by what the processor has.
                unsafe { weight.pack(kernel, panel.add(group), stride, columns, range.clone()) };
            }
            for i in some.clone() {
                let (height, strip) = strips.at(i, start);
                let tile = kernel.tiles[vectors - 1][height - 1];
                // SAFETY: the sums of a strip are height x stride elements, the strip has its rows from `start` on, the panel as many.
                let sums = unsafe {
                    let sums = sums.add((i * strips.height - top) * stride);
                    tile(sums, strip, panel, range.len(), start > 0);
                    std::slice::from_raw_parts_mut(sums, height * stride)
                };
                if range.end == depth {
                    for (row, sums) in sums.chunks_exact_mut(stride).enumerate() {
                        finish(i * strips.height + row, &mut sums[..cols.len()]);
                    }
                }
            }
        }
    });
}

/// What `multiply` makes of a strip of one row, where the kernel has something quicker for it.
fn single<A>(
    kernel: &Kernel<A>,
    strip: *const u32,
    weight: &Operand,
    cols: Range<usize>,
) -> Option<[Line; 2]> {
    let mut sums = [Line([0; GROUP]); 2];
    for (start, sums) in cols.clone().step_by(GROUP).zip(&mut sums) {
        let columns = start..cols.end.min(start + GROUP);
        let (w, bytes, _, row) = weight.there(kernel, columns.clone(), 0..weight.depth)?;
        // SAFETY: a line holds GROUP sums, the strip of one row its `depth` dwords; kernels are chosen by what the processor has.
        unsafe { row?(sums.0.as_mut_ptr().cast(), strip, w, columns.len(), bytes) };
    }
    Some(sums)
}
