//! The gradient of attention. Weights are computed again, block by block, from the log-sum-exp that the forward left:
//! P = exp(S - lse), dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dO O)), dQ = s dS K, dK = s dS^T Q.
use rayon::prelude::*;

use super::super::expect_shape;
use super::super::matmul::{Shared, View, matmul_here};
use super::super::vector_math::{exp, sum2, vectorised};
use super::{Config, Item, KEYS, LANES, ROWS, Span, Spans, check, expect_disjoint, gather, launch_backward};
use crate::error::Result;
use crate::tensor::Tensor;

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
    spans: &Spans,
    config: Config,
) -> Result<()> {
    const OP: &str = "attention backward";
    check(OP, q, k, v, spans, &config)?;
    expect_disjoint(OP, "key", spans.iter().map(|s| (s.k_start, s.k_len)).collect())?;
    expect_shape(OP, "dq", dq, q.shape())?;
    expect_shape(OP, "dk", dk, k.shape())?;
    expect_shape(OP, "dv", dv, v.shape())?;
    expect_shape(OP, "dout", dout, q.shape())?;
    expect_shape(OP, "out", out, q.shape())?;
    expect_shape(OP, "lse", lse, &[q.rows(), config.heads])?;
    if let Some(gpu) = q.gpu() {
        let inputs = [dout, q, k, v, out];
        return launch_backward::backward(gpu, [dq, dk, dv], inputs, lse, spans, &config);
    }
    let inputs = Inputs {
        config: &config,
        dout: dout.f32s()?,
        q: q.f32s()?,
        k: k.f32s()?,
        v: v.f32s()?,
        out: out.f32s()?,
        lse: lse.f32s()?,
    };
    let outputs = Outputs {
        dq: Shared::new(dq.f32s_mut()?),
        dk: Shared::new(dk.f32s_mut()?),
        dv: Shared::new(dv.f32s_mut()?),
    };
    let items: Vec<(Span, usize)> =
        spans.iter().flat_map(|&span| (0..config.kv_heads).map(move |head| (span, head))).collect();
    items.par_iter().for_each_init(Scratch::default, |scratch, &(span, kv_head)| {
        propagate(scratch, span, kv_head, &inputs, &outputs);
    });
    Ok(())
}

struct Inputs<'a> {
    config: &'a Config,
    dout: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
}

struct Outputs<'a> {
    dq: Shared<'a>,
    dk: Shared<'a>,
    dv: Shared<'a>,
}

/// Buffers of one worker, used again from item to item. Those of queries and scores by (head, query), those of keys by key.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    dout: Vec<f32>,
    out: Vec<f32>,
    lse: Vec<f32>,
    delta: Vec<f32>,
    weights: Vec<f32>,
    dscores: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

fn zeros(buffer: &mut Vec<f32>, len: usize) {
    buffer.clear();
    buffer.resize(len, 0.0);
}

/// All gradients of one key/value head in one span: blocks of queries in order, so that each sum has one order.
fn propagate(scratch: &mut Scratch, span: Span, kv_head: usize, inputs: &Inputs, outputs: &Outputs) {
    let config = inputs.config;
    let hs = config.head_size;
    zeros(&mut scratch.dk, span.k_len * hs);
    zeros(&mut scratch.dv, span.k_len * hs);
    for item in Item::all(span, kv_head, config, ROWS) {
        load(scratch, &item, inputs);
        let keys = item.keys(config);
        for start in (0..keys).step_by(KEYS) {
            propagate_block(scratch, &item, start, KEYS.min(keys - start), inputs);
        }
        for (r, from) in scratch.dq.chunks_exact(hs).enumerate() {
            let (row, head) = item.place(r, config);
            // SAFETY: `check` put the row inside the tensor; items have disjoint (row, head) pairs, spans disjoint rows.
            unsafe { outputs.dq.slice(row * config.q_width() + head * hs, hs) }.copy_from_slice(from);
        }
    }
    for (to, from) in [(&outputs.dk, &scratch.dk), (&outputs.dv, &scratch.dv)] {
        for (j, from) in from.chunks_exact(hs).enumerate() {
            let start = (span.k_start + j) * config.k_width() + kv_head * hs;
            // SAFETY: as above, with key rows, which `backward` has checked to be disjoint.
            unsafe { to.slice(start, hs) }.copy_from_slice(from);
        }
    }
}

/// Brings in what belongs to the item's queries, and makes room for what is computed.
fn load(scratch: &mut Scratch, item: &Item, inputs: &Inputs) {
    let config = inputs.config;
    let (hs, rows) = (config.head_size, item.rows(config));
    gather(&mut scratch.q, inputs.q, item, config);
    gather(&mut scratch.dout, inputs.dout, item, config);
    gather(&mut scratch.out, inputs.out, item, config);
    scratch.lse.clear();
    scratch.delta.clear();
    for r in 0..rows {
        let (row, head) = item.place(r, config);
        scratch.lse.push(inputs.lse[row * config.heads + head]);
        scratch.delta.push(inner_product(&scratch.dout[r * hs..][..hs], &scratch.out[r * hs..][..hs]));
    }
    // Scores are overwritten before they are read.
    scratch.weights.resize(rows * KEYS, 0.0);
    scratch.dscores.resize(rows * KEYS, 0.0);
    zeros(&mut scratch.dq, rows * hs);
}

/// Adds what the item's queries and the `n` keys from `start` on give to `dq`, `dk` and `dv`.
fn propagate_block(scratch: &mut Scratch, item: &Item, start: usize, n: usize, inputs: &Inputs) {
    let config = inputs.config;
    let (hs, rows, width, scale) = (config.head_size, item.rows(config), config.k_width(), config.scale);
    let offset = (item.span.k_start + start) * width + item.kv_head * hs;
    let (k, v) = (&inputs.k[offset..], &inputs.v[offset..]);
    let Scratch { q, dout, lse, delta, weights, dscores, dq, dk, dv, .. } = scratch;
    let (dk, dv) = (&mut dk[start * hs..], &mut dv[start * hs..]);

    matmul_here([rows, n, hs], weights, KEYS, scale, as_it_lies(q, hs), transposed(k, width), false);
    matmul_here([rows, n, hs], dscores, KEYS, 1.0, as_it_lies(dout, hs), transposed(v, width), false);
    let filled = n.next_multiple_of(LANES);
    for (r, scores) in weights.chunks_exact_mut(KEYS).enumerate() {
        scores[item.seen(r, start, n, config)..filled].fill(f32::NEG_INFINITY);
    }
    soften(weights, dscores, filled, lse, delta);
    matmul_here([n, hs, rows], dv, hs, 1.0, transposed(weights, KEYS), as_it_lies(dout, hs), true);
    matmul_here([n, hs, rows], dk, hs, scale, transposed(dscores, KEYS), as_it_lies(q, hs), true);
    matmul_here([rows, hs, n], dq, hs, scale, as_it_lies(dscores, KEYS), as_it_lies(k, width), true);
}

fn as_it_lies(data: &[f32], width: usize) -> View<'_> {
    View { data, rs: width, cs: 1 }
}

fn transposed(data: &[f32], width: usize) -> View<'_> {
    View { data, rs: 1, cs: width }
}

vectorised! {
    /// By row, the first `n` of KEYS scores become weights, and the gradients of weights become those of scores.
    fn soften(scores: &mut [f32], dweights: &mut [f32], n: usize, lse: &[f32], delta: &[f32]) {
        let rows = scores.chunks_exact_mut(KEYS).zip(dweights.chunks_exact_mut(KEYS));
        for ((scores, dweights), (lse, delta)) in rows.zip(lse.iter().zip(delta)) {
            for (s, d) in scores[..n].iter_mut().zip(&mut dweights[..n]) {
                *s = exp(*s - lse);
                *d = *s * (*d - delta);
            }
        }
    }
}

vectorised! {
    fn inner_product(a: &[f32], b: &[f32]) -> f32 {
        sum2(a, b, |a, b| a * b)
    }
}
