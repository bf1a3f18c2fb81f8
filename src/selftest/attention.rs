//! attention: prompts (many queries a span) and decode steps (one), with the log-sum-exp; and its gradient.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::attention::{Config, Span, Spans, backward, forward};
use crate::selftest::on::On;
use crate::tensor::{DType, Tensor};

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
    let case = |op, b: &Batch, run| {
        let case = Case::new(op, b.shape(), of(b, run));
        if b.head_size > 128 { Case { types: &[DType::F32], ..case } } else { case }
    };
    let forward = batches.iter().map(|b| case("attention", b, attend));
    let trained = batches.iter().filter(|b| !b.name.contains("decode"));
    let backward = trained.map(|b| case("attention_backward", b, propagate));
    forward.chain(backward).collect()
}

fn of(
    batch: &Batch,
    run: fn(&mut On, &Batch) -> Result<Vec<Output>>,
) -> impl Fn(&mut On) -> Result<Vec<Output>> + 'static {
    let batch = batch.clone();
    move |on| run(on, &batch)
}

fn batch(name: &'static str, [heads, kv_heads, head_size]: [usize; 3], causal: bool) -> Batch {
    Batch { name, heads, kv_heads, head_size, causal, spans: Vec::new() }
}

impl Batch {
    fn shape(&self) -> String {
        let spans: Vec<String> = self.spans.iter().take(3).map(|(q, k)| format!("{q}/{k}")).collect();
        let more =
            if self.spans.len() > 3 { format!(" ... {} spans", self.spans.len()) } else { String::new() };
        let Batch { name, heads, kv_heads, head_size, .. } = self;
        format!("{name}, {heads}/{kv_heads} x {head_size}, {}{more}", spans.join(" "))
    }

    fn of(self, spans: impl IntoIterator<Item = (usize, usize)>) -> Batch {
        Batch { spans: spans.into_iter().collect(), ..self }
    }
}

/// All head sizes that there are kernels for (256 in f32 only), on both sides of their tiles' edges.
fn small() -> Vec<Batch> {
    let mut batches = vec![
        batch("causal", [3, 1, 64], true).of([(1, 1), (129, 129), (5, 70), (33, 33)]),
        batch("all keys", [2, 2, 64], false).of([(65, 65), (1, 3), (40, 130)]),
        batch("decode", [6, 2, 64], true).of([(1, 1), (1, 255), (1, 257), (1, 600)]),
        batch("decode and prompt", [4, 2, 128], true).of([(1, 300), (20, 20), (1, 7)]),
    ];
    for head_size in [72, 80, 96, 128, 256] {
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

/// q, k, v, and what attends to what.
struct Inputs {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Spans,
    config: Config,
}

fn inputs(on: &mut On, batch: &Batch) -> Result<Inputs> {
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
    let config = Config { heads, kv_heads, head_size, scale: 1.0 / (head_size as f32).sqrt(), causal };
    Ok(Inputs { q, k, v, spans, config })
}

fn attend(on: &mut On, batch: &Batch) -> Result<Vec<Output>> {
    let Inputs { q, k, v, spans, config } = inputs(on, batch)?;
    let (mut out, mut lse) = (on.output(q.shape())?, on.output_f32(&[q.rows(), config.heads])?);
    forward(&mut out, Some(&mut lse), &q, &k, &v, &spans, config)?;
    Ok(vec![
        Output::new("", out, Tolerance::attention(on.dtype, config.head_size)),
        // Products of the inputs are exact in f32, and that is the log-sum-exp's type.
        Output::new("(lse)", lse, Tolerance::stored(DType::F32, 8.0)),
    ])
}

/// Any `out` will do for rowsum(dout out): random numbers, so that the forward's roundings do not come in.
fn propagate(on: &mut On, batch: &Batch) -> Result<Vec<Output>> {
    let Inputs { q, k, v, spans, config } = inputs(on, batch)?;
    let (mut attended, mut lse) = (on.output(q.shape())?, on.output_f32(&[q.rows(), config.heads])?);
    forward(&mut attended, Some(&mut lse), &q, &k, &v, &spans, config)?;
    let (out, dout) = (on.random(q.shape(), 0.5)?, on.random(q.shape(), 1.0)?);
    let (mut dq, mut dk, mut dv) = (on.output(q.shape())?, on.output(k.shape())?, on.output(v.shape())?);
    backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, &spans, config)?;
    let output = |name, tensor| Output::new(name, tensor, Tolerance::attention(on.dtype, config.head_size));
    Ok(vec![output("(dq)", dq), output("(dk)", dk), output("(dv)", dv)])
}
