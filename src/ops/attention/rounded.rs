//! Attention whose products are of bf16 numbers, as on a GPU: queries (scaled), keys, values, and the weights of a block of keys are rounded to bf16 (to
//! nearest, ties to even); sums, and the softmax, are f32. Tiles of products as in matmul/packed.rs, over panels of keys and of values: of a strip of
//! queries the scores of a block stay in the first-level cache until they are weights. A row has the same bits whatever else is in the batch.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::super::matmul::Shared;
use super::super::matmul::packed::parts::{Buffer, Bytes, Kernel, Method, methods};
use super::super::vector_math::{exp, max, sum, vectorised};
use super::{Config, Item, Spans, check_all, launch};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Stacked rows of queries for which keys and values are packed: a third of the 1,024 patches of a tile of 512 pixels, and a little more.
const ROWS: usize = 344;

/// Keys in a block: few enough for the scores of a strip to stay in the first-level cache.
const BLOCK: usize = 512;

/// What `forward` gives, with products of bf16 in main memory. For inference: the backward differentiates the other.
pub fn forward_rounded(
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &Spans,
    config: Config,
) -> Result<()> {
    check_all("attention forward_rounded", out, lse.as_deref(), [q, k, v], spans, &config)?;
    if let Some(gpu) = q.gpu() {
        return launch::forward(gpu, out, lse, [q, k, v], spans, &config);
    }
    let portable = || Error::Failure("attention forward_rounded: no portable products".to_string());
    let method = methods(true).next().ok_or_else(portable)?;
    by(method, out, lse, [q, k, v], spans, &config)
}

/// In main memory by one method, of what has been checked.
pub(super) fn by(
    method: Method,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    [q, k, v]: [&Tensor; 3],
    spans: &Spans,
    config: &Config,
) -> Result<()> {
    let lse = lse.map(|lse| lse.f32s_mut().map(Shared::new)).transpose()?;
    let out = Shared::new(out.f32s_mut()?);
    let over = Over { method, q: q.f32s()?, k: k.f32s()?, v: v.f32s()?, config };
    let items: Vec<Item> = spans
        .iter()
        .flat_map(|&span| (0..config.kv_heads).flat_map(move |head| Item::all(span, head, config, ROWS)))
        .collect();
    let hs = config.head_size;
    items.par_iter().for_each_init(Room::default, |room, item| {
        over.attend(room, item);
        for r in 0..item.rows(config) {
            let (row, head) = item.place(r, config);
            // SAFETY: `check_all` put the row inside the tensor; items have disjoint (row, head) pairs, spans disjoint rows.
            let to = unsafe { out.slice(row * config.q_width() + head * hs, hs) };
            over.result(room, item, r, to);
            if let Some(lse) = &lse {
                // SAFETY: as above.
                unsafe { lse.slice(row * config.heads + head, 1)[0] = room.top[r] + room.total[r].ln() };
            }
        }
    });
    Ok(())
}

/// Buffers of one worker, used again from item to item.
#[derive(Default)]
struct Room {
    queries: Buffer,
    keys: Buffer,
    values: Buffer,
    scores: Buffer,
    weights: Buffer,
    sums: Buffer,
    /// Rows on their way into a strip or a panel.
    made: Buffer,
    row: Vec<f32>,
    top: Vec<f32>,
    total: Vec<f32>,
}

struct Over<'a> {
    method: Method,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    config: &'a Config,
}

/// Columns in panels of two vectors: the first column, how many, and how many with those that fill the last vector up.
fn panels(cols: usize, lanes: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..cols).step_by(2 * lanes).map(move |first| {
        let some = (cols - first).min(2 * lanes);
        (first, some, some.next_multiple_of(lanes))
    })
}

impl Over<'_> {
    fn kernel(&self) -> &'static Kernel<f32> {
        self.method.kernel
    }

    /// Rows of a strip; an item's last strip may have fewer.
    fn height(&self) -> usize {
        self.kernel().tiles[1].len()
    }

    /// Elements of a row of sums, with what fills the vectors up.
    fn width(&self) -> usize {
        self.config.head_size.next_multiple_of(self.kernel().lanes)
    }

    /// Leaves, by stacked row, the largest score in `top`, the sum of weights relative to it in `total`, and in `sums` that of weights times values: by
    /// strip and panel of columns.
    fn attend(&self, room: &mut Room, item: &Item) {
        let (rows, height, hs) = (item.rows(self.config), self.height(), self.config.head_size);
        for (buffer, value) in [(&mut room.top, f32::NEG_INFINITY), (&mut room.total, 0.0)] {
            buffer.clear();
            buffer.resize(rows, value);
        }
        room.sums.get(rows.next_multiple_of(height) * self.width());
        self.pack_queries(room, item);
        let seen = item.keys(self.config);
        for start in (0..seen).step_by(BLOCK) {
            let n = BLOCK.min(seen - start);
            let first = item.span.k_start + start;
            self.pack_keys(room, item, first, n);
            self.pack_values(room, item, first, n);
            for strip in (0..rows).step_by(height) {
                let some = height.min(rows - strip);
                self.score(room, strip, some, n);
                self.soften(room, item, strip, some, start, n);
                let weights: *const u32 = room.weights.get(0);
                let values: *const u32 = room.values.get(0);
                for (col, _, stride) in panels(hs, self.kernel().lanes) {
                    let depth = self.method.dwords(n);
                    // SAFETY: sums of a strip and a panel are some x stride, from `strip * width + some * col` on; the weights are depth x some dwords, the values of a
                    // panel depth x stride.
                    unsafe {
                        let sums = room.sums.get(0).add(strip * self.width() + some * col).cast();
                        let tile = self.kernel().tiles[stride / self.kernel().lanes - 1][some - 1];
                        tile(sums, weights, values.add(col * depth), depth, start > 0);
                    }
                }
            }
        }
    }

    /// Packs `rows` rows, at most as many as `made` takes, of `n` numbers that `fill` writes, from dword `to` of rows of `stride` on.
    ///
    /// # Safety
    /// As of `Pack`.
    unsafe fn pack(
        &self,
        made: &mut Buffer,
        to: *mut u32,
        stride: usize,
        rows: usize,
        n: usize,
        mut fill: impl FnMut(usize, &mut [u32]),
    ) {
        let depth = self.method.dwords(n);
        let from = made.slice(rows * depth);
        for (row, to) in from.chunks_exact_mut(depth).enumerate() {
            fill(row, to);
        }
        let from = Bytes { data: from.as_ptr().cast(), row_bytes: depth * 4 };
        // SAFETY: the rows are there; the rest is the caller's contract.
        unsafe { (self.kernel().pack)(to, stride, from, rows, depth * 4, 0) };
    }

    fn pack_queries(&self, room: &mut Room, item: &Item) {
        let (rows, hs) = (item.rows(self.config), self.config.head_size);
        let depth = self.method.dwords(hs);
        let to = room.queries.get(rows * depth);
        room.row.resize(hs.max(BLOCK), 0.0);
        for strip in (0..rows).step_by(self.height()) {
            let some = self.height().min(rows - strip);
            // SAFETY: a strip is depth x some dwords.
            unsafe {
                self.pack(&mut room.made, to.add(strip * depth), some, some, hs, |r, to| {
                    let (row, head) = item.place(strip + r, self.config);
                    let from = &self.q[row * self.config.q_width() + head * hs..][..hs];
                    for (to, q) in room.row.iter_mut().zip(from) {
                        *to = q * self.config.scale;
                    }
                    self.method.round(to, &room.row[..hs]);
                });
            }
        }
    }

    fn pack_keys(&self, room: &mut Room, item: &Item, first: usize, n: usize) {
        let (hs, lanes) = (self.config.head_size, self.kernel().lanes);
        let depth = self.method.dwords(hs);
        let to = room.keys.get(n.next_multiple_of(lanes) * depth);
        for (col, cols, stride) in panels(n, lanes) {
            for group in (0..cols).step_by(lanes) {
                // SAFETY: a panel is depth x stride dwords, from `col * depth` on.
                unsafe {
                    let to = to.add(col * depth + group);
                    self.pack(&mut room.made, to, stride, lanes.min(cols - group), hs, |r, to| {
                        self.method.round(to, self.of(self.k, item, first + col + group + r));
                    });
                }
            }
        }
    }

    /// The head's part of row `row` of keys or values.
    fn of<'a>(&self, rows: &'a [f32], item: &Item, row: usize) -> &'a [f32] {
        &rows[row * self.config.k_width() + item.kv_head * self.config.head_size..][..self.config.head_size]
    }

    fn pack_values(&self, room: &mut Room, item: &Item, first: usize, n: usize) {
        let (hs, lanes) = (self.config.head_size, self.kernel().lanes);
        let depth = self.method.dwords(n);
        let to = room.values.slice(depth * self.width());
        let zeros = [0.0; 64];
        for (col, cols, stride) in panels(hs, lanes) {
            for (d, to) in to[col * depth..].chunks_exact_mut(stride).take(depth).enumerate() {
                let part = |row: usize| &self.of(self.v, item, first + row)[col..col + cols];
                let row = if self.method.pairs { 2 * d } else { d };
                let next = if row + 1 < n { part(row + 1) } else { &zeros[..cols] };
                self.method.round_rows(&mut to[..cols], part(row), next);
                to[cols..].fill(0);
            }
        }
    }

    /// The scores of a strip and the `n` keys that are packed: by panel.
    fn score(&self, room: &mut Room, strip: usize, some: usize, n: usize) {
        let (depth, lanes) = (self.method.dwords(self.config.head_size), self.kernel().lanes);
        let scores = room.scores.get(self.height() * BLOCK.next_multiple_of(2 * lanes));
        let (queries, keys): (*const u32, *const u32) = (room.queries.get(0), room.keys.get(0));
        for (col, _, stride) in panels(n, lanes) {
            let tile = self.kernel().tiles[stride / lanes - 1][some - 1];
            // SAFETY: scores of a panel are some x stride; a strip is depth x some dwords, a panel depth x stride.
            unsafe {
                let sums = scores.add(some * col).cast();
                tile(sums, queries.add(strip * depth), keys.add(col * depth), depth, false);
            }
        }
    }

    /// One step of the online softmax: scores become weights relative to the largest score so far, packed as a strip; what was summed up is brought
    /// down to it.
    fn soften(&self, room: &mut Room, item: &Item, strip: usize, some: usize, start: usize, n: usize) {
        let (hs, lanes, width) = (self.config.head_size, self.kernel().lanes, self.width());
        let to = room.weights.get(self.height() * self.method.dwords(BLOCK));
        let Room { scores, sums, made, row, top, total, .. } = room;
        let depth = self.method.dwords(n);
        let scores: &[f32] = bytemuck::cast_slice(scores.slice(some * n.next_multiple_of(lanes)));
        let sums: &mut [f32] =
            bytemuck::cast_slice_mut(&mut sums.slice((strip + some) * width)[strip * width..]);
        let weights = made.slice(some * depth);
        for (r, weights) in weights.chunks_exact_mut(depth).enumerate() {
            for (col, cols, stride) in panels(n, lanes) {
                row[col..col + cols].copy_from_slice(&scores[some * col + r * stride..][..cols]);
            }
            row[item.seen(strip + r, start, n, self.config)..n].fill(f32::NEG_INFINITY);
            let shrink = weigh(&mut row[..n], &mut top[strip + r], &mut total[strip + r]);
            self.method.round(weights, &row[..n]);
            if start > 0 && shrink != 1.0 {
                for (col, _, stride) in panels(hs, lanes) {
                    sums[some * col + r * stride..][..stride].iter_mut().for_each(|sum| *sum *= shrink);
                }
            }
        }
        let from = Bytes { data: weights.as_ptr().cast(), row_bytes: depth * 4 };
        // SAFETY: the strip is depth x some dwords, of as many rows.
        unsafe { (self.kernel().pack)(to, some, from, some, depth * 4, 0) };
    }

    /// What stacked row `r` of an item comes to.
    fn result(&self, room: &mut Room, item: &Item, r: usize, to: &mut [f32]) {
        let total = room.total[r];
        if total == 0.0 {
            return to.fill(0.0);
        }
        let strip = r / self.height() * self.height();
        let some = self.height().min(item.rows(self.config) - strip);
        let sums: &[f32] = bytemuck::cast_slice(room.sums.slice((strip + some) * self.width()));
        for (col, cols, stride) in panels(self.config.head_size, self.kernel().lanes) {
            let sums = &sums[strip * self.width() + some * col + (r - strip) * stride..][..cols];
            for (to, sum) in to[col..].iter_mut().zip(sums) {
                *to = sum * (1.0 / total);
            }
        }
    }
}

vectorised! {
    /// Scores become weights relative to `top`, the largest so far; by how much what came before has to shrink.
    fn weigh(scores: &mut [f32], top: &mut f32, total: &mut f32) -> f32 {
        let new = max(scores);
        let mut shrink = 1.0;
        if new > *top {
            shrink = exp(*top - new);
            *total *= shrink;
            *top = new;
        }
        for s in scores.iter_mut() {
            *s = exp(*s - *top);
        }
        *total += sum(scores, |x| x);
        shrink
    }
}
