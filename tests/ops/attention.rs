//! Attention against a float64 reference, its gradients against finite differences.
use mpa::ops::attention::{Config, Span, backward, forward};

use crate::common::*;

/// Float64 attention of the whole batch: (out, lse); rows outside spans are NaN.
fn reference(q: &[f64], k: &[f64], v: &[f64], spans: &[Span], c: Config) -> (Vec<f64>, Vec<f64>) {
    let (hs, qw, kw) = (c.head_size, c.heads * c.head_size, c.kv_heads * c.head_size);
    let mut out = vec![f64::NAN; q.len()];
    let mut lse = vec![f64::NAN; q.len() / hs];
    for s in spans {
        for i in 0..s.q_len {
            for h in 0..c.heads {
                let (qa, kh) = ((s.q_start + i) * qw + h * hs, h / (c.heads / c.kv_heads));
                let seen = if c.causal { i + s.k_len - s.q_len + 1 } else { s.k_len };
                let at = |j: usize| (s.k_start + j) * kw + kh * hs;
                let scores: Vec<f64> = (0..seen)
                    .map(|j| (0..hs).map(|d| q[qa + d] * k[at(j) + d]).sum::<f64>() * f64::from(c.scale))
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
                lse[(s.q_start + i) * c.heads + h] = max + sum.ln();
                for d in 0..hs {
                    out[qa + d] = (0..seen).map(|j| (scores[j] - max).exp() / sum * v[at(j) + d]).sum();
                }
            }
        }
    }
    (out, lse)
}

#[test]
fn forward_small() {
    let mut rng = Rng(1);
    for (heads, kv_heads, hs) in [(4, 4, 16), (4, 2, 5), (4, 1, 64), (8, 1, 9)] {
        for causal in [false, true] {
            let c = Config { heads, kv_heads, head_size: hs, scale: 1.0 / (hs as f32).sqrt(), causal };
            let (tq, tk) = (150, 200);
            let q = rng.tensor(&[tq, heads * hs], 1.0);
            let k = rng.tensor(&[tk, kv_heads * hs], 1.0);
            let v = rng.tensor(&[tk, kv_heads * hs], 1.0);
            let spans = [
                Span { q_start: 10, q_len: 1, k_start: 0, k_len: 23 },
                Span { q_start: 11, q_len: 129, k_start: 30, k_len: 170 },
                Span { q_start: 0, q_len: 7, k_start: 23, k_len: 7 },
            ];
            let (mut out, mut lse) = (poisoned(&[tq, heads * hs]), poisoned(&[tq, heads]));
            forward(&mut out, Some(&mut lse), &q, &k, &v, &spans, c).unwrap();
            let (want, want_lse) = reference(&to_f64(&q), &to_f64(&k), &to_f64(&v), &spans, c);
            for (got, want) in [(out, want), (lse, want_lse)] {
                let (got, want): (Vec<f32>, Vec<f64>) = got
                    .f32s()
                    .unwrap()
                    .iter()
                    .zip(&want)
                    .filter(|(_, w)| !w.is_nan())
                    .map(|(&g, &w)| (g, w))
                    .unzip();
                assert_close("attention", &got, &want, f32_sum(170));
            }
        }
    }
}

#[test]
fn backward_small() {
    let mut rng = Rng(2);
    let c = Config { heads: 4, kv_heads: 2, head_size: 3, scale: 0.6, causal: true };
    let spans = [
        Span { q_start: 0, q_len: 3, k_start: 2, k_len: 5 },
        Span { q_start: 3, q_len: 2, k_start: 0, k_len: 2 },
    ];
    let q = rng.tensor(&[5, 12], 1.0);
    let k = rng.tensor(&[7, 6], 1.0);
    let v = rng.tensor(&[7, 6], 1.0);
    let dout = rng.tensor(&[5, 12], 1.0);
    let (mut out, mut lse) = (poisoned(&[5, 12]), poisoned(&[5, 4]));
    forward(&mut out, Some(&mut lse), &q, &k, &v, &spans, c).unwrap();
    let (mut dq, mut dk, mut dv) = (poisoned(&[5, 12]), poisoned(&[7, 6]), poisoned(&[7, 6]));
    backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, &spans, c).unwrap();
    let (qd, kd, vd, dd) = (to_f64(&q), to_f64(&k), to_f64(&v), to_f64(&dout));
    let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
        reference(q, k, v, &spans, c).0.iter().zip(&dd).map(|(o, d)| o * d).sum()
    };
    assert_close("dq", dq.f32s().unwrap(), &finite_differences(&qd, |x| loss(x, &kd, &vd)), F32);
    assert_close("dk", dk.f32s().unwrap(), &finite_differences(&kd, |x| loss(&qd, x, &vd)), F32);
    assert_close("dv", dv.f32s().unwrap(), &finite_differences(&vd, |x| loss(&qd, &kd, x)), F32);
}
