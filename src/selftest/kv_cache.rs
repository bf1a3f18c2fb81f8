//! Keys and values in pages: what is stored and gathered, and attention over them.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::attention::{Config, PagedSpans, Span, forward_paged};
use crate::ops::kv_cache::{PAGE, PageType, Pages, gather, store};
use crate::selftest::on::On;
use crate::tensor::{DType, Indices, Tensor};

const KINDS: [(PageType, &str); 2] = [(PageType::Float, "float"), (PageType::Int8, "int8")];

/// Pages, key/value heads, head size.
const STORED_QUICK: &[[usize; 3]] = &[[3, 1, 1], [3, 3, 5], [3, 2, 64], [1, 2, 264]];
const STORED: &[[usize; 3]] = &[[64, 4, 128], [16, 5, 64]];

#[derive(Clone)]
struct Batch {
    name: &'static str,
    /// NH, NKV, HS.
    heads: [usize; 3],
    /// Queries and keys of each span.
    spans: Vec<(usize, usize)>,
}

pub(super) fn cases(size: Size) -> Vec<Case> {
    let (mut stored, mut batches) = (STORED_QUICK.to_vec(), small());
    if !size.quick() {
        stored.extend(STORED);
        batches.extend(real());
    }
    let mut cases = Vec::new();
    for (kind, name) in KINDS {
        for &sizes in &stored {
            let [pages, kv_heads, head_size] = sizes;
            let shape = format!("{pages} {name} pages, {kv_heads} x {head_size}");
            cases.push(Case::new("kv_cache", shape, move |on| keep(on, sizes, kind)));
        }
        for b in &batches {
            let (shape, b) = (format!("{}, {:?}, {name} pages", b.name, b.heads), b.clone());
            cases.push(Case::new("attention_paged", shape, move |on| attend(on, &b, kind)));
        }
    }
    cases
}

/// All head sizes that there are kernels for, and both ways.
fn small() -> Vec<Batch> {
    let batch = |name, heads, spans: &[(usize, usize)]| Batch { name, heads, spans: spans.to_vec() };
    vec![
        batch("decode", [6, 2, 64], &[(1, 1), (1, 128), (1, 257), (1, 600)]),
        batch("decode and prompt", [4, 2, 128], &[(1, 300), (20, 150), (1, 7), (3, 3)]),
    ]
}

fn real() -> Vec<Batch> {
    let decode = || (0..32).map(|i| (1, 1024 - 31 * i));
    let prompt = || [(512, 900), (129, 129)].into_iter().chain(decode().take(8)).collect();
    vec![
        Batch { name: "SmolVLM-500M decode", heads: [15, 5, 64], spans: decode().collect() },
        Batch { name: "Qwen2-VL-7B decode", heads: [28, 4, 128], spans: decode().collect() },
        Batch { name: "Qwen2-VL-7B decode and prompts", heads: [28, 4, 128], spans: prompt() },
    ]
}

/// Pages whose rows are those of `x`, in another order.
fn filled(x: &Tensor, [kv_heads, head_size]: [usize; 2], kind: PageType) -> Result<Pages> {
    let mut pages = Pages::new(x, x.rows() / PAGE, kv_heads, head_size, kind)?;
    // 5 divides no number of rows that is used here.
    let rows: Indices = (0..x.rows()).map(|i| (i * 5 % x.rows()) as u32).collect();
    store(&mut pages, x, &rows)?;
    Ok(pages)
}

fn keep(on: &mut On, [count, kv_heads, head_size]: [usize; 3], kind: PageType) -> Result<Vec<Output>> {
    let x = on.random(&[count * PAGE, kv_heads * head_size], 3.0)?;
    let pages = filled(&x, [kv_heads, head_size], kind)?;
    let mut out = on.output(x.shape())?;
    gather(&mut out, &pages, &(0..count as u32).rev().collect())?;
    Output::one(out, Tolerance::exact("copies, or f32 operations that are not fused").store(on.dtype))
}

fn attend(on: &mut On, batch: &Batch, kind: PageType) -> Result<Vec<Output>> {
    let [heads, kv_heads, head_size] = batch.heads;
    let (mut queries, mut entries) = (0, 0);
    let place = |&(q_len, k_len): &(usize, usize)| {
        let span = Span { q_start: queries, q_len, k_start: entries, k_len };
        (queries, entries) = (queries + q_len, entries + k_len.div_ceil(PAGE));
        span
    };
    let spans: Vec<Span> = batch.spans.iter().map(place).collect();
    // The last page first; one that is no one's keeps the number of rows from being a multiple of 5.
    let count = if entries.is_multiple_of(5) { entries + 1 } else { entries };
    let spans = PagedSpans::new(spans, (0..entries as u32).rev().collect());
    // Scores with a deviation above 1: some keys matter more than others.
    let q = on.random(&[queries, heads * head_size], 4.0)?;
    let kv = [
        on.random(&[count * PAGE, kv_heads * head_size], 1.0)?,
        on.random(&[count * PAGE, kv_heads * head_size], 1.0)?,
    ];
    let [k, v] = [filled(&kv[0], [kv_heads, head_size], kind)?, filled(&kv[1], [kv_heads, head_size], kind)?];
    let config = Config { heads, kv_heads, head_size, scale: 1.0 / (head_size as f32).sqrt(), causal: true };
    let mut out = on.output(q.shape())?;
    forward_paged(&mut out, &q, &k, &v, &spans, config)?;
    let tolerance = Tolerance::attention(on.dtype, head_size);
    Output::one(
        out,
        match (kind, on.dtype) {
            // Keys and values are rounded by up to 2^-9 of them, which moves scores of up to about 5, and so weights, by up to 2^-8 or so.
            (PageType::Int8, DType::Bf16) => tolerance.plus(1.0 / 256.0, "int8 gathered as bf16"),
            _ => tolerance,
        },
    )
}
