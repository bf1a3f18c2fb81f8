use mpa::ops::attention::{Config, Span, Spans, forward};
use mpa::tensor::{DType, Device, Tensor};

use crate::common::{Rng, Tolerance, assert_close, assert_op_error, f32_sum, to_f64};
// attention_hopper.rs has the kernels that Hopper would take.
use crate::device::{on_each_device_without_hopper as on_each_device, output, values, what};

pub fn config(heads: usize, kv_heads: usize, head_size: usize, causal: bool) -> Config {
    Config { heads, kv_heads, head_size, scale: 1.0 / (head_size as f32).sqrt(), causal }
}

/// Spans with these numbers of queries and keys, in another order in memory than in the list, with rows between them that are no one's.
fn spans(lens: &[(usize, usize)]) -> Vec<Span> {
    let (mut q_start, mut k_start) = (1, 1);
    let mut spans: Vec<Span> = Vec::new();
    for &(q_len, k_len) in lens.iter().rev() {
        spans.push(Span { q_start, q_len, k_start, k_len });
        (q_start, k_start) = (q_start + q_len + 1, k_start + k_len + 2);
    }
    spans.reverse();
    spans
}

/// q, k and v of a batch, as stored, and what attends to what.
#[derive(Clone)]
pub struct Batch {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub spans: Vec<Span>,
    pub config: Config,
}

/// Uniform in [-size, size) (q) and [-1, 1) (k, v); NaN in the rows that are no one's. After the last key memory ends.
pub fn batch(device: &Device, dtype: DType, lens: &[(usize, usize)], config: Config, size: f32) -> Batch {
    let mut rng = Rng(1);
    let spans = spans(lens);
    let mut matrix = |ranges: Vec<(usize, usize)>, after: usize, width: usize, size: f32| {
        let rows = ranges.iter().map(|(start, len)| start + len).max().unwrap_or(0) + after;
        let mut data = vec![f32::NAN; rows * width];
        for (start, len) in ranges {
            data[start * width..][..len * width].copy_from_slice(&rng.vec(len * width, size));
        }
        Tensor::from_vec(&[rows, width], data).unwrap().to_dtype(dtype).unwrap().to_device(device).unwrap()
    };
    let keys = || spans.iter().map(|s| (s.k_start, s.k_len)).collect();
    let queries = spans.iter().map(|s| (s.q_start, s.q_len)).collect();
    let q = matrix(queries, 1, config.heads * config.head_size, size);
    let k = matrix(keys(), 0, config.kv_heads * config.head_size, 1.0);
    let v = matrix(keys(), 0, config.kv_heads * config.head_size, 1.0);
    Batch { q, k, v, spans, config }
}

/// out and lse.
pub fn run(b: &Batch) -> (Vec<f32>, Vec<f32>) {
    let mut out = output(&b.q, b.q.shape());
    let mut lse = b.q.like_f32(&[b.q.rows(), b.config.heads]).unwrap();
    let spans: Spans = b.spans.as_slice().into();
    forward(&mut out, Some(&mut lse), &b.q, &b.k, &b.v, &spans, b.config).unwrap();
    let mut alone = output(&b.q, b.q.shape());
    forward(&mut alone, None, &b.q, &b.k, &b.v, &spans, b.config).unwrap();
    let bits = |t: &Tensor| values(t).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert!(bits(&alone) == bits(&out), "asking for lse must change nothing");
    (values(&out), values(&lse))
}

/// One head of one query in float64.
struct Want {
    row: usize,     // of [Tq, NH]
    queries: usize, // of its span
    lse: f64,
    out: Vec<f64>,
    /// sum_j p_j |v_j| and the root of sum_j (p_j v_j)^2.
    size: Vec<f64>,
    spread: Vec<f64>,
    /// Of |scores|.
    largest: f64,
}

fn reference(b: &Batch) -> Vec<Want> {
    let (c, hs) = (b.config, b.config.head_size);
    let (q, k, v) = (to_f64(&b.q), to_f64(&b.k), to_f64(&b.v));
    let mut all = Vec::new();
    for s in &b.spans {
        for (i, head) in (0..s.q_len).flat_map(|i| (0..c.heads).map(move |head| (i, head))) {
            let row = (s.q_start + i) * c.heads + head;
            let seen = if c.causal { i + 1 + s.k_len - s.q_len } else { s.k_len };
            let at = |j: usize| ((s.k_start + j) * c.kv_heads + head / (c.heads / c.kv_heads)) * hs;
            let dot = |j: usize| (0..hs).map(|d| q[row * hs + d] * k[at(j) + d]).sum::<f64>();
            let scores: Vec<f64> = (0..seen).map(|j| f64::from(c.scale) * dot(j)).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + scores.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
            let mut want = Want {
                row,
                queries: s.q_len,
                lse,
                out: vec![0.0; hs],
                size: vec![0.0; hs],
                spread: vec![0.0; hs],
                largest: 0.0,
            };
            for (j, score) in scores.iter().enumerate() {
                want.largest = want.largest.max(score.abs());
                for d in 0..hs {
                    let term = (score - lse).exp() * v[at(j) + d];
                    want.out[d] += term;
                    want.size[d] += term.abs();
                    want.spread[d] += term * term;
                }
            }
            want.spread.iter_mut().for_each(|x| *x = x.sqrt());
            all.push(want);
        }
    }
    all
}

/// Compares each element in units of its own tolerance, and expects the poison where there is no query.
///
/// A score of size s comes with an error of about eps s (its sum and the product with scale log2(e)), which its weight takes over, and so
/// does lse. In bf16 weights are rounded too, each on its own by up to 2^-8 of it with a deviation of 2^-8 / sqrt(3): five deviations of
/// the sum, or the sum of all if that is less (spans of `rounded` queries or more: decode keeps its weights in f32). Then comes the output's rounding, by 2^-8 of it.
/// An empty lse was not asked for.
#[track_caller]
pub fn check_against(name: &str, b: &Batch, (out, lse): &(Vec<f32>, Vec<f32>), rounded: usize) {
    let hs = b.config.head_size;
    let (mut out, mut lse) = (out.clone(), lse.clone());
    let sum = f32_sum(hs.max(64)).abs;
    let (narrow, eps) = (b.q.dtype() == DType::Bf16, f64::from(f32::EPSILON));
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for w in reference(b) {
        let scores = sum + 4.0 * eps * w.largest;
        for d in 0..hs {
            let mut unit = scores * w.size[d].max(1e-30);
            if narrow {
                let weights = (5.0 / 3f64.sqrt() * w.spread[d]).min(w.size[d]);
                unit += 2f64.powi(-8) * (w.out[d].abs() + if w.queries >= rounded { weights } else { 0.0 });
            }
            got.push((f64::from(out[w.row * hs + d]) / unit) as f32);
            want.push(w.out[d] / unit);
            out[w.row * hs + d] = f32::NAN;
        }
        if lse.is_empty() {
            continue;
        }
        if w.lse == f64::NEG_INFINITY {
            assert_eq!(lse[w.row], f32::NEG_INFINITY, "{name}: lse without keys");
        } else {
            got.push((f64::from(lse[w.row]) / (scores * w.largest.max(1.0))) as f32);
            want.push(w.lse / (scores * w.largest.max(1.0)));
        }
        lse[w.row] = f32::NAN;
    }
    // The quotients themselves are rounded to f32.
    assert_close(name, &got, &want, Tolerance { abs: 1.0, rel: eps });
    assert!(out.iter().chain(&lse).all(|x| x.is_nan()), "{name}: written outside the spans");
}

#[track_caller]
pub fn check(device: &Device, dtype: DType, lens: &[(usize, usize)], config: Config, size: f32) {
    let b = batch(device, dtype, lens, config, size);
    let name = what(&[&format!("{dtype} {config:?} {size}")]);
    check_against(&name, &b, &run(&b), 2);
}

#[test]
fn forward_matches_f64_for_every_head_size() {
    // Two tiles of queries with tails, several of keys; a span that is not there.
    const LENS: [(usize, usize); 3] = [(3, 5), (0, 0), (131, 197)];
    on_each_device(|device| {
        for head_size in [8, 16, 56, 64, 72, 80, 88, 96, 104, 120, 128] {
            for causal in [false, true] {
                check(device, DType::Bf16, &LENS, config(1, 1, head_size, causal), 4.0);
            }
        }
        for head_size in [1, 5, 16, 63, 64, 65, 72, 128, 130, 250, 256] {
            check(
                device,
                DType::F32,
                &[(3, 5), (0, 0), (35, 71)],
                config(1, 1, head_size, head_size % 2 == 0),
                4.0,
            );
        }
    });
}

#[test]
fn forward_matches_f64_at_the_edges_of_tiles() {
    on_each_device(|device| {
        for (dtype, edges) in [(DType::F32, [8, 32, 64]), (DType::Bf16, [32, 64, 128])] {
            let near: Vec<(usize, usize)> = edges
                .iter()
                .flat_map(|&n| [n - 1, n, n + 1])
                .map(|n| (n, n))
                .chain([(1, 1), (2, 2)])
                .collect();
            let more: Vec<(usize, usize)> = near.iter().map(|&(n, _)| (2, n + 1)).collect();
            for (head_size, lens) in [(64, &near), (64, &more), (128, &near), (128, &more)] {
                check(device, dtype, lens, config(1, 1, head_size, true), 4.0);
            }
            check(device, dtype, &near, config(1, 1, 64, false), 4.0);
        }
    });
}

/// Every span has at most one query: splits of 256 keys, none to three, full and with one key more or less.
const ONE_QUERY: [(usize, usize); 9] =
    [(1, 1), (1, 255), (0, 5), (1, 256), (1, 257), (1, 513), (0, 0), (1, 7), (1, 600)];

#[test]
fn decode_matches_f64_for_every_head_size() {
    on_each_device(|device| {
        for dtype in [DType::F32, DType::Bf16] {
            for head_size in [8, 16, 56, 64, 72, 80, 96, 120, 128] {
                check(device, dtype, &ONE_QUERY, config(1, 1, head_size, head_size % 16 == 0), 4.0);
            }
        }
        // Without kernels for one query.
        for head_size in [5, 132] {
            check(device, DType::F32, &ONE_QUERY, config(1, 1, head_size, true), 4.0);
        }
    });
}

#[test]
fn decode_matches_f64_for_every_group() {
    on_each_device(|device| {
        for dtype in [DType::F32, DType::Bf16] {
            for (heads, kv_heads) in [(3, 3), (4, 2), (6, 2), (5, 1), (8, 1), (18, 2)] {
                let config = config(heads, kv_heads, 64, false);
                check(device, dtype, &[(1, 0), (1, 3), (1, 290)], config, 4.0);
            }
            check(device, dtype, &[(1, 0), (0, 0)], config(2, 1, 64, false), 4.0);
        }
    });
}

#[test]
fn decode_and_forward_agree() {
    on_each_device(|device| {
        for dtype in [DType::F32, DType::Bf16] {
            let one = batch(device, dtype, &[(1, 300), (1, 40)], config(4, 2, 64, true), 4.0);
            // The same queries, each as the last of two: the first is a row of NaN, and the poison that is expected there.
            let two = |s: &Span| Span { q_start: s.q_start - 1, q_len: 2, ..*s };
            let two = Batch { spans: one.spans.iter().map(two).collect(), ..one.clone() };
            let (decoded, forwarded) = (run(&one), run(&two));
            check_against("decode", &one, &decoded, 2);
            check_against("forward", &one, &forwarded, 1);
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_ne!(bits(&decoded.1), bits(&forwarded.1), "there are two kernels");
        }
    });
}

#[test]
fn heads_in_groups_share_keys() {
    on_each_device(|device| {
        for dtype in [DType::F32, DType::Bf16] {
            for (heads, kv_heads) in [(3, 3), (4, 2), (6, 2), (5, 1)] {
                for causal in [false, true] {
                    check(device, dtype, &[(5, 5), (34, 70)], config(heads, kv_heads, 16, causal), 4.0);
                }
            }
        }
    });
}

#[test]
fn queries_without_keys_get_zeros() {
    on_each_device(|device| {
        for dtype in [DType::F32, DType::Bf16] {
            check(device, dtype, &[(3, 0), (0, 3), (2, 7)], config(2, 1, 64, false), 1.0);
            check(device, dtype, &[(130, 0), (0, 0)], config(2, 1, 64, false), 1.0);
            check(device, dtype, &[(0, 0), (0, 4)], config(2, 1, 64, true), 1.0);
            check(device, dtype, &[], config(2, 1, 64, true), 1.0);
        }
    });
}

#[test]
fn fewer_keys_than_queries_if_not_causal() {
    on_each_device(|device| {
        for dtype in [DType::F32, DType::Bf16] {
            check(device, dtype, &[(140, 9), (33, 1)], config(2, 1, 24, false), 4.0);
        }
    });
}

#[test]
fn huge_scores_stay_finite() {
    on_each_device(|device| {
        for dtype in [DType::F32, DType::Bf16] {
            for size in [1e2, 1e4] {
                // The last: two splits, whose largest scores lie far apart.
                for lens in [[(40, 130)], [(1, 130)], [(1, 300)]] {
                    let b = batch(device, dtype, &lens, config(1, 1, 8, true), size);
                    check_against("huge scores", &b, &run(&b), 2);
                    // Scores up to 1e9.
                    let more = Batch { config: Config { scale: 1e9 / 8.0 / size, ..b.config }, ..b };
                    assert!(run(&more).0[8..8 * (1 + lens[0].0)].iter().all(|x| x.is_finite()));
                }
            }
        }
    });
}

/// Rows of a matrix on its device.
pub fn rows(t: &Tensor, start: usize, len: usize) -> Tensor {
    let data = values(t)[start * t.cols()..(start + len) * t.cols()].to_vec();
    let part = Tensor::from_vec(&[len, t.cols()], data).unwrap();
    part.to_dtype(t.dtype()).unwrap().to_device(&t.device()).unwrap()
}

#[test]
fn a_span_has_the_same_bits_alone_and_in_a_batch() {
    on_each_device(|device| {
        for dtype in [DType::F32, DType::Bf16] {
            for lens in [[(9, 9), (1, 270), (150, 170)], [(1, 9), (1, 256), (1, 700)]] {
                let all = batch(device, dtype, &lens, config(2, 1, 16, true), 4.0);
                let together = run(&all);
                for (s, (q_len, k_len)) in all.spans.iter().zip(lens) {
                    let alone = run(&Batch {
                        q: rows(&all.q, s.q_start, q_len),
                        k: rows(&all.k, s.k_start, k_len),
                        v: rows(&all.v, s.k_start, k_len),
                        spans: vec![Span { q_start: 0, q_len, k_start: 0, k_len }],
                        config: all.config,
                    });
                    assert_eq!(alone.0, together.0[s.q_start * 32..(s.q_start + q_len) * 32]);
                    assert_eq!(alone.1, together.1[s.q_start * 2..(s.q_start + q_len) * 2]);
                }
            }
        }
    });
}

#[test]
fn what_has_no_kernel_is_refused() {
    on_each_device(|device| {
        let op = "attention forward";
        let attend = |dtype, config: Config| {
            let b = batch(device, dtype, &[(2, 2)], config, 1.0);
            forward(
                &mut output(&b.q, b.q.shape()),
                None,
                &b.q,
                &b.k,
                &b.v,
                &b.spans.as_slice().into(),
                config,
            )
        };
        assert_op_error(attend(DType::Bf16, config(1, 1, 12, true)), op, "a multiple of 8");
        assert_op_error(attend(DType::Bf16, config(1, 1, 136, true)), op, "up to 128");
        assert_op_error(attend(DType::F32, config(1, 1, 257, true)), op, "up to 256");
        assert_op_error(attend(DType::F16, config(1, 1, 64, true)), op, "all f32 or all bf16");
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let config = Config { scale, ..config(1, 1, 8, true) };
            assert_op_error(attend(DType::F32, config), op, "a finite scale above 0");
        }
        let b = batch(device, DType::Bf16, &[(2, 2)], config(1, 1, 8, true), 1.0);
        let mut lse = output(&b.q, &[b.q.rows(), 1]);
        let mut out = output(&b.q, b.q.shape());
        let result =
            forward(&mut out, Some(&mut lse), &b.q, &b.k, &b.v, &b.spans.as_slice().into(), b.config);
        assert_op_error(result, op, "lse in f32");
    });
}
