//! Attention and its gradients against float64; the float64 gradients against finite differences.
use mpa::ops::attention::{Config, Span, backward, forward};
use mpa::tensor::Tensor;

use crate::common::*;

/// q, k, v and dout of one batch.
struct Batch {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    spans: Vec<Span>,
    config: Config,
}

fn config(heads: usize, kv_heads: usize, head_size: usize, causal: bool) -> Config {
    Config { heads, kv_heads, head_size, scale: 1.0 / (head_size as f32).sqrt(), causal }
}

fn span(q_start: usize, q_len: usize, k_start: usize, k_len: usize) -> Span {
    Span { q_start, q_len, k_start, k_len }
}

/// A batch of `tq` queries and `tk` keys.
fn batch(seed: u64, tq: usize, tk: usize, spans: &[Span], config: Config) -> Batch {
    let mut rng = Rng(seed);
    let (qw, kw) = (config.heads * config.head_size, config.kv_heads * config.head_size);
    Batch {
        q: rng.tensor(&[tq, qw], 1.0),
        k: rng.tensor(&[tk, kw], 1.0),
        v: rng.tensor(&[tk, kw], 1.0),
        dout: rng.tensor(&[tq, qw], 1.0),
        spans: spans.to_vec(),
        config,
    }
}

/// out, lse, and the gradients dq, dk, dv.
type Results<T> = [T; 5];
const NAMES: Results<&str> = ["out", "lse", "dq", "dk", "dv"];

/// Both passes, into outputs full of NaN.
fn run(b: &Batch) -> Results<Tensor> {
    let (q, k) = (b.q.shape(), b.k.shape());
    let (mut out, mut lse) = (poisoned(q), poisoned(&[q[0], b.config.heads]));
    forward(&mut out, Some(&mut lse), &b.q, &b.k, &b.v, &b.spans.as_slice().into(), b.config).unwrap();
    let (mut dq, mut dk, mut dv) = (poisoned(q), poisoned(k), poisoned(k));
    let spans = b.spans.as_slice().into();
    backward(&mut dq, &mut dk, &mut dv, &b.dout, &b.q, &b.k, &b.v, &out, &lse, &spans, b.config).unwrap();
    [out, lse, dq, dk, dv]
}

/// The same in float64, one query after the other; rows outside the spans are NaN.
fn reference(b: &Batch, q: &[f64], k: &[f64], v: &[f64]) -> Results<Vec<f64>> {
    let c = b.config;
    let (hs, scale) = (c.head_size, f64::from(c.scale));
    let dout = to_f64(&b.dout);
    let mut r = [q.len(), q.len() / hs, q.len(), k.len(), k.len()].map(|n| vec![f64::NAN; n]);
    for s in &b.spans {
        for gradient in &mut r[3..] {
            gradient[s.k_start * c.kv_heads * hs..][..s.k_len * c.kv_heads * hs].fill(0.0);
        }
        for (i, h) in (0..s.q_len).flat_map(|i| (0..c.heads).map(move |h| (i, h))) {
            let row = (s.q_start + i) * c.heads + h;
            let (q, dout) = (&q[row * hs..][..hs], &dout[row * hs..][..hs]);
            let seen = if c.causal { i + s.k_len - s.q_len + 1 } else { s.k_len };
            let at = |j: usize| ((s.k_start + j) * c.kv_heads + h / (c.heads / c.kv_heads)) * hs;
            let scores: Vec<f64> = (0..seen).map(|j| scale * dot(q, &k[at(j)..][..hs])).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + scores.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
            let p: Vec<f64> = scores.iter().map(|x| (x - lse).exp()).collect();
            let dp: Vec<f64> = (0..seen).map(|j| dot(dout, &v[at(j)..][..hs])).collect();
            let delta = dot(&p, &dp);
            r[1][row] = lse;
            for d in 0..hs {
                r[0][row * hs + d] = (0..seen).map(|j| p[j] * v[at(j) + d]).sum();
                r[2][row * hs + d] = (0..seen).map(|j| scale * p[j] * (dp[j] - delta) * k[at(j) + d]).sum();
                for j in 0..seen {
                    r[3][at(j) + d] += scale * p[j] * (dp[j] - delta) * q[d];
                    r[4][at(j) + d] += p[j] * dout[d];
                }
            }
        }
    }
    r
}

/// Compares where the reference has a value, and expects the poison elsewhere.
#[track_caller]
fn assert_results(got: &Results<Tensor>, want: &Results<Vec<f64>>, tolerance: impl Fn(usize) -> Tolerance) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let (inside, outside): (Vec<_>, Vec<_>) =
            values(got).iter().zip(want).map(|(&g, &w)| (g, w)).partition(|(_, w)| !w.is_nan());
        assert!(outside.iter().all(|(g, _)| g.is_nan()), "{}: written outside the spans", NAMES[i]);
        let (got, want): (Vec<f32>, Vec<f64>) = inside.into_iter().unzip();
        assert_close(NAMES[i], &got, &want, tolerance(i));
    }
}

#[track_caller]
fn check(b: &Batch) {
    let want = reference(b, &to_f64(&b.q), &to_f64(&b.k), &to_f64(&b.v));
    let group = b.config.heads / b.config.kv_heads;
    let q_len = b.spans.iter().map(|s| s.q_len).max().unwrap_or(1);
    // out, lse and dq are averages over keys of numbers of size 1, whose scores were summed over HS. dk and dv sum over queries.
    assert_results(&run(b), &want, |i| match i {
        0..=2 => f32_sum(b.config.head_size),
        _ => f32_sum(q_len * group),
    });
}

#[test]
fn float64_gradients_match_finite_differences() {
    let b = batch(1, 5, 7, &[span(0, 3, 2, 5), span(3, 2, 0, 2)], config(4, 2, 3, true));
    let (q, k, v, dout) = (to_f64(&b.q), to_f64(&b.k), to_f64(&b.v), to_f64(&b.dout));
    let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&reference(&b, q, k, v)[0], &dout);
    let want = reference(&b, &q, &k, &v);
    let close = |got: &[f64], want: &[f64]| {
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-9), "{got:?}, expected {want:?}");
    };
    close(&want[2], &finite_differences(&q, |x| loss(x, &k, &v)));
    close(&want[3], &finite_differences(&k, |x| loss(&q, x, &v)));
    close(&want[4], &finite_differences(&v, |x| loss(&q, &k, x)));
}

#[test]
fn groups_and_head_sizes() {
    // Shuffled, with gaps, lengths around the blocks of 64 queries and 128 keys, k_len equal to and above q_len.
    let spans = [
        span(12, 1, 0, 23),
        span(20, 129, 330, 257),
        span(1, 7, 24, 7),
        span(8, 1, 31, 1),
        span(150, 64, 60, 128),
        span(214, 65, 200, 129),
    ];
    for (heads, kv_heads, head_size) in [(2, 2, 16), (4, 2, 5), (4, 1, 64), (8, 1, 9), (3, 1, 128), (1, 1, 1)]
    {
        for causal in [false, true] {
            check(&batch(2, 280, 590, &spans, config(heads, kv_heads, head_size, causal)));
        }
    }
}

#[test]
fn cross_attention_may_have_fewer_keys() {
    check(&batch(3, 70, 9, &[span(0, 70, 2, 5)], config(2, 1, 8, false)));
}

#[test]
fn wrong_masks_do_not_pass() {
    let mut b = batch(4, 39, 40, &[span(0, 39, 0, 40)], config(2, 2, 16, true));
    let results = run(&b);
    assert!(results.iter().all(|r| values(r).iter().all(|x| x.is_finite())), "else everything is rejected");
    let full = |b: &Batch| reference(b, &to_f64(&b.q), &to_f64(&b.k), &to_f64(&b.v));
    let rejected = |want: Results<Vec<f64>>| {
        (0..5).all(|i| {
            let got = results[i].clone();
            std::panic::catch_unwind(|| assert_close(NAMES[i], values(&got), &want[i], f32_sum(40))).is_err()
        })
    };
    let finite = |mut r: Results<Vec<f64>>| {
        r.iter_mut().flatten().filter(|x| x.is_nan()).for_each(|x| *x = 0.0);
        r
    };
    b.config.causal = false;
    assert!(rejected(finite(full(&b))), "no mask");
    b.config.causal = true;
    b.spans = vec![span(0, 39, 0, 39)];
    assert!(rejected(finite(full(&b))), "mask off by one");
    b.spans = vec![span(0, 39, 0, 40)];
    b.config.scale *= 1.001;
    assert!(rejected(finite(full(&b))), "scale off by a thousandth");
}

#[test]
fn huge_scores_stay_finite() {
    for size in [1e2f32, 1e4] {
        // One-dimensional heads: scores are products, exact to rounding, up to size^2 / size = size.
        let mut b = batch(5, 30, 150, &[span(0, 30, 0, 150)], config(1, 1, 1, true));
        b.config.scale = 1.0 / size;
        let scaled =
            |t: &Tensor| Tensor::from_vec(t.shape(), values(t).iter().map(|x| x * size).collect()).unwrap();
        (b.q, b.k) = (scaled(&b.q), scaled(&b.k));
        let [out, lse, dq, dk, dv] = run(&b);
        let want = reference(&b, &to_f64(&b.q), &to_f64(&b.k), &to_f64(&b.v));
        // A score of size s is off by up to 2^-24 s twice over, and weights by that factor.
        let abs = f64::from(size) * 2.0 * f64::from(f32::EPSILON);
        let tolerance = Tolerance { abs, rel: 2e-6 };
        assert_close("out", values(&out), &want[0], tolerance);
        assert_close("lse", values(&lse), &want[1], tolerance);
        for gradient in [dq, dk, dv] {
            assert!(values(&gradient).iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn nan_is_not_swallowed() {
    let mut b = batch(6, 3, 3, &[span(0, 3, 0, 3)], config(1, 1, 2, true));
    let mut k = values(&b.k).to_vec();
    k[2] = f32::NAN; // The second key: the first query does not see it.
    b.k = Tensor::from_vec(&[3, 2], k).unwrap();
    let mut out = Tensor::zeros(&[3, 2]);
    forward(&mut out, None, &b.q, &b.k, &b.v, &b.spans.as_slice().into(), b.config).unwrap();
    assert!(values(&out)[..2].iter().all(|x| x.is_finite()));
    assert!(values(&out)[2..].iter().all(|x| x.is_nan()));
}

#[test]
fn queries_without_keys_get_zeros() {
    let b = batch(7, 6, 4, &[span(1, 2, 4, 0), span(4, 0, 0, 1), span(4, 2, 1, 3)], config(2, 1, 4, false));
    let [out, lse, dq, ..] = run(&b);
    assert_eq!(values(&out)[8..24], [0.0; 16]);
    assert_eq!(values(&lse)[2..6], [f32::NEG_INFINITY; 4]);
    assert_eq!(values(&dq)[8..24], [0.0; 16]);
    assert!(values(&out)[..8].iter().all(|x| x.is_nan()));
    assert!(values(&out)[32..].iter().all(|x| x.is_finite()));
    let nothing = batch(7, 0, 0, &[], config(2, 1, 4, true));
    run(&nothing);
}

#[test]
fn a_span_has_the_same_bits_alone_and_in_a_batch() {
    let spans = [span(5, 70, 0, 200), span(0, 1, 200, 300), span(75, 40, 520, 40), span(1, 4, 500, 9)];
    for (heads, kv_heads, head_size) in [(4, 4, 16), (6, 2, 64)] {
        let all = batch(8, 115, 560, &spans, config(heads, kv_heads, head_size, true));
        let together = run(&all);
        for s in spans {
            let rows = |t: &Tensor, start: usize, len: usize| {
                let w = t.cols();
                Tensor::from_vec(&[len, w], values(t)[start * w..(start + len) * w].to_vec()).unwrap()
            };
            let alone = run(&Batch {
                q: rows(&all.q, s.q_start, s.q_len),
                k: rows(&all.k, s.k_start, s.k_len),
                v: rows(&all.v, s.k_start, s.k_len),
                dout: rows(&all.dout, s.q_start, s.q_len),
                spans: vec![span(0, s.q_len, 0, s.k_len)],
                config: all.config,
            });
            for i in 0..5 {
                let (start, len) = if i < 3 { (s.q_start, s.q_len) } else { (s.k_start, s.k_len) };
                assert_eq!(values(&alone[i]), values(&rows(&together[i], start, len)), "{}", NAMES[i]);
            }
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    let b = batch(9, 200, 330, &[span(0, 130, 0, 130), span(130, 70, 130, 200)], config(6, 2, 16, true));
    assert_same_on_any_pool("attention", || run(&b).iter().flat_map(values).copied().collect());
}

#[test]
fn bad_input_is_refused() {
    let b = batch(10, 6, 8, &[], config(4, 2, 3, true));
    let attend = |b: &Batch, spans: &[Span], config: Config| {
        forward(&mut poisoned(b.q.shape()), None, &b.q, &b.k, &b.v, &spans.into(), config)
    };
    let op = "attention forward";
    for bad in [span(5, 2, 0, 2), span(0, 2, 7, 2), span(usize::MAX, 2, 0, 2), span(0, 1, 1, usize::MAX)] {
        assert_op_error(attend(&b, &[bad], b.config), op, "within 6 queries and 8 keys");
    }
    assert_op_error(attend(&b, &[span(0, 3, 0, 2)], b.config), op, "at least as many keys");
    assert_op_error(attend(&b, &[span(0, 3, 0, 3), span(2, 1, 3, 1)], b.config), op, "share no query rows");
    assert_op_error(attend(&b, &[], Config { kv_heads: 3, ..b.config }), op, "3 key/value heads");
    assert_op_error(attend(&b, &[], Config { kv_heads: 0, ..b.config }), op, "0 key/value heads");
    assert_op_error(attend(&b, &[], Config { head_size: 0, ..b.config }), op, "head size 0");
    assert_op_error(attend(&b, &[], Config { heads: 2, ..b.config }), op, "q [6, 6]");
    let short = Tensor::zeros(&[7, 6]);
    let result = forward(&mut poisoned(b.q.shape()), None, &b.q, &b.k, &short, &vec![].into(), b.config);
    assert_op_error(result, op, "v [8, 6]");
    let (mut dq, mut dk, mut dv) = (b.q.clone(), b.k.clone(), b.k.clone());
    let lse = Tensor::zeros(&[6, 4]);
    let shared = [span(0, 1, 0, 3), span(1, 1, 2, 3)];
    attend(&b, &shared, b.config).unwrap();
    let shared = shared.as_slice().into();
    let result =
        backward(&mut dq, &mut dk, &mut dv, &b.dout, &b.q, &b.k, &b.v, &b.q, &lse, &shared, b.config);
    assert_op_error(result, "attention backward", "share no key rows");
}
