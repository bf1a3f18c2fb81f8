use mpa::ops::linear::{backward_bias, backward_input, backward_weight};
use mpa::tensor::{DType, Tensor};

use crate::common::{Rng, Tolerance, assert_close, assert_op_error, running_sum, to_f64};
use crate::device::{DTYPES, TINY, on_each, on_each_device, output, random, rounded_sum, values, what};

/// The product of a [M, K] and b [K, N] in float64, given by their elements.
fn product(
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    (0..m * n).map(|i| (0..k).map(|p| a(i / n, p) * b(p, i % n)).sum()).collect()
}

/// One running sum of `n` terms, rounded to `dtype`.
fn one_sum(dtype: DType, n: usize) -> Tolerance {
    let rounded = rounded_sum(dtype, n, 1.0);
    Tolerance { abs: rounded.abs.max(running_sum(n).abs), ..rounded }
}

fn plus(a: Vec<f64>, b: Vec<f64>) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// M, N, K of the layer: one of each, edges of tiles on every side, depths shorter and longer than the pipeline, aligned and not, odd widths.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (3, 5, 7),
    (17, 65, 40),
    (64, 64, 64),
    (65, 66, 264),
    (70, 136, 72),
    (33, 7, 129),
    (264, 16, 8),
    (108, 33, 34),
];

#[test]
fn input_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for (m, n, k) in SHAPES {
            for dtype in DTYPES {
                for scale in if m < 10 { [1e-4, 1e4].as_slice() } else { &[1.0] }.iter().copied() {
                    let dy = random(&mut rng, device, dtype, &[m, n], scale);
                    let weight = random(&mut rng, device, dtype, &[n, k], 1.0 / scale);
                    let (d, w) = (to_f64(&dy), to_f64(&weight));
                    let want = product((m, k, n), |i, p| d[i * n + p], |p, j| w[p * k + j]);
                    let name = what(&[&"dx", &m, &n, &k, &dtype]);
                    let check = |mut dx: Tensor| {
                        let tolerance = one_sum(dx.dtype(), n + 1);
                        backward_input(&mut dx, &dy, &weight, false).unwrap();
                        assert_close(&name, &values(&dx), &want, tolerance);
                        let before = to_f64(&dx);
                        backward_input(&mut dx, &dy, &weight, true).unwrap();
                        assert_close(&name, &values(&dx), &plus(before, want.clone()), tolerance);
                    };
                    check(output(&dy, &[m, k]));
                    check(dy.like_f32(&[m, k]).unwrap());
                }
            }
        }
    });
}

#[test]
fn weight_is_added_to_and_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        for (m, n, k) in SHAPES {
            for dtype in DTYPES {
                let dy = random(&mut rng, device, dtype, &[m, n], 1.0);
                let x = random(&mut rng, device, dtype, &[m, k], 1.0);
                let mut dweight = random(&mut rng, device, DType::F32, &[n, k], 1.0);
                let (d, of_x) = (to_f64(&dy), to_f64(&x));
                let sum = product((n, k, m), |i, p| d[p * n + i], |p, j| of_x[p * k + j]);
                let want = plus(to_f64(&dweight), sum);
                backward_weight(&mut dweight, &dy, &x).unwrap();
                let name = what(&[&"dweight", &m, &n, &k, &dtype]);
                assert_close(&name, &values(&dweight), &want, one_sum(DType::F32, m + 1));
            }
        }
    });
}

/// Tiles of 128 x 128: one or several, aligned or not.
#[test]
fn large_tiles_match_f64() {
    const SHAPES: [(usize, usize, usize); 7] =
        [(9, 40, 163), (129, 7, 81), (1, 1, 1), (64, 64, 32), (130, 43, 129), (65, 128, 264), (3, 0, 4)];
    on_each(TINY, |device| {
        let mut rng = Rng(3);
        for ((m, n, k), dtype) in SHAPES.into_iter().zip(DTYPES.into_iter().cycle()) {
            let [dy, weight] = [[m, n], [n, k]].map(|s| random(&mut rng, device, DType::Bf16, &s, 1.0));
            let (d, w) = (to_f64(&dy), to_f64(&weight));
            let want = product((m, k, n), |i, p| d[i * n + p], |p, j| w[p * k + j]);
            let mut dx =
                if dtype == DType::F32 { dy.like_f32(&[m, k]).unwrap() } else { output(&dy, &[m, k]) };
            backward_input(&mut dx, &dy, &weight, false).unwrap();
            assert_close(&what(&[&"dx", &m, &n, &k]), &values(&dx), &want, one_sum(dtype, n));
            // The same numbers as those of a layer with n rows of x: dy^T is read as it lies.
            let turned: Vec<f32> = (0..n * m).map(|i| d[i % m * n + i / m] as f32).collect();
            let turned = Tensor::from_vec(&[n, m], turned).unwrap().to_dtype(DType::Bf16).unwrap();
            let mut dweight = Tensor::zeros_on(device, &[m, k]).unwrap();
            backward_weight(&mut dweight, &turned.to_device(device).unwrap(), &weight).unwrap();
            let name = what(&[&"dweight", &m, &n, &k]);
            assert_close(&name, &values(&dweight), &want, one_sum(DType::F32, n));
        }
    });
}

/// Rows that do not fill a piece, several pieces, widths of part of a block and of several, aligned and not.
#[test]
fn bias_is_added_to_and_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(4);
        for (m, n) in [(1, 1), (7, 3), (8, 8), (257, 40), (530, 131), (260, 264), (30, 300), (9, 520)] {
            for dtype in DTYPES {
                let dy = random(&mut rng, device, dtype, &[m, n], 1.0);
                let mut dbias = random(&mut rng, device, DType::F32, &[n], 1.0);
                let d = to_f64(&dy);
                let sums = (0..n).map(|j| (0..m).map(|i| d[i * n + j]).sum()).collect();
                let want = plus(to_f64(&dbias), sums);
                backward_bias(&mut dbias, &dy).unwrap();
                let name = what(&[&"dbias", &m, &n, &dtype]);
                assert_close(&name, &values(&dbias), &want, one_sum(DType::F32, m + 1));
            }
        }
    });
}

/// A row of dx has the same bits among few rows and among many, in both tiles, and all come out again.
#[test]
fn rows_do_not_depend_on_each_other() {
    on_each_device(|device| {
        let mut rng = Rng(5);
        for (m, few, n, k, dtype) in
            [(150, 17, 200, 10, DType::Bf16), (70, 1, 100, 33, DType::F32), (5, 3, 8, 128 * 128, DType::Bf16)]
        {
            let dy = random(&mut rng, device, dtype, &[m, n], 1.0);
            let weight = random(&mut rng, device, dtype, &[n, k], 1.0);
            let run = |dy: &Tensor, weight: &Tensor| {
                let mut dx = output(dy, &[dy.rows(), weight.cols()]);
                backward_input(&mut dx, dy, weight, false).unwrap();
                values(&dx)
            };
            let all = run(&dy, &weight);
            assert_eq!(all, run(&dy, &weight), "again");
            assert_eq!(
                all[(m - few) * k..],
                run(&dy.slice(m - few..m).unwrap(), &weight),
                "{m} {few} {dtype}"
            );
            // The last columns of W by themselves: a small tile.
            let narrow = (0..n).map(|i| weight.slice(i..i + 1).unwrap().reshape(&[k, 1]).unwrap());
            let narrow: Vec<Tensor> = narrow.map(|row| row.slice(k - 5..k).unwrap()).collect();
            let narrow =
                Tensor::concat(&narrow.iter().collect::<Vec<_>>()).unwrap().reshape(&[n, 5]).unwrap();
            for (all, few) in all.chunks(k).zip(run(&dy, &narrow).chunks(5)) {
                assert_eq!(all[k - 5..], *few, "{dtype}");
            }
        }
    });
}

/// What a column holds spreads to no other, what lies beyond a matrix is not read.
#[test]
fn infinities_stay_in_their_columns() {
    on_each_device(|device| {
        for (m, n, k) in [(20, 40, 24), (21, 41, 23)] {
            for dtype in DTYPES {
                let ones = |rows: usize, cols: usize| {
                    let mut data = vec![1.0; rows * cols];
                    data[rows * cols - 1] = f32::INFINITY;
                    let all = Tensor::from_vec(&[rows, cols], data).unwrap();
                    all.to_dtype(dtype).unwrap().to_device(device).unwrap()
                };
                let check = |got: Vec<f32>, rows: usize, cols: usize, depth: usize| {
                    for (i, value) in got.into_iter().enumerate() {
                        let inside = i / cols < rows - 1 && i % cols < cols - 1;
                        assert_eq!(value, if inside { depth as f32 } else { f32::INFINITY }, "{i} {dtype}");
                    }
                };
                let (dy, weight, x) = (ones(m, n), ones(n, k), ones(m, k));
                let mut dx = output(&dy, &[m, k]);
                backward_input(&mut dx, &dy, &weight, false).unwrap();
                check(values(&dx), m, k, n);
                let mut dweight = Tensor::zeros_on(device, &[n, k]).unwrap();
                backward_weight(&mut dweight, &dy, &x).unwrap();
                check(values(&dweight), n, k, m);
            }
        }
    });
}

#[test]
fn empty_products_add_nothing() {
    on_each_device(|device| {
        let mut rng = Rng(6);
        for dtype in DTYPES {
            for (m, n, k) in [(0, 3, 8), (3, 0, 8), (3, 8, 0), (0, 0, 0)] {
                let dy = random(&mut rng, device, dtype, &[m, n], 1.0);
                let x = random(&mut rng, device, dtype, &[m, k], 1.0);
                let weight = random(&mut rng, device, dtype, &[n, k], 1.0);
                let mut dx = output(&x, &[m, k]);
                backward_input(&mut dx, &dy, &weight, false).unwrap();
                assert!(values(&dx).iter().all(|&x| x == 0.0));
                let (mut dweight, mut dbias) = (
                    random(&mut rng, device, DType::F32, &[n, k], 1.0),
                    random(&mut rng, device, DType::F32, &[n], 1.0),
                );
                let before = (values(&dweight), values(&dbias));
                backward_weight(&mut dweight, &dy, &x).unwrap();
                assert_eq!(values(&dweight), before.0);
                backward_bias(&mut dbias, &dy).unwrap();
                assert!(m > 0 || values(&dbias) == before.1);
            }
        }
    });
}

#[test]
fn mixed_types_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(7);
        let [dy, x, weight] =
            [[2, 3], [2, 8], [3, 8]].map(|shape| random(&mut rng, device, DType::Bf16, &shape, 1.0));
        let wide = random(&mut rng, device, DType::F32, &[3, 8], 1.0);
        let one_type = "all f32 or all bf16";
        let result = backward_input(&mut output(&x, &[2, 8]), &dy, &wide, false);
        assert_op_error(result, "linear backward_input", one_type);
        let wide_dy = random(&mut rng, device, DType::F32, &[2, 3], 1.0);
        let result = backward_input(&mut output(&x, &[2, 8]), &wide_dy, &wide, false);
        assert_op_error(result, "linear backward_input", one_type);
        let result = backward_weight(&mut wide.like_f32(&[3, 8]).unwrap(), &wide_dy, &x);
        assert_op_error(result, "linear backward_weight", one_type);
        let result = backward_weight(&mut output(&weight, &[3, 8]), &dy, &x);
        assert_op_error(result, "linear backward_weight", "dweight in f32");
        assert_op_error(backward_bias(&mut output(&dy, &[3]), &dy), "linear backward_bias", "dbias in f32");
    });
}
