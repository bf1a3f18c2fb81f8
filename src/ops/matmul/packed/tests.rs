//! Every kernel that this processor can run, against float64 and against exact integers; which one an op gets depends on the machine.

use std::sync::Mutex;

use half::{bf16, f16};

use super::{float, int8};
use crate::random;
use crate::tensor::Elements;

/// Numbers in [-1, 1) that differ from each other.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let number = |i| (random::mix(seed, &[i as u64]) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    (0..len).map(number).collect()
}

/// Tails of every length: rows around a strip, columns around a vector and a panel, odd k, more than a panel is deep, more than a chunk of rows.
fn shapes() -> Vec<[usize; 3]> {
    let mut shapes: Vec<[usize; 3]> = (0..=30).map(|m| [m, 1 + m * 7 % 40, 1 + m * 5 % 37]).collect();
    shapes.extend((1..=66).map(|n| [2, n, 19]));
    shapes.extend((0..=70).map(|k| [3, 5, k]));
    shapes.extend((0..=40).map(|n| [1, n, n * 17]));
    shapes.extend([[1, 3, 259], [15, 33, 1030], [3, 17, 2100], [1100, 9, 6], [700, 70, 33]]);
    shapes
}

/// All elements of a product, each of which has to come once.
fn gather<A: Copy + Send>(
    m: usize,
    n: usize,
    run: impl FnOnce(&(dyn Fn(usize, usize, usize, &mut [A]) + Sync)),
) -> Vec<A> {
    let all = Mutex::new(vec![None; m * n]);
    run(&|_, row, col, sums| {
        for (i, &sum) in sums.iter().enumerate() {
            assert!(all.lock().unwrap()[row * n + col + i].replace(sum).is_none(), "twice");
        }
    });
    all.into_inner().unwrap().into_iter().map(|sum| sum.expect("an element that never came")).collect()
}

fn floats(method: float::Method, x: &[f32], w: &Elements, [m, n, k]: [usize; 3]) -> Vec<f32> {
    gather(m, n, |finish| float::products_by(method, x, k, m, &[(*w, n)], &finish))
}

/// One running sum of k products, each rounded to nearest or, in half of the steps, cut off: at most k roundings of k sums up to sum |x w|.
#[track_caller]
fn assert_products(got: &[f32], x: &[f32], w: &[f32], [m, n, k]: [usize; 3], what: &str) {
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(w[j * k + p]));
            let (want, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
            let allowed = (k + 1) as f64 * f64::from(f32::EPSILON) * size;
            let off = (f64::from(got[i * n + j]) - want).abs();
            assert!(off <= allowed, "{what} [{m}, {n}, {k}] at ({i}, {j}): {} for {want}", got[i * n + j]);
        }
    }
}

fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
}

#[test]
fn f32_and_f16_weights() {
    for [m, n, k] in shapes() {
        let (x, w) = (numbers(1, m * k), numbers(2, n * k));
        let narrow: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
        let wide: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
        for (i, method) in float::methods(false).enumerate() {
            let got = floats(method, &x, &Elements::F32(&w), [m, n, k]);
            assert_products(&got, &x, &w, [m, n, k], &format!("f32, method {i}"));
            let got = floats(method, &x, &Elements::F16(&narrow), [m, n, k]);
            assert_products(&got, &x, &wide, [m, n, k], &format!("f16, method {i}"));
        }
    }
}

#[test]
fn bf16_weights_by_rounded_activations() {
    for [m, n, k] in shapes() {
        let (x, w) = (numbers(3, m * k), rounded(&numbers(4, n * k)));
        let narrow: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        for (i, method) in float::methods(true).enumerate() {
            let got = floats(method, &x, &Elements::Bf16(&narrow), [m, n, k]);
            assert_products(&got, &rounded(&x), &w, [m, n, k], &format!("bf16, method {i}"));
        }
    }
}

#[test]
fn rounding_to_bf16_is_to_nearest_even() {
    // One column that is 1: y is x, rounded. All exponents (subnormal numbers are zeros to some processors) and fractions around every tie.
    let x: Vec<f32> =
        (0x0080_0000..0x7f80_0000u32).step_by(0x1777).map(f32::from_bits).chain([-1.5, f32::MAX]).collect();
    let ties = (0..512u32)
        .flat_map(|i| [0x7fff, 0x8000, 0x8001].map(|low| f32::from_bits(0x3f80_0000 + (i << 16) + low)));
    let x: Vec<f32> = x.into_iter().chain(ties).collect();
    for method in float::methods(true) {
        for (k, at) in [(1, 0), (3, 2), (2, 1)] {
            let mut spread = vec![0.0; x.len() * k];
            spread[at..].iter_mut().step_by(k).zip(&x).for_each(|(to, &x)| *to = x);
            let mut w = vec![bf16::ZERO; k];
            w[at] = bf16::ONE;
            // 0 x infinity would be NaN: what rounds to infinity has no neighbour here but zeros.
            let got = floats(method, &spread, &Elements::Bf16(&w), [x.len(), 1, k]);
            let want = rounded(&x);
            assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row_and_column() {
    let [m, n, k] = [17, 35, 9];
    let (mut x, mut w) = (numbers(5, m * k), rounded(&numbers(6, n * k)));
    x[4 * k + 3] = f32::NAN;
    // A NaN whose upper half alone is an infinity.
    x[5 * k + 8] = f32::from_bits(0x7f80_0001);
    x[6 * k + 1] = f32::INFINITY;
    w[33 * k + 8] = f32::NAN;
    w[2 * k] = f32::NEG_INFINITY;
    let narrow: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
    let f32s = float::methods(false).map(|method| (method, Elements::F32(&w)));
    for (method, w) in f32s.chain(float::methods(true).map(|method| (method, Elements::Bf16(&narrow)))) {
        let got = floats(method, &x, &w, [m, n, k]);
        for (at, y) in got.iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let nan = i == 4 || i == 5 || j == 33 || (i, j) == (6, 2);
            assert_eq!(y.is_nan(), nan, "({i}, {j}): {y}");
            assert_eq!(y.is_finite(), !nan && i != 6 && j != 2, "({i}, {j}): {y}");
        }
    }
}

#[test]
fn extreme_magnitudes() {
    let k = 64;
    // Products and sums of powers of two and small integers are exact; the largest is near the end of the range.
    let x: Vec<f32> = (0..5 * k).map(|i| (i % 7) as f32 * 2f32.powi(60)).collect();
    for scale in [2f32.powi(-120), 2f32.powi(55)] {
        let w: Vec<f32> = (0..3 * k).map(|i| (i % 5) as f32 * scale).collect();
        let narrow: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let f32s = float::methods(false).map(|method| (method, Elements::F32(&w)));
        for (method, elements) in
            f32s.chain(float::methods(true).map(|method| (method, Elements::Bf16(&narrow))))
        {
            let got = floats(method, &x, &elements, [5, 3, k]);
            let exact = |i: usize, j: usize| -> f64 {
                (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(w[j * k + p])).sum()
            };
            assert!(got.iter().enumerate().all(|(at, &y)| f64::from(y) == exact(at / 3, at % 3)));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_among_any_number_of_rows_and_columns() {
    for k in [33, 700] {
        let (x, w) = (numbers(7, 1100 * k), numbers(8, 70 * k));
        let narrow: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let f32s = float::methods(false).map(|method| (method, Elements::F32(&w)));
        for (method, elements) in
            f32s.chain(float::methods(true).map(|method| (method, Elements::Bf16(&narrow))))
        {
            let all = floats(method, &x, &elements, [1100, 70, k]);
            for m in (1..=17).chain([29, 341, 1024, 1025]) {
                assert_eq!(
                    floats(method, &x[..m * k], &elements, [m, 70, k]),
                    all[..m * 70],
                    "{m} rows, k {k}"
                );
            }
        }
        for (method, n) in float::methods(false).flat_map(|m| [1, 9, 16, 17, 33].map(|n| (m, n))) {
            let few = floats(method, &x[..5 * k], &Elements::F32(&w[..n * k]), [5, n, k]);
            let all = floats(method, &x[..5 * k], &Elements::F32(&w), [5, 70, k]);
            assert!(few.iter().enumerate().all(|(at, y)| y.to_bits() == all[at / n * 70 + at % n].to_bits()));
        }
    }
}

#[test]
fn fused_kernels_give_the_same_bits() {
    let [m, n, k] = [19, 45, 700];
    let (x, w) = (numbers(9, m * k), numbers(10, n * k));
    let fused = float::methods(false).count() - 1;
    let all: Vec<_> = float::methods(false)
        .take(fused)
        .map(|method| floats(method, &x, &Elements::F32(&w), [m, n, k]))
        .collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn weights_of_several_kinds_share_activations() {
    let [m, k] = [3, 40];
    let (x, w) = (numbers(11, m * k), rounded(&numbers(12, 20 * k)));
    let narrow: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
    let weights = [
        (Elements::F32(&w[..7 * k]), 7),
        (Elements::Bf16(&narrow), 20),
        (Elements::Bf16(&narrow[..k]), 1),
        (Elements::F32(&w), 20),
    ];
    let got = Mutex::new(weights.map(|(_, n)| vec![f32::NAN; m * n]));
    float::products(&x, k, m, &weights, &|i, row, col, sums: &mut [f32]| {
        got.lock().unwrap()[i][row * weights[i].1 + col..][..sums.len()].copy_from_slice(sums);
    });
    for ((weight, n), got) in weights.iter().zip(got.into_inner().unwrap()) {
        let method = float::methods(matches!(weight, Elements::Bf16(_))).next().unwrap();
        assert_eq!(got, floats(method, &x, weight, [m, *n, k]));
    }
}

#[test]
fn int8_is_exact_by_every_method() {
    let bytes = |seed, len| -> Vec<i8> {
        (0..len).map(|i| (random::mix(seed, &[i as u64]) % 255) as i8).map(|v| v.max(-127)).collect()
    };
    let mut cases: Vec<_> =
        shapes().into_iter().map(|[m, n, k]| ([m, n, k], bytes(1, m * k), bytes(2, n * k))).collect();
    // The largest sums: 127^2 a product, of either sign, over the longest rows.
    let long = 1 << 17;
    let signs: Vec<i8> = (0..3 * long).map(|i| if i / long == 1 { -127 } else { 127 }).collect();
    cases.push(([2, 3, long], vec![-127; 2 * long], signs));
    for ([m, n, k], x, w) in cases {
        let dot = |i: usize, j: usize| -> i64 {
            (0..k).map(|p| i64::from(x[i * k + p]) * i64::from(w[j * k + p])).sum()
        };
        for method in int8::methods() {
            let got = gather(m, n, |finish| int8::products_by(method, &x, k, m, &[(&w, n)], &finish));
            for (at, &y) in got.iter().enumerate() {
                assert_eq!(i64::from(y), dot(at / n, at % n), "[{m}, {n}, {k}] at {at}");
            }
        }
    }
}

#[test]
fn any_pool_gives_the_same() {
    let [m, n, k] = [600, 300, 100];
    let (x, w) = (numbers(13, m * k), rounded(&numbers(14, n * k)));
    let narrow: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
    for method in float::methods(true) {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| floats(method, &x, &Elements::Bf16(&narrow), [m, n, k]))
        };
        let one = on(1);
        assert_eq!(on(2), one);
        assert_eq!(on(3), one);
    }
}
