//! attention: prompts (many queries a span) and decode steps (one), with the log-sum-exp.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::attention::{Config, Span, Spans, forward};
use crate::selftest::on::On;
use crate::tensor::DType;

#[derive(Clone)]
struct Batch {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    causal: bool,
    /// Queries and keys of each span.
    spans: Vec<(usize, usize)>,
}

pub(super) fn cases(size: Size) -> Vec<Case> {
    let mut batches = small();
    if !size.quick() {
        batches.extend(real());
    }
    let case = |b: Batch| {
        let spans: Vec<String> = b.spans.iter().take(3).map(|(q, k)| format!("{q}/{k}")).collect();
        let more = if b.spans.len() > 3 { format!(" ... {} spans", b.spans.len()) } else { String::new() };
        let Batch { name, heads, kv_heads, head_size, .. } = b;
        let shape = format!("{name}, {heads}/{kv_heads} x {head_size}, {}{more}", spans.join(" "));
        Case::new("attention", shape, move |on| attend(on, &b))
    };
    batches.into_iter().map(case).collect()
}

fn batch(name: &'static str, [heads, kv_heads, head_size]: [usize; 3], causal: bool) -> Batch {
    Batch { name, heads, kv_heads, head_size, causal, spans: Vec::new() }
}

impl Batch {
    fn of(self, spans: impl IntoIterator<Item = (usize, usize)>) -> Batch {
        Batch { spans: spans.into_iter().collect(), ..self }
    }
}

/// All head sizes that there are kernels for, on both sides of their tiles' edges.
fn small() -> Vec<Batch> {
    let mut batches = vec![
        batch("causal", [3, 1, 64], true).of([(1, 1), (129, 129), (5, 70), (33, 33)]),
        batch("all keys", [2, 2, 64], false).of([(65, 65), (1, 3), (40, 130)]),
        batch("decode", [6, 2, 64], true).of([(1, 1), (1, 255), (1, 257), (1, 600)]),
        batch("decode and prompt", [4, 2, 128], true).of([(1, 300), (20, 20), (1, 7)]),
    ];
    for head_size in [72, 80, 96, 128] {
        batches.push(batch("causal", [2, 1, head_size], true).of([(70, 70), (1, 65)]));
        batches.push(batch("all keys", [1, 1, head_size], false).of([(33, 97)]));
    }
    batches
}

fn real() -> Vec<Batch> {
    let decode = || (0..32).map(|i| (1, 1024 - 31 * i));
    vec![
        batch("SmolVLM-500M prompts", [15, 5, 64], true).of([(1024, 1024), (300, 300), (77, 77), (1, 1)]),
        batch("SmolVLM-500M, later part of a prompt", [15, 5, 64], true).of([(200, 1000)]),
        batch("SmolVLM-500M decode", [15, 5, 64], true).of(decode()),
        batch("SigLIP, 3 tiles", [12, 12, 64], false).of([(1024, 1024); 3]),
        batch("SigLIP so400m", [16, 16, 72], false).of([(729, 729)]),
        batch("Qwen2-VL vision", [16, 16, 80], false).of([(1024, 1024), (340, 340)]),
        batch("Qwen2-VL-2B prompts", [12, 2, 128], true).of([(900, 900), (129, 129)]),
        batch("Qwen2-VL-2B decode", [12, 2, 128], true).of(decode()),
        batch("Qwen2-VL-7B prompts", [28, 4, 128], true).of([(513, 513), (60, 60)]),
        batch("Qwen2-VL-7B decode", [28, 4, 128], true).of(decode()),
    ]
}

fn attend(on: &mut On, batch: &Batch) -> Result<Vec<Output>> {
    let &Batch { heads, kv_heads, head_size, causal, .. } = batch;
    let (mut queries, mut keys) = (0, 0);
    let spans: Spans = batch
        .spans
        .iter()
        .map(|&(q_len, k_len)| {
            let span = Span { q_start: queries, q_len, k_start: keys, k_len };
            (queries, keys) = (queries + q_len, keys + k_len);
            span
        })
        .collect();
    // Scores with a deviation above 1: some keys matter more than others.
    let q = on.random(&[queries, heads * head_size], 4.0)?;
    let [k, v] =
        [on.random(&[keys, kv_heads * head_size], 1.0)?, on.random(&[keys, kv_heads * head_size], 1.0)?];
    let (mut out, mut lse) = (on.output(q.shape())?, on.output_f32(&[queries, heads])?);
    let config = Config { heads, kv_heads, head_size, scale: 1.0 / (head_size as f32).sqrt(), causal };
    forward(&mut out, Some(&mut lse), &q, &k, &v, &spans, config)?;
    Ok(vec![
        Output::new("", out, Tolerance::attention(on.dtype, head_size)),
        // Products of the inputs are exact in f32, and that is the log-sum-exp's type.
        Output::new("(lse)", lse, Tolerance::stored(DType::F32, 8.0)),
    ])
}
