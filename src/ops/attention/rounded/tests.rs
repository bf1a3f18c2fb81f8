//! Every method that this processor has, against float64; which one the op takes depends on the machine.

use half::bf16;

use super::super::super::matmul::packed::parts::{Method, methods};
use super::super::{Config, Span, forward, forward_rounded};
use super::{BLOCK, ROWS, by};
use crate::random;
use crate::tensor::Tensor;

/// Numbers in [-size, size).
fn numbers(seed: u64, rows: usize, cols: usize, size: f32) -> Tensor {
    let number = |i| ((random::mix(seed, &[i as u64]) >> 40) as f32 / (1 << 23) as f32 - 1.0) * size;
    Tensor::from_vec(&[rows, cols], (0..rows * cols).map(number).collect()).unwrap()
}

fn config(heads: usize, kv_heads: usize, head_size: usize, causal: bool) -> Config {
    Config { heads, kv_heads, head_size, scale: 1.0 / (head_size as f32).sqrt(), causal }
}

fn span(q_start: usize, q_len: usize, k_start: usize, k_len: usize) -> Span {
    Span { q_start, q_len, k_start, k_len }
}

/// Outputs and lse, poisoned first.
fn run(method: Method, [q, k, v]: [&Tensor; 3], spans: &[Span], config: &Config) -> [Tensor; 2] {
    let poisoned =
        |cols: usize| Tensor::from_vec(&[q.rows(), cols], vec![f32::NAN; q.rows() * cols]).unwrap();
    let (mut out, mut lse) = (poisoned(q.cols()), poisoned(config.heads));
    by(method, &mut out, Some(&mut lse), [q, k, v], &spans.into(), config).unwrap();
    [out, lse]
}

fn rounded(x: f32) -> f64 {
    f64::from(bf16::from_f32(x).to_f32())
}

/// Out and lse of a query in float64, by rounded queries, keys and values; and the sum of |weight v|.
fn reference(
    [q, k, v]: [&[f32]; 3],
    span: &Span,
    (i, head): (usize, usize),
    c: &Config,
) -> (Vec<f64>, Vec<f64>, f64) {
    let hs = c.head_size;
    let q = &q[((span.q_start + i) * c.heads + head) * hs..][..hs];
    let seen = if c.causal { i + 1 + span.k_len - span.q_len } else { span.k_len };
    let at = |j: usize| ((span.k_start + j) * c.kv_heads + head / (c.heads / c.kv_heads)) * hs;
    let score = |j: usize| -> f64 {
        q.iter().zip(&k[at(j)..]).map(|(q, &k)| rounded(q * c.scale) * rounded(k)).sum()
    };
    let scores: Vec<f64> = (0..seen).map(score).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
    let (mut out, mut size) = (vec![0.0; hs], vec![0.0; hs]);
    for (j, score) in scores.iter().enumerate() {
        for d in 0..hs {
            let term = (score - lse).exp() * rounded(v[at(j) + d]);
            out[d] += term;
            size[d] += term.abs();
        }
    }
    (out, size, lse)
}

/// Weights are rounded to eight bits, by at most 2^-8 of each; a score is a sum in f32, whose error of some HS roundings goes into the weight whole.
#[track_caller]
fn check([tq, tk]: [usize; 2], spans: &[Span], config: Config, size: f32) {
    let (q, k, v) = (
        numbers(1, tq, config.q_width(), size),
        numbers(2, tk, config.k_width(), size),
        numbers(3, tk, config.k_width(), 1.0),
    );
    let parts = [q.f32s().unwrap(), k.f32s().unwrap(), v.f32s().unwrap()];
    for (m, method) in methods(true).enumerate() {
        let [out, lse] = run(method, [&q, &k, &v], spans, &config);
        let (out, lse) = (out.f32s().unwrap(), lse.f32s().unwrap());
        let mut written = vec![false; tq];
        for s in spans {
            for (i, head) in (0..s.q_len).flat_map(|i| (0..config.heads).map(move |head| (i, head))) {
                written[s.q_start + i] = true;
                let row = (s.q_start + i) * config.heads + head;
                let (want, sizes, want_lse) = reference(parts, s, (i, head), &config);
                let hs = config.head_size;
                let largest = size * size * (hs as f32).sqrt();
                let off_score = f64::from(largest * (hs as f32 + 4.0) * f32::EPSILON);
                let at = format!("method {m}, {s:?}, {config:?}, ({i}, {head})");
                let off = (f64::from(lse[row]) - want_lse).abs();
                let allowed = off_score + f64::from(f32::EPSILON) * (want_lse.abs() + s.k_len as f64);
                assert!(
                    off <= allowed || f64::from(lse[row]) == want_lse,
                    "{at}: lse {} for {want_lse}",
                    lse[row]
                );
                let relative =
                    2f64.powi(-8) + 2.0 * off_score + f64::from(f32::EPSILON) * (s.k_len + 8) as f64;
                for (d, (want, size)) in want.iter().zip(&sizes).enumerate() {
                    let got = f64::from(out[row * hs + d]);
                    assert!((got - want).abs() <= relative * size, "{at}, {d}: {got} for {want}");
                }
            }
        }
        for (row, _) in written.iter().enumerate().filter(|(_, written)| !**written) {
            assert!(
                out[row * config.q_width()..][..config.q_width()].iter().all(|x| x.is_nan()),
                "row {row}"
            );
        }
    }
}

#[test]
fn tails_of_every_kind() {
    for hs in [1, 5, 16, 24, 33, 64, 72, 80] {
        check([19, 37], &[span(1, 17, 2, 35)], config(2, 2, hs, false), 1.0);
    }
    for n in [1, 2, 15, 16, 17, 31, 32, 33, 65, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 37] {
        check([n.min(40), n], &[span(0, n.min(40), 0, n)], config(1, 1, 8, false), 1.0);
        check([n.min(40), n], &[span(0, n.min(40), 0, n)], config(1, 1, 8, true), 1.0);
    }
    for rows in [1, 13, 14, 15, ROWS - 1, ROWS, ROWS + 1] {
        check([rows, 9], &[span(0, rows, 0, 9)], config(1, 1, 16, false), 1.0);
    }
}

#[test]
fn groups_of_heads_and_several_spans() {
    let spans = [span(40, 7, 3, 20), span(2, 30, 30, 600), span(35, 0, 0, 3), span(33, 2, 25, 0)];
    check([50, 640], &spans, config(6, 2, 20, false), 1.0);
    check([50, 640], &[spans[0], spans[1]], config(6, 2, 20, true), 1.0);
}

#[test]
fn sharp_scores() {
    check([9, 1100], &[span(0, 9, 0, 1100)], config(2, 1, 64, false), 9.0);
}

#[test]
fn a_span_has_the_same_bits_whatever_else_is_in_the_batch() {
    let c = config(2, 1, 24, false);
    let (q, k, v) = (numbers(4, 60, 48, 1.0), numbers(5, 700, 24, 1.0), numbers(6, 700, 24, 1.0));
    let spans = [span(0, 11, 0, 90), span(11, 33, 90, 590), span(44, 16, 680, 20)];
    for method in methods(true) {
        let all = run(method, [&q, &k, &v], &spans, &c);
        for s in &spans {
            let alone = run(method, [&q, &k, &v], std::slice::from_ref(s), &c);
            for (all, alone) in all.iter().zip(&alone) {
                let rows =
                    |x: &Tensor| x.f32s().unwrap()[s.q_start * x.cols()..][..s.q_len * x.cols()].to_vec();
                assert_eq!(rows(all), rows(alone), "{s:?}");
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_in_its_row() {
    let c = config(1, 1, 16, false);
    let (mut q, k, v) = (numbers(7, 20, 16, 1.0), numbers(8, 40, 16, 1.0), numbers(9, 40, 16, 1.0));
    q.f32s_mut().unwrap()[5 * 16 + 3] = f32::NAN;
    for method in methods(true) {
        let [out, _] = run(method, [&q, &k, &v], &[span(0, 20, 0, 40)], &c);
        for (row, out) in out.f32s().unwrap().chunks_exact(16).enumerate() {
            assert!(out.iter().all(|x| x.is_nan() == (row == 5)), "row {row}");
        }
    }
}

#[test]
fn shapes_are_checked() {
    let c = config(2, 2, 8, false);
    let (q, k) = (numbers(10, 4, 16, 1.0), numbers(11, 4, 16, 1.0));
    let (mut out, mut short) = (numbers(0, 4, 16, 1.0), numbers(0, 3, 16, 1.0));
    let spans = [span(0, 4, 0, 4)][..].into();
    assert!(forward_rounded(&mut out, None, &q, &k, &k, &spans, c).is_ok());
    for wrong in [forward, forward_rounded] {
        let error = wrong(&mut short, None, &q, &k, &k, &spans, c).unwrap_err().to_string();
        assert!(error.starts_with("attention forward"), "{error}");
        assert!(wrong(&mut out, None, &q, &k, &k, &[span(0, 4, 1, 4)][..].into(), c).is_err());
    }
}
