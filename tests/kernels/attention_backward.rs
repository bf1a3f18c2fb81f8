use mpa::ops::attention::{Config, Span, backward};
use mpa::tensor::{DType, Device, Tensor};

use crate::attention::{Batch, batch, config, rows};
use crate::common::{
    Rng, Tolerance, assert_close, assert_op_error, dot, f32_sum, finite_differences, to_f64,
};
// attention_backward_hopper.rs has the kernels that Hopper would take.
use crate::device::{DTYPES, on_each_device_without_hopper as on_each_device, output, values, what};

pub const NAMES: [&str; 3] = ["dq", "dk", "dv"];

/// A batch and what its forward left, with the gradient of its output.
#[derive(Clone)]
pub struct Case {
    pub b: Batch,
    pub out: Tensor,
    pub lse: Tensor,
    pub dout: Tensor,
}

/// NaN in the rows that are no one's, as in the batch.
pub fn case(b: Batch) -> Case {
    let mut rng = Rng(2);
    let stored = |shape: &[usize], data: Vec<f32>, dtype| {
        let t = Tensor::from_vec(shape, data).unwrap();
        t.to_dtype(dtype).unwrap().to_device(&b.q.device()).unwrap()
    };
    let (mut out, mut lse) = (vec![f32::NAN; b.q.len()], vec![f32::NAN; b.q.rows() * b.config.heads]);
    let [q, k, v] = [&b.q, &b.k, &b.v].map(to_f64);
    for h in forward(&b, &q, &k, &v) {
        lse[h.row] = h.lse as f32;
        let hs = b.config.head_size;
        h.out.iter().zip(&mut out[h.row * hs..]).for_each(|(from, to)| *to = *from as f32);
    }
    let dout = values(&b.q)
        .into_iter()
        .map(|x| if x.is_nan() { f32::NAN } else { rng.uniform() as f32 * 2.0 - 1.0 });
    Case {
        out: stored(b.q.shape(), out, b.q.dtype()),
        lse: stored(&[b.q.rows(), b.config.heads], lse, DType::F32),
        dout: stored(b.q.shape(), dout.collect(), b.q.dtype()),
        b,
    }
}

/// dq, dk, dv.
pub fn run(c: &Case) -> [Vec<f32>; 3] {
    let Case { b, out, lse, dout } = c;
    let [mut dq, mut dk, mut dv] = [&b.q, &b.k, &b.v].map(|t| output(t, t.shape()));
    let spans = b.spans.as_slice().into();
    backward(&mut dq, &mut dk, &mut dv, dout, &b.q, &b.k, &b.v, out, lse, &spans, b.config).unwrap();
    [dq, dk, dv].map(|t| values(&t))
}

/// One head of one query, in float64.
struct Head {
    row: usize, // of [Tq, NH]
    /// Where the keys that it sees lie in k, and their scores.
    keys: Vec<(usize, f64)>,
    lse: f64,
    out: Vec<f64>,
}

fn forward(b: &Batch, q: &[f64], k: &[f64], v: &[f64]) -> Vec<Head> {
    let (c, hs) = (b.config, b.config.head_size);
    let mut all = Vec::new();
    for s in &b.spans {
        for (i, head) in (0..s.q_len).flat_map(|i| (0..c.heads).map(move |head| (i, head))) {
            let row = (s.q_start + i) * c.heads + head;
            let seen = if c.causal { i + 1 + s.k_len - s.q_len } else { s.k_len };
            let key = |j: usize| {
                let at = ((s.k_start + j) * c.kv_heads + head / (c.heads / c.kv_heads)) * hs;
                (at, f64::from(c.scale) * dot(&q[row * hs..][..hs], &k[at..][..hs]))
            };
            let keys: Vec<(usize, f64)> = (0..seen).map(key).collect();
            let max = keys.iter().fold(f64::NEG_INFINITY, |m, x| m.max(x.1));
            let lse = max + keys.iter().map(|x| (x.1 - max).exp()).sum::<f64>().ln();
            let mut out = vec![0.0; hs];
            for (at, score) in &keys {
                for d in 0..hs {
                    out[d] += (score - lse).exp() * v[at + d];
                }
            }
            all.push(Head { row, keys, lse, out });
        }
    }
    all
}

/// What an element is a sum of: the sum, that of absolute values, that of squares; and for a gradient through scores, of its terms' size
/// where dP - rowsum(dO O) is 1.
#[derive(Clone, Copy, Default)]
pub struct Sum {
    value: f64,
    size: f64,
    squares: f64,
    unit: f64,
}

impl Sum {
    fn add(&mut self, term: f64, unit: f64) {
        self.value += term;
        self.size += term.abs();
        self.squares += term * term;
        self.unit += unit.abs();
    }
}

/// dq, dk, dv in float64, from out as it is stored, and the largest |score| and |lse|. None where there is no row.
pub fn reference(c: &Case) -> ([Vec<Option<Sum>>; 3], f64) {
    let Config { heads, kv_heads, head_size: hs, scale, .. } = c.b.config;
    let scale = f64::from(scale);
    let [q, k, v, dout, out] = [&c.b.q, &c.b.k, &c.b.v, &c.dout, &c.out].map(to_f64);
    let mut sums = [q.len(), k.len(), v.len()].map(|n| vec![None; n]);
    for s in &c.b.spans {
        for (i, start, len, width) in [
            (0, s.q_start, s.q_len, heads),
            (1, s.k_start, s.k_len, kv_heads),
            (2, s.k_start, s.k_len, kv_heads),
        ] {
            sums[i][start * width * hs..][..len * width * hs].fill(Some(Sum::default()));
        }
    }
    let mut largest = 0.0f64;
    let [dq, dk, dv] = &mut sums;
    let add = |to: &mut Option<Sum>, term, unit| to.as_mut().unwrap().add(term, unit);
    for h in forward(&c.b, &q, &k, &v) {
        let at = h.row * hs;
        let (q, dout) = (&q[at..][..hs], &dout[at..][..hs]);
        let delta = dot(dout, &out[at..][..hs]);
        if h.lse.is_finite() {
            largest = largest.max(h.lse.abs());
        }
        for &(key, score) in &h.keys {
            largest = largest.max(score.abs());
            let p = (score - h.lse).exp();
            let ds = scale * p * (dot(dout, &v[key..][..hs]) - delta);
            for d in 0..hs {
                add(&mut dq[at + d], ds * k[key + d], scale * p * k[key + d]);
                add(&mut dk[key + d], ds * q[d], scale * p * q[d]);
                add(&mut dv[key + d], p * dout[d], 0.0);
            }
        }
    }
    (sums, largest)
}

/// Compares each element in units of its own tolerance, and expects the poison where there is no row.
///
/// A score of size s comes with an error of about eps s, and so does lse: P is off by that share. dP and rowsum(dO O) are sums of HS numbers
/// below 1: each is off by f32_sum(HS), with a weight of P. In bf16 P and dS are rounded, each on its own by up to 2^-8 of it with a deviation
/// of 2^-8 / sqrt(3): five deviations of the sum, or the sum of all if that is less. Then comes the output's rounding, by 2^-8 of it.
#[track_caller]
pub fn check_case(name: &str, c: &Case) {
    let (want, largest) = reference(c);
    let (sum, eps) = (f32_sum(c.b.config.head_size.max(64)).abs, f64::from(f32::EPSILON));
    for ((name_of, got), want) in NAMES.iter().zip(run(c)).zip(&want) {
        let name = format!("{name}: {name_of}");
        let (mut shares, mut wanted) = (Vec::new(), Vec::new());
        for (got, want) in got.iter().zip(want) {
            let Some(w) = want else {
                assert!(got.is_nan(), "{name}: written outside the spans");
                continue;
            };
            let mut unit = ((sum + 8.0 * eps * largest) * w.size + 2.0 * sum * w.unit).max(1e-30);
            if c.b.q.dtype() == DType::Bf16 {
                unit += 2f64.powi(-8) * (w.value.abs() + (5.0 * (w.squares / 3.0).sqrt()).min(w.size));
            }
            shares.push((f64::from(*got) / unit) as f32);
            wanted.push(w.value / unit);
        }
        // The quotients themselves are rounded to f32.
        assert_close(&name, &shares, &wanted, Tolerance { abs: 1.0, rel: eps });
    }
}

#[track_caller]
pub fn check(device: &Device, dtype: DType, lens: &[(usize, usize)], config: Config, size: f32) {
    let name = what(&[&format!("{dtype} {config:?} {size}")]);
    check_case(&name, &case(batch(device, dtype, lens, config, size)));
}

#[test]
fn float64_gradients_and_the_kernels_match_finite_differences() {
    on_each_device(|device| {
        let c = case(batch(device, DType::F32, &[(3, 5), (1, 1), (2, 4)], config(4, 2, 3, true), 1.0));
        let b = &c.b;
        let inside =
            |t: &Tensor| to_f64(t).iter().map(|x| if x.is_nan() { 0.0 } else { *x }).collect::<Vec<_>>();
        let [q, k, v, dout] = [&b.q, &b.k, &b.v, &c.dout].map(inside);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
            forward(b, q, k, v).iter().map(|h| dot(&h.out, &dout[h.row * 3..][..3])).sum()
        };
        let differences = [
            finite_differences(&q, |x| loss(x, &k, &v)),
            finite_differences(&k, |x| loss(&q, x, &v)),
            finite_differences(&v, |x| loss(&q, &k, x)),
        ];
        for ((got, want), differences) in run(&c).iter().zip(reference(&c).0).zip(differences) {
            for ((got, want), difference) in got.iter().zip(want).zip(differences) {
                let Some(want) = want else { continue };
                // out is stored in f32.
                assert!((want.value - difference).abs() < 1e-6, "{} {difference}", want.value);
                assert!((f64::from(*got) - difference).abs() < 4e-6, "{got} {difference}");
            }
        }
    });
}

#[test]
fn gradients_match_f64_for_every_head_size() {
    // Two tiles of keys with tails, several of queries (two that a block owns where it is 131); a span that is not there, one of length 1.
    let lens = |n| [(3, 5), (0, 0), (1, 1), (n, n + 8)];
    on_each_device(|device| {
        for (i, head_size) in [8, 16, 56, 64, 72, 80, 88, 96, 104, 120, 128].into_iter().enumerate() {
            let n = if head_size % 64 == 0 { 131 } else { 67 };
            check(device, DType::Bf16, &lens(n), config(1, 1, head_size, i % 2 == 0), 4.0);
        }
        for (i, head_size) in [1, 5, 16, 63, 64, 65, 72, 128, 130, 250, 256].into_iter().enumerate() {
            check(device, DType::F32, &lens(35), config(1, 1, head_size, i % 2 == 0), 4.0);
        }
    });
}

#[test]
fn gradients_match_f64_at_the_edges_of_tiles() {
    on_each_device(|device| {
        for (dtype, edges) in [(DType::F32, [8, 16, 32]), (DType::Bf16, [32, 64, 128])] {
            let near: Vec<usize> = edges.iter().flat_map(|&n| [n - 1, n, n + 1]).chain([1, 2]).collect();
            let square: Vec<(usize, usize)> = near.iter().map(|&n| (n, n)).collect();
            check(device, dtype, &square, config(1, 1, 8, true), 4.0);
            // Few queries, late in their span; all keys; tiles of other kernels.
            let late: Vec<(usize, usize)> = near.iter().map(|&n| (n.div_ceil(9), n + 1)).collect();
            let short: Vec<(usize, usize)> = square.into_iter().filter(|l| l.0 < 70).collect();
            check(device, dtype, &late, config(1, 1, 8, true), 4.0);
            check(device, dtype, &short, config(1, 1, 8, false), 4.0);
            for head_size in [72, 128] {
                check(device, dtype, &short, config(1, 1, head_size, true), 4.0);
            }
        }
    });
}

#[test]
fn heads_in_groups_add_up() {
    on_each_device(|device| {
        for dtype in DTYPES {
            for (heads, kv_heads) in [(3, 3), (4, 2), (6, 2), (5, 1)] {
                for causal in [false, true] {
                    check(
                        device,
                        dtype,
                        &[(5, 5), (0, 2), (34, 70)],
                        config(heads, kv_heads, 16, causal),
                        4.0,
                    );
                }
            }
            // More columns of keys than a block of threads.
            check(device, dtype, &[(2, 3)], config(6, 3, 56, true), 4.0);
        }
    });
}

#[test]
fn no_keys_and_no_queries_give_zeros() {
    on_each_device(|device| {
        for dtype in DTYPES {
            for (heads, causal) in [(1, false), (2, false), (2, true)] {
                let config = config(heads, 1, 24, causal);
                let lens = if causal {
                    vec![(0, 3), (2, 7), (0, 140)]
                } else {
                    vec![(3, 0), (0, 3), (2, 7), (140, 0)]
                };
                check(device, dtype, &lens, config, 1.0);
                check(device, dtype, &[(0, 3), (0, 0)], config, 1.0);
                check(device, dtype, &[], config, 1.0);
            }
            check(device, dtype, &[(3, 0)], config(2, 1, 8, false), 1.0);
        }
    });
}

#[test]
fn fewer_keys_than_queries_if_not_causal() {
    on_each_device(|device| {
        for dtype in DTYPES {
            check(device, dtype, &[(140, 9), (33, 1)], config(2, 1, 24, false), 4.0);
        }
    });
}

/// The same with keys and queries of one sign: every score is far below 0, as lse is.
pub fn opposed(b: &Batch) -> Batch {
    let signed = |t: &Tensor, sign: f32| {
        let data = values(t).iter().map(|x| x.abs() * sign).collect();
        let t = Tensor::from_vec(t.shape(), data).unwrap().to_dtype(t.dtype()).unwrap();
        t.to_device(&b.q.device()).unwrap()
    };
    Batch { q: signed(&b.q, 1.0), k: signed(&b.k, -1.0), ..b.clone() }
}

#[test]
fn huge_scores_stay_finite() {
    on_each_device(|device| {
        for dtype in DTYPES {
            for size in [1e2, 1e4] {
                let b = batch(device, dtype, &[(40, 45), (3, 3)], config(2, 1, 8, true), size);
                check_case("scores far below 0", &case(opposed(&b)));
                check_case("huge scores", &case(b.clone()));
                // Scores up to 1e10, rounded by up to 1000: weights mean nothing, but are at most 1.
                let config = Config { scale: 1e10 / 8.0 / size, ..b.config };
                for b in [opposed(&b), b] {
                    let c = case(Batch { config, ..b });
                    for (got, want) in run(&c).iter().zip(reference(&c).0) {
                        assert!(got.iter().zip(want).all(|(g, w)| g.is_finite() == w.is_some()));
                    }
                }
            }
        }
    });
}

#[test]
fn nan_is_not_swallowed() {
    on_each_device(|device| {
        for dtype in DTYPES {
            let c = case(batch(device, dtype, &[(2, 2)], config(1, 1, 8, true), 1.0));
            let mut lse = values(&c.lse);
            lse[c.b.spans[0].q_start + 1] = f32::NAN;
            let lse = Tensor::from_vec(c.lse.shape(), lse).unwrap().to_device(device).unwrap();
            let [dq, dk, dv] = run(&Case { lse, ..c });
            assert!(dq[8..16].iter().all(|x| x.is_finite()) && dq[16..24].iter().all(|x| x.is_nan()));
            assert!(dk[8..].iter().chain(&dv[8..]).all(|x| x.is_nan()), "the second query sees both keys");
        }
    });
}

pub fn bits(results: &[Vec<f32>; 3]) -> Vec<u32> {
    results.iter().flatten().map(|x| x.to_bits()).collect()
}

/// The case of one of its spans.
pub fn alone(all: &Case, s: Span) -> Case {
    let queries = |t: &Tensor| rows(t, s.q_start, s.q_len);
    let keys = |t: &Tensor| rows(t, s.k_start, s.k_len);
    let Case { b, out, lse, dout } = all;
    let spans = vec![Span { q_start: 0, k_start: 0, ..s }];
    let b = Batch { q: queries(&b.q), k: keys(&b.k), v: keys(&b.v), spans, config: b.config };
    Case { b, out: queries(out), lse: queries(lse), dout: queries(dout) }
}

#[test]
fn the_same_bits_twice_and_alone_as_in_a_batch() {
    on_each_device(|device| {
        for dtype in DTYPES {
            let all = case(batch(device, dtype, &[(9, 9), (1, 70), (130, 135)], config(4, 2, 16, true), 4.0));
            let together = run(&all);
            assert_eq!(bits(&together), bits(&run(&all)));
            for s in &all.b.spans {
                let alone = run(&alone(&all, *s));
                for (i, alone) in alone.iter().enumerate() {
                    let (start, len, width) =
                        if i == 0 { (s.q_start, s.q_len, 64) } else { (s.k_start, s.k_len, 32) };
                    assert_eq!(alone, &together[i][start * width..(start + len) * width], "{}", NAMES[i]);
                }
            }
        }
    });
}

#[test]
fn what_has_no_kernel_is_refused() {
    on_each_device(|device| {
        let op = "attention backward";
        let propagate = |dtype, config: Config, lse: DType| {
            let c = case(batch(device, dtype, &[(2, 2)], config, 1.0));
            let [mut dq, mut dk, mut dv] = [&c.b.q, &c.b.k, &c.b.v].map(|t| output(t, t.shape()));
            let (b, spans) = (&c.b, c.b.spans.as_slice().into());
            let lse = c.lse.to_dtype(lse).unwrap().to_device(device).unwrap();
            backward(&mut dq, &mut dk, &mut dv, &c.dout, &b.q, &b.k, &b.v, &c.out, &lse, &spans, config)
        };
        let f32 = DType::F32;
        propagate(DType::Bf16, config(1, 1, 16, true), f32).unwrap();
        assert_op_error(propagate(DType::Bf16, config(1, 1, 12, true), f32), op, "a multiple of 8");
        assert_op_error(propagate(DType::Bf16, config(1, 1, 136, true), f32), op, "up to 128");
        assert_op_error(propagate(f32, config(1, 1, 257, true), f32), op, "up to 256");
        assert_op_error(propagate(DType::F16, config(1, 1, 64, true), f32), op, "all f32 or all bf16");
        assert_op_error(propagate(DType::Bf16, config(1, 1, 8, true), DType::Bf16), op, "lse in f32");
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let config = Config { scale, ..config(1, 1, 8, true) };
            assert_op_error(propagate(f32, config, f32), op, "a finite scale above 0");
        }
    });
}
