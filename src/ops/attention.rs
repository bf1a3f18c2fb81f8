//! Scaled dot-product attention over a ragged batch, grouped heads, causal or not, with an online softmax (Dao 2022): no T x T buffer.
//! The query heads that share a key/value head are stacked, so that each block of keys is read once for all of them. Blocks are cut
//! within a span from its first row on: a span gives the same bits whatever else is in the batch.
use std::ops::Range;

use rayon::prelude::*;

use super::expect_shape;
use super::matmul::{Shared, View, matmul};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Queries (of one head) and keys in a block.
const QUERIES: usize = 64;
const KEYS: usize = 128;

/// One sequence: its rows in q (and out), and its rows in k and v. With causal masking query i (0-based in the span) sees keys
/// 0 ..= i + (k_len - q_len), so that a decode step is q_len = 1 over a cache of k_len keys. Causal needs k_len >= q_len.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub q_start: usize,
    pub q_len: usize,
    pub k_start: usize,
    pub k_len: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub heads: usize,     // NH
    pub kv_heads: usize,  // NKV, divides NH
    pub head_size: usize, // HS
    pub scale: f32,       // usually 1/sqrt(HS)
    pub causal: bool,
}

impl Config {
    /// Query heads per key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn q_width(&self) -> usize {
        self.heads * self.head_size
    }

    fn k_width(&self) -> usize {
        self.kv_heads * self.head_size
    }
}

/// Work on the queries `rows` (within the span) of the group of heads that share key/value head `kv_head`.
#[derive(Clone, Copy)]
struct Item {
    span: Span,
    kv_head: usize,
    first: usize,
    len: usize,
}

impl Item {
    /// Keys that at least one of the queries sees.
    fn keys(&self, causal: bool) -> usize {
        match causal {
            true => self.first + self.len + self.span.k_len - self.span.q_len,
            false => self.span.k_len,
        }
    }

    /// Of the keys `block`, how many query `first + i` sees.
    fn seen(&self, i: usize, block: &Range<usize>, causal: bool) -> usize {
        let all = match causal {
            true => self.first + i + 1 + self.span.k_len - self.span.q_len,
            false => self.span.k_len,
        };
        all.clamp(block.start, block.end) - block.start
    }
}

/// out [Tq, NH*HS]; lse [Tq, NH] (log-sum-exp of the scaled scores, for the backward); q [Tq, NH*HS]; k, v [Tk, NKV*HS].
/// Rows that no span names are left as they are. A query of a span without keys gets zeros and an lse of -inf. Spans must not share query rows.
pub fn forward(
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &[Span],
    config: Config,
) -> Result<()> {
    const OP: &str = "attention forward";
    check(OP, q, k, v, spans, &config)?;
    expect_shape(OP, "out", out, q.shape())?;
    let lse = match lse {
        None => None,
        Some(lse) => {
            expect_shape(OP, "lse", lse, &[q.rows(), config.heads])?;
            Some(Shared::new(lse.f32s_mut()?))
        }
    };
    let (q, k, v, out) = (q.f32s()?, k.f32s()?, v.f32s()?, Shared::new(out.f32s_mut()?));
    let items: Vec<Item> = spans
        .iter()
        .flat_map(|&span| (0..config.kv_heads).map(move |kv_head| (span, kv_head)))
        .flat_map(|(span, kv_head)| {
            (0..span.q_len).step_by(QUERIES).map(move |first| {
                let len = QUERIES.min(span.q_len - first);
                Item { span, kv_head, first, len }
            })
        })
        .collect();
    items.par_iter().for_each_init(Scratch::default, |scratch, item| {
        attend(scratch, item, q, k, v, &config);
        let group = config.group();
        for i in 0..item.len {
            let row = item.span.q_start + item.first + i;
            for g in 0..group {
                let from = g * item.len + i;
                let head = item.kv_head * group + g;
                let sum = scratch.sum[from];
                let scale = if sum > 0.0 { 1.0 / sum } else { 0.0 };
                // SAFETY: `check` put the row inside the tensor; items have disjoint (row, head) pairs, spans disjoint rows.
                let to =
                    unsafe { out.slice(row * config.q_width() + head * config.head_size, config.head_size) };
                for (to, &acc) in to.iter_mut().zip(&scratch.acc[from * config.head_size..]) {
                    *to = acc * scale;
                }
                if let Some(lse) = &lse {
                    // SAFETY: as above.
                    unsafe { lse.slice(row * config.heads + head, 1)[0] = scratch.max[from] + sum.ln() };
                }
            }
        }
    });
    Ok(())
}

/// Buffers of one worker, used again from item to item.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    acc: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
}

/// Leaves sum_j exp(s_ij - max_i) v_j in `acc`, the sum of weights in `sum` and the largest score in `max`, by (head, query).
fn attend(scratch: &mut Scratch, item: &Item, q: &[f32], k: &[f32], v: &[f32], config: &Config) {
    let (hs, width) = (config.head_size, config.k_width());
    let rows = config.group() * item.len;
    gather(&mut scratch.q, q, item, config);
    scratch.scores.resize(rows * KEYS, 0.0);
    for (buffer, len, value) in [
        (&mut scratch.acc, rows * hs, 0.0),
        (&mut scratch.max, rows, f32::NEG_INFINITY),
        (&mut scratch.sum, rows, 0.0),
    ] {
        buffer.clear();
        buffer.resize(len, value);
    }
    let Scratch { q, scores, acc, max, sum } = scratch;
    for start in (0..item.keys(config.causal)).step_by(KEYS) {
        let block = start..item.keys(config.causal).min(start + KEYS);
        let offset = (item.span.k_start + start) * width + item.kv_head * hs;
        let keys = View { data: &k[offset..], rs: 1, cs: width };
        let queries = View { data: q, rs: hs, cs: 1 };
        matmul(rows, block.len(), hs, scores, KEYS, config.scale, queries, keys, false);
        for (r, row) in scores.chunks_exact_mut(KEYS).take(rows).enumerate() {
            let seen = item.seen(r % item.len, &block, config.causal);
            let (row, hidden) = row[..block.len()].split_at_mut(seen);
            hidden.fill(0.0);
            let top = row.iter().copied().fold(max[r], f32::max);
            if top > max[r] {
                let shrink = (max[r] - top).exp();
                sum[r] *= shrink;
                acc[r * hs..(r + 1) * hs].iter_mut().for_each(|a| *a *= shrink);
                max[r] = top;
            }
            for s in row {
                *s = (*s - top).exp();
                sum[r] += *s;
            }
        }
        let weights = View { data: scores, rs: KEYS, cs: 1 };
        let values = View { data: &v[offset..], rs: width, cs: 1 };
        matmul(rows, hs, block.len(), acc, hs, 1.0, weights, values, true);
    }
}

/// Copies the item's rows of a [Tq, NH*HS] matrix to (head, query, HS).
fn gather(to: &mut Vec<f32>, from: &[f32], item: &Item, config: &Config) {
    let hs = config.head_size;
    to.clear();
    for g in 0..config.group() {
        let head = item.kv_head * config.group() + g;
        for i in 0..item.len {
            let start = (item.span.q_start + item.first + i) * config.q_width() + head * hs;
            to.extend_from_slice(&from[start..start + hs]);
        }
    }
}

/// Overwrites dq, dk, dv (shapes of q, k, v) in the rows that spans name; spans must not share query rows or key rows.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    dq: &mut Tensor,
    dk: &mut Tensor,
    dv: &mut Tensor,
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    spans: &[Span],
    config: Config,
) -> Result<()> {
    const OP: &str = "attention backward";
    check(OP, q, k, v, spans, &config)?;
    expect_disjoint(OP, "key", spans.iter().map(|s| (s.k_start, s.k_len)).collect())?;
    for (name, tensor, like) in
        [("dq", &*dq, q), ("dk", &*dk, k), ("dv", &*dv, v), ("dout", dout, q), ("out", out, q)]
    {
        expect_shape(OP, name, tensor, like.shape())?;
    }
    expect_shape(OP, "lse", lse, &[q.rows(), config.heads])?;
    let inputs = Inputs {
        dout: dout.f32s()?,
        q: q.f32s()?,
        k: k.f32s()?,
        v: v.f32s()?,
        out: out.f32s()?,
        lse: lse.f32s()?,
    };
    let grads = [Shared::new(dq.f32s_mut()?), Shared::new(dk.f32s_mut()?), Shared::new(dv.f32s_mut()?)];
    let items: Vec<(Span, usize)> =
        spans.iter().flat_map(|&span| (0..config.kv_heads).map(move |head| (span, head))).collect();
    items.par_iter().for_each_init(Grads::default, |scratch, &(span, kv_head)| {
        propagate(scratch, span, kv_head, &inputs, &grads, &config);
    });
    Ok(())
}

struct Inputs<'a> {
    dout: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
}

/// Buffers of one worker in the backward.
#[derive(Default)]
struct Grads {
    q: Vec<f32>,
    dout: Vec<f32>,
    out: Vec<f32>,
    weights: Vec<f32>,
    dscores: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// All gradients of one key/value head in one span: query blocks in order, so that each sum has one order.
fn propagate(
    scratch: &mut Grads,
    span: Span,
    kv_head: usize,
    inputs: &Inputs,
    grads: &[Shared; 3],
    config: &Config,
) {
    let (hs, width) = (config.head_size, config.k_width());
    for buffer in [&mut scratch.dk, &mut scratch.dv] {
        buffer.clear();
        buffer.resize(span.k_len * hs, 0.0);
    }
    for first in (0..span.q_len).step_by(QUERIES) {
        let item = Item { span, kv_head, first, len: QUERIES.min(span.q_len - first) };
        propagate_block(scratch, &item, inputs, config);
        for g in 0..config.group() {
            for i in 0..item.len {
                let row = span.q_start + first + i;
                let head = kv_head * config.group() + g;
                // SAFETY: `check` put the row inside the tensor; items have disjoint (row, head) pairs, spans disjoint rows.
                let to = unsafe { grads[0].slice(row * config.q_width() + head * hs, hs) };
                to.copy_from_slice(&scratch.dq[(g * item.len + i) * hs..][..hs]);
            }
        }
    }
    for (to, from) in [(&grads[1], &scratch.dk), (&grads[2], &scratch.dv)] {
        for (j, from) in from.chunks_exact(hs).enumerate() {
            // SAFETY: as above, with key rows, which `backward` has checked to be disjoint.
            unsafe { to.slice((span.k_start + j) * width + kv_head * hs, hs) }.copy_from_slice(from);
        }
    }
}

/// Overwrites `dq` for the item's queries and adds their share to `dk` and `dv`.
fn propagate_block(scratch: &mut Grads, item: &Item, inputs: &Inputs, config: &Config) {
    let (hs, width, group) = (config.head_size, config.k_width(), config.group());
    let rows = group * item.len;
    gather(&mut scratch.q, inputs.q, item, config);
    gather(&mut scratch.dout, inputs.dout, item, config);
    gather(&mut scratch.out, inputs.out, item, config);
    let Grads { q, dout, out, weights, dscores, dq, dk, dv } = scratch;
    for (buffer, len) in [(&mut *weights, rows * KEYS), (&mut *dscores, rows * KEYS), (&mut *dq, rows * hs)] {
        buffer.clear();
        buffer.resize(len, 0.0);
    }
    let per_row: Vec<(f32, f32)> = (0..rows)
        .map(|r| {
            let delta = dout[r * hs..][..hs].iter().zip(&out[r * hs..]).map(|(d, o)| d * o).sum();
            let (g, i) = (r / item.len, r % item.len);
            let row = item.span.q_start + item.first + i;
            (inputs.lse[row * config.heads + item.kv_head * group + g], delta)
        })
        .collect();
    for start in (0..item.keys(config.causal)).step_by(KEYS) {
        let block = start..item.keys(config.causal).min(start + KEYS);
        let offset = (item.span.k_start + start) * width + item.kv_head * hs;
        let n = block.len();
        let as_is = |data, rs| View { data, rs, cs: 1 };
        let flipped = |data, cs| View { data, rs: 1, cs };
        matmul(
            rows,
            n,
            hs,
            weights,
            KEYS,
            config.scale,
            as_is(q, hs),
            flipped(&inputs.k[offset..], width),
            false,
        );
        matmul(rows, n, hs, dscores, KEYS, 1.0, as_is(dout, hs), flipped(&inputs.v[offset..], width), false);
        for (r, &(lse, delta)) in per_row.iter().enumerate() {
            let seen = item.seen(r % item.len, &block, config.causal);
            let (p, ds) = (&mut weights[r * KEYS..][..n], &mut dscores[r * KEYS..][..n]);
            for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                *p = (*p - lse).exp();
                *ds = *p * (*ds - delta);
            }
            p[seen..].fill(0.0);
            ds[seen..].fill(0.0);
        }
        let (dk, dv) = (&mut dk[start * hs..], &mut dv[start * hs..]);
        matmul(n, hs, rows, dv, hs, 1.0, flipped(weights, KEYS), as_is(dout, hs), true);
        matmul(n, hs, rows, dk, hs, config.scale, flipped(dscores, KEYS), as_is(q, hs), true);
        matmul(
            rows,
            hs,
            n,
            dq,
            hs,
            config.scale,
            as_is(dscores, KEYS),
            as_is(&inputs.k[offset..], width),
            true,
        );
    }
}

/// Shapes, heads, and spans that lie inside the tensors and share no query rows.
fn check(
    op: &'static str,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &[Span],
    config: &Config,
) -> Result<()> {
    let &Config { heads, kv_heads, head_size, .. } = config;
    if kv_heads == 0 || head_size == 0 || heads % kv_heads != 0 {
        let got = format!("{heads} heads, {kv_heads} key/value heads, head size {head_size}");
        return Err(Error::op(op, "heads that the key/value heads divide, and a head size", got));
    }
    expect_shape(op, "q", q, &[q.rows(), config.q_width()])?;
    expect_shape(op, "k", k, &[k.rows(), config.k_width()])?;
    expect_shape(op, "v", v, k.shape())?;
    for span in spans {
        let fits = |start: usize, len: usize, rows| start.checked_add(len).is_some_and(|end| end <= rows);
        if !fits(span.q_start, span.q_len, q.rows()) || !fits(span.k_start, span.k_len, k.rows()) {
            let expected = format!("spans within {} queries and {} keys", q.rows(), k.rows());
            return Err(Error::op(op, expected, format!("{span:?}")));
        }
        if config.causal && span.k_len < span.q_len {
            return Err(Error::op(op, "at least as many keys as queries (causal)", format!("{span:?}")));
        }
    }
    expect_disjoint(op, "query", spans.iter().map(|s| (s.q_start, s.q_len)).collect())
}

fn expect_disjoint(op: &'static str, what: &str, mut ranges: Vec<(usize, usize)>) -> Result<()> {
    ranges.retain(|r| r.1 > 0);
    ranges.sort_unstable();
    match ranges.windows(2).find(|w| w[0].0 + w[0].1 > w[1].0) {
        None => Ok(()),
        Some(w) => {
            Err(Error::op(op, format!("spans that share no {what} rows"), format!("{w:?} (start, length)")))
        }
    }
}
