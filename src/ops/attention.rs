//! Scaled dot-product attention over a ragged batch, grouped heads, causal or not, with an online softmax (Dao 2022): no T x T buffer.
//! The query heads that share a key/value head are stacked, so that each block of keys is read once for all of them. Blocks are cut
//! within a span from its first row on: a span gives the same bits whatever else is in the batch.
mod backward;
mod launch;
mod launch_backward;
mod launch_paged;
mod paged;
mod rounded;

use rayon::prelude::*;

use super::expect_shape;
use super::kv_cache::Pages;
use super::matmul::dot::{self, Panel, Rows, Sums};
use super::matmul::{Shared, View, matmul_here};
use super::vector_math::{exp, max, sum, vectorised};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, Upload, Uploaded};

pub use backward::backward;
pub use launch::decode_reach;
pub use paged::{PagedSpans, forward_paged};
pub use rounded::forward_rounded;

/// Stacked rows of queries, and keys, in a block: enough for gemm's packing of keys to be cheap, and their scores fit the second-level cache.
const ROWS: usize = 192;
const KEYS: usize = 128;
/// Products of queries and keys, times the head size, below which the calling thread does it all.
const SMALL: usize = 1 << 17;
/// Rows of scores are filled up to a multiple of this, so that vector instructions do all the work.
const LANES: usize = 16;

/// One sequence: its rows in q (and out), and its rows in k and v. With causal masking query i (0-based in the span) sees keys
/// 0 ..= i + (k_len - q_len), so that a decode step is q_len = 1 over a cache of k_len keys. Causal needs k_len >= q_len.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub q_start: usize,
    pub q_len: usize,
    pub k_start: usize,
    pub k_len: usize,
}

/// The sequences of a pass.
pub type Spans = Uploaded<Span>;

/// As kernels read it: int4 {q_start, q_len, k_start, k_len}.
impl Upload for Span {
    type Raw = [i32; 4];

    fn raw(&self) -> Result<[i32; 4]> {
        let Span { q_start, q_len, k_start, k_len } = *self;
        let mut raw = [0; 4];
        for (raw, value) in raw.iter_mut().zip([q_start, q_len, k_start, k_len]) {
            *raw = super::int("attention", value)?;
        }
        Ok(raw)
    }
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

/// A piece of work: `len` queries of a span from its query `first` on, for the heads that share key/value head `kv_head`.
/// They are stacked by (head, query).
#[derive(Clone, Copy)]
struct Item {
    span: Span,
    kv_head: usize,
    first: usize,
    len: usize,
}

impl Item {
    /// All items of one key/value head in a span, of at most `rows` stacked rows where a head has no more.
    fn all(span: Span, kv_head: usize, config: &Config, rows: usize) -> impl Iterator<Item = Item> + use<> {
        let most = (rows / config.group()).max(1);
        let item = move |first| Item { span, kv_head, first, len: most.min(span.q_len - first) };
        (0..span.q_len).step_by(most).map(item)
    }

    /// Number of stacked rows.
    fn rows(&self, config: &Config) -> usize {
        config.group() * self.len
    }

    /// Row in q and head of stacked row `r`.
    fn place(&self, r: usize, config: &Config) -> (usize, usize) {
        (self.span.q_start + self.first + r % self.len, self.kv_head * config.group() + r / self.len)
    }

    /// Keys that at least one of the queries sees.
    fn keys(&self, config: &Config) -> usize {
        self.seen(self.len - 1, 0, self.span.k_len, config)
    }

    /// How many of the `n` keys from `start` on stacked row `r` sees; they come first.
    fn seen(&self, r: usize, start: usize, n: usize, config: &Config) -> usize {
        if !config.causal {
            return n;
        }
        let query = self.first + r % self.len;
        (query + 1 + self.span.k_len - self.span.q_len).saturating_sub(start).min(n)
    }
}

/// out [Tq, NH*HS]; lse [Tq, NH] (log-sum-exp of the scaled scores, for the backward); q [Tq, NH*HS]; k, v [Tk, NKV*HS].
/// Rows that no span names are left as they are; spans must not share query rows. A query without keys gets zeros and an lse of -inf.
pub fn forward(
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &Spans,
    config: Config,
) -> Result<()> {
    check_all("attention forward", out, lse.as_deref(), [q, k, v], spans, &config)?;
    if let Some(gpu) = q.gpu() {
        return launch::forward(gpu, out, lse, [q, k, v], spans, &config);
    }
    let kv = [Source::Rows(k.f32s()?), Source::Rows(v.f32s()?)];
    on_cpu(out, lse, q, kv, spans, &config)
}

/// Keys, or values, in main memory.
#[derive(Clone, Copy)]
enum Source<'a> {
    Rows(&'a [f32]),
    Pages { pages: &'a Pages, tables: &'a [u32] },
}

impl Source<'_> {
    /// Keys `start` .. `start + n` of an item, a block of them: the elements of its head from the first key on, and from where to where a row is.
    fn block<'a>(
        &'a self,
        wide: &'a mut Vec<f32>,
        item: &Item,
        start: usize,
        n: usize,
        config: &Config,
    ) -> Result<(&'a [f32], usize)> {
        match *self {
            Source::Pages { pages, tables } => paged::block((pages, tables), wide, item, start, n),
            Source::Rows(rows) => {
                let width = config.k_width();
                let offset = (item.span.k_start + start) * width + item.kv_head * config.head_size;
                Ok((&rows[offset..], width))
            }
        }
    }
}

/// `forward` in main memory, of what has been checked.
fn on_cpu(
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    kv: [Source; 2],
    spans: &[Span],
    config: &Config,
) -> Result<()> {
    let lse = lse.map(|lse| lse.f32s_mut().map(Shared::new)).transpose()?;
    let (q, out) = (q.f32s()?, Shared::new(out.f32s_mut()?));
    let items: Vec<Item> = spans
        .iter()
        .flat_map(|&span| {
            (0..config.kv_heads).flat_map(move |kv_head| Item::all(span, kv_head, config, ROWS))
        })
        .collect();
    let hs = config.head_size;
    let one = |scratch: &mut Scratch, item: &Item| {
        attend(scratch, item, q, &kv, config)?;
        for (r, acc) in scratch.acc.chunks_exact(hs).enumerate() {
            let (row, head) = item.place(r, config);
            let total = scratch.total[r];
            let scale = if total == 0.0 { 0.0 } else { 1.0 / total };
            // SAFETY: `check` put the row inside the tensor; items have disjoint (row, head) pairs, spans disjoint rows.
            let to = unsafe { out.slice(row * config.q_width() + head * hs, hs) };
            to.iter_mut().zip(acc).for_each(|(to, acc)| *to = acc * scale);
            if let Some(lse) = &lse {
                // SAFETY: as above.
                unsafe { lse.slice(row * config.heads + head, 1)[0] = scratch.max[r] + total.ln() };
            }
        }
        Ok(())
    };
    if items.iter().map(|item| item.rows(config) * item.keys(config)).sum::<usize>() * hs < SMALL {
        let mut scratch = Scratch::default();
        items.iter().try_for_each(|item| one(&mut scratch, item))
    } else {
        items.par_iter().try_for_each_init(Scratch::default, one)
    }
}

/// Buffers of one worker, used again from item to item.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    keys: Panel,
    /// A block of keys or values in f32, where they are stored as something else.
    wide: Vec<f32>,
    scores: Vec<f32>,
    acc: Vec<f32>,
    max: Vec<f32>,
    total: Vec<f32>,
}

/// Leaves, by stacked row, the largest score in `max`, sum_j exp(score_j - max) v_j in `acc` and the sum of these weights in `total`.
fn attend(
    scratch: &mut Scratch,
    item: &Item,
    q: &[f32],
    [k, v]: &[Source; 2],
    config: &Config,
) -> Result<()> {
    let (hs, rows) = (config.head_size, item.rows(config));
    let Scratch { q: queries, keys, wide, scores, acc, max: top, total } = scratch;
    gather(queries, q, item, config);
    queries.iter_mut().for_each(|q| *q *= config.scale);
    // Scores are overwritten before they are read.
    scores.resize(rows * KEYS, 0.0);
    for (buffer, len, value) in
        [(&mut *acc, rows * hs, 0.0), (&mut *top, rows, f32::NEG_INFINITY), (&mut *total, rows, 0.0)]
    {
        buffer.clear();
        buffer.resize(len, value);
    }
    let seen = item.keys(config);
    for start in (0..seen).step_by(KEYS) {
        let n = KEYS.min(seen - start);
        let (k, stride) = k.block(wide, item, start, n, config)?;
        // gemm would spend its time on bringing the keys into its own layout, for a handful of rows. It is the span that decides, and not how many
        // rows an item has: where a prompt is cut changes no bit, as long as no piece is a single query.
        if item.span.q_len == 1 {
            few_scores(scores, keys, queries, hs, |j| &k[j * stride..][..hs], n);
        } else {
            let (queries, k) = (View { data: queries, rs: hs, cs: 1 }, View { data: k, rs: 1, cs: stride });
            matmul_here([rows, n, hs], scores, KEYS, 1.0, queries, k, false);
        }
        let filled = n.next_multiple_of(LANES);
        for (r, scores) in scores.chunks_exact_mut(KEYS).enumerate() {
            scores[item.seen(r, start, n, config)..filled].fill(f32::NEG_INFINITY);
        }
        soften(scores, filled, acc, hs, top, total);
        let (v, stride) = v.block(wide, item, start, n, config)?;
        let (weights, v) = (View { data: scores, rs: KEYS, cs: 1 }, View { data: v, rs: stride, cs: 1 });
        matmul_here([rows, hs, n], acc, hs, 1.0, weights, v, true);
    }
    Ok(())
}

/// Scores of few queries (dense, HS wide) against `n` keys.
fn few_scores<'a>(
    scores: &mut [f32],
    keys: &mut Panel,
    queries: &[f32],
    hs: usize,
    key: impl Fn(usize) -> &'a [f32],
    n: usize,
) {
    scores.fill(0.0);
    for start in (0..hs).step_by(dot::DEPTH) {
        let depth = dot::DEPTH.min(hs - start);
        keys.fill(n, depth, |j, to| to.copy_from_slice(&key(j)[start..start + depth]));
        let queries = Rows { data: &queries[start..], stride: hs };
        let sums = Sums { data: scores.as_mut_ptr(), stride: KEYS };
        // SAFETY: `scores` has a row of KEYS >= n elements for each query, and is ours alone.
        unsafe { dot::add_products(sums, scores.len() / KEYS, depth, queries, keys) };
    }
}

vectorised! {
    /// One step of the online softmax, by row: the first `n` of KEYS scores become weights relative to the largest score so far, `top`;
    /// what was summed up before, in `acc` and `total`, is brought down to it.
    fn soften(scores: &mut [f32], n: usize, acc: &mut [f32], hs: usize, top: &mut [f32], total: &mut [f32]) {
        let rows = scores.chunks_exact_mut(KEYS).zip(acc.chunks_exact_mut(hs));
        for ((scores, acc), (top, total)) in rows.zip(top.iter_mut().zip(total)) {
            let scores = &mut scores[..n];
            let new = max(scores);
            if new > *top {
                let shrink = exp(*top - new);
                *total *= shrink;
                for a in acc {
                    *a *= shrink;
                }
                *top = new;
            }
            for s in scores.iter_mut() {
                *s = exp(*s - *top);
            }
            *total += sum(scores, |x| x);
        }
    }
}

/// Copies the item's rows of a [Tq, NH*HS] matrix, stacked.
fn gather(to: &mut Vec<f32>, from: &[f32], item: &Item, config: &Config) {
    to.clear();
    for r in 0..item.rows(config) {
        let (row, head) = item.place(r, config);
        let start = row * config.q_width() + head * config.head_size;
        to.extend_from_slice(&from[start..start + config.head_size]);
    }
}

/// `check`, and the outputs' shapes.
fn check_all(
    op: &'static str,
    out: &Tensor,
    lse: Option<&Tensor>,
    [q, k, v]: [&Tensor; 3],
    spans: &[Span],
    config: &Config,
) -> Result<()> {
    check(op, q, k, v, spans, config)?;
    expect_shape(op, "out", out, q.shape())?;
    lse.map_or(Ok(()), |lse| expect_shape(op, "lse", lse, &[q.rows(), config.heads]))
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
    check_heads(op, q, config)?;
    expect_shape(op, "k", k, &[k.rows(), config.k_width()])?;
    expect_shape(op, "v", v, k.shape())?;
    let fits = |span: &Span| span.k_start.checked_add(span.k_len).is_some_and(|end| end <= k.rows());
    check_spans(op, q, &format!("{} keys", k.rows()), spans, config, fits)
}

fn check_heads(op: &'static str, q: &Tensor, config: &Config) -> Result<()> {
    let &Config { heads, kv_heads, head_size, .. } = config;
    if kv_heads == 0 || head_size == 0 || heads % kv_heads != 0 {
        let got = format!("{heads} heads, {kv_heads} key/value heads, head size {head_size}");
        return Err(Error::op(op, "heads that the key/value heads divide, and a head size", got));
    }
    expect_shape(op, "q", q, &[q.rows(), config.q_width()])
}

/// `keys`: what the keys must lie within, as `fits` says.
fn check_spans(
    op: &'static str,
    q: &Tensor,
    keys: &str,
    spans: &[Span],
    config: &Config,
    fits: impl Fn(&Span) -> bool,
) -> Result<()> {
    for span in spans {
        let asks = span.q_start.checked_add(span.q_len).is_some_and(|end| end <= q.rows());
        if !asks || !fits(span) {
            let expected = format!("spans within {} queries and {keys}", q.rows());
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
