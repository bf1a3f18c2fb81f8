//! y = x W^T + b against float64, its gradients against finite differences, its rows alone and in company.
use mpa::ops::linear;
use mpa::tensor::{DType, Tensor};

use crate::common::*;

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

fn reference(x: &[f64], w: &[f64], bias: Option<&[f64]>, m: usize, n: usize, k: usize) -> Vec<f64> {
    let mut y = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let dot: f64 = (0..k).map(|p| x[i * k + p] * w[j * k + p]).sum();
            y[i * n + j] = dot + bias.map_or(0.0, |b| b[j]);
        }
    }
    y
}

#[test]
fn forward() {
    let mut rng = Rng(21);
    let shapes = [
        (1, 300, 33),
        (3, 5, 7),
        (70, 260, 65),
        (300, 130, 129),
        (1, 1, 1),
        (9, 1, 40),
        (7, 67, 513),
        (260, 70, 1100),
    ];
    for (m, n, k) in shapes {
        let (x, w, bias) = (rng.tensor(&[m, k], 1.0), rng.tensor(&[n, k], 1.0), rng.tensor(&[n], 1.0));
        for dtype in DTYPES {
            let (w, bias) = (w.to_dtype(dtype).unwrap(), bias.to_dtype(dtype).unwrap());
            // What bf16 weights are multiplied by is rounded to bf16.
            let seen = if dtype == DType::Bf16 { x.to_dtype(dtype).unwrap() } else { x.clone() };
            for bias in [None, Some(&bias)] {
                let mut y = poisoned(&[m, n]);
                linear::forward(&mut y, &x, &w, bias).unwrap();
                let b = bias.map(to_f64);
                let want = reference(&to_f64(&seen), &to_f64(&w), b.as_deref(), m, n, k);
                assert_close("y", values(&y), &want, running_sum(k));
            }
        }
    }
}

#[test]
fn more_dimensions_count_as_rows() {
    let mut rng = Rng(22);
    let (x, w) = (rng.tensor(&[2, 3, 300], 1.0), rng.tensor(&[5, 300], 1.0));
    let mut y = poisoned(&[2, 3, 5]);
    linear::forward(&mut y, &x, &w, None).unwrap();
    let want = reference(&to_f64(&x), &to_f64(&w), None, 6, 5, 300);
    assert_close("y", values(&y), &want, running_sum(300));
}

#[test]
fn empty() {
    for (m, n, k) in [(0, 3, 300), (0, 3, 4), (4, 0, 3)] {
        for dtype in DTYPES {
            let w = Tensor::zeros(&[n, k]).to_dtype(dtype).unwrap();
            let (mut y, mut x) = (Tensor::zeros(&[m, n]), Tensor::zeros(&[m, k]));
            linear::forward(&mut y, &x, &w, None).unwrap();
            linear::backward_input(&mut x, &y, &w, false).unwrap();
        }
    }
    let mut y = poisoned(&[2, 3]);
    linear::forward(&mut y, &Tensor::zeros(&[2, 0]), &Tensor::zeros(&[3, 0]), None).unwrap();
    assert_eq!(values(&y), [0.0; 6]);
}

#[test]
fn a_row_has_the_same_bits_among_any_number_of_rows() {
    let mut rng = Rng(23);
    for (n, k) in [(64, 64), (96, 64), (100, 256), (70, 576), (1, 30), (130, 1000)] {
        let (x, w, bias) = (rng.vec(300 * k, 1.0), rng.tensor(&[n, k], 1.0), rng.tensor(&[n], 1.0));
        for dtype in DTYPES {
            let w = w.to_dtype(dtype).unwrap();
            let rows = |m: usize| {
                let mut y = poisoned(&[m, n]);
                let x = Tensor::from_vec(&[m, k], x[..m * k].to_vec()).unwrap();
                linear::forward(&mut y, &x, &w, Some(&bias)).unwrap();
                values(&y).to_vec()
            };
            let all = rows(300);
            for m in (1..20).chain([63, 64, 65, 251, 252, 253]) {
                assert_eq!(rows(m), all[..m * n], "{m} rows of {n} x {k} {dtype}");
            }
        }
    }
}

#[test]
fn large_numbers_stay_exact() {
    // Sums of small integers times a power of two are exact in f32 in any order.
    let (m, n, k) = (5, 66, 700);
    let x: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 * 2f32.powi(50)).collect();
    let w: Vec<f32> = (0..n * k).map(|i| (i % 5) as f32 * 2f32.powi(60)).collect();
    let (x, w) = (Tensor::from_vec(&[m, k], x).unwrap(), Tensor::from_vec(&[n, k], w).unwrap());
    let mut y = poisoned(&[m, n]);
    linear::forward(&mut y, &x, &w, None).unwrap();
    let want = reference(&to_f64(&x), &to_f64(&w), None, m, n, k);
    assert_eq!(to_f64(&y), want);
}

#[test]
fn gradients() {
    let mut rng = Rng(24);
    let (m, n, k) = (5, 4, 7);
    let (x, w, bias, dy) =
        (rng.tensor(&[m, k], 1.0), rng.tensor(&[n, k], 1.0), rng.tensor(&[n], 1.0), rng.tensor(&[m, n], 1.0));
    let (xd, wd, bd, dyd) = (to_f64(&x), to_f64(&w), to_f64(&bias), to_f64(&dy));
    let loss = |x: &[f64], w: &[f64], b: &[f64]| -> f64 {
        reference(x, w, Some(b), m, n, k).iter().zip(&dyd).map(|(y, d)| y * d).sum()
    };
    let mut dx = poisoned(&[m, k]);
    linear::backward_input(&mut dx, &dy, &w, false).unwrap();
    assert_close("dx", values(&dx), &finite_differences(&xd, |x| loss(x, &wd, &bd)), F32);
    let mut dw = Tensor::zeros(&[n, k]);
    linear::backward_weight(&mut dw, &dy, &x).unwrap();
    assert_close("dw", values(&dw), &finite_differences(&wd, |w| loss(&xd, w, &bd)), F32);
    let mut db = Tensor::zeros(&[n]);
    linear::backward_bias(&mut db, &dy).unwrap();
    assert_close("db", values(&db), &finite_differences(&bd, |b| loss(&xd, &wd, b)), F32);
}

#[test]
fn large_gradients() {
    let mut rng = Rng(25);
    for (m, n, k) in [(1, 70, 300), (70, 600, 90), (300, 65, 200), (2100, 70, 66)] {
        let (x, w, dy) = (rng.tensor(&[m, k], 1.0), rng.tensor(&[n, k], 1.0), rng.tensor(&[m, n], 1.0));
        let before = rng.tensor(&[m, k], 1.0);
        let transposed = |t: &Tensor| -> Vec<f64> {
            let (rows, cols, t) = (t.rows(), t.cols(), to_f64(t));
            (0..rows * cols).map(|i| t[i % rows * cols + i / rows]).collect()
        };
        for dtype in DTYPES {
            let w = w.to_dtype(dtype).unwrap();
            let want = reference(&to_f64(&dy), &transposed(&w), None, m, k, n);
            let mut dx = poisoned(&[m, k]);
            linear::backward_input(&mut dx, &dy, &w, false).unwrap();
            assert_close("dx", values(&dx), &want, running_sum(n));
            let mut dx = before.clone();
            linear::backward_input(&mut dx, &dy, &w, true).unwrap();
            let want: Vec<f64> = want.iter().zip(to_f64(&before)).map(|(a, b)| a + b).collect();
            assert_close("dx added to", values(&dx), &want, running_sum(n));
        }
        let mut dw = Tensor::from_vec(&[n, k], vec![1.0; n * k]).unwrap();
        linear::backward_weight(&mut dw, &dy, &x).unwrap();
        let want: Vec<f64> =
            reference(&transposed(&dy), &transposed(&x), None, n, k, m).iter().map(|v| v + 1.0).collect();
        assert_close("dw", values(&dw), &want, running_sum(m));
        let mut db = Tensor::from_vec(&[n], vec![1.0; n]).unwrap();
        linear::backward_bias(&mut db, &dy).unwrap();
        let dyd = to_f64(&dy);
        let want: Vec<f64> = (0..n).map(|j| 1.0 + (0..m).map(|i| dyd[i * n + j]).sum::<f64>()).collect();
        assert_close("db", values(&db), &want, running_sum(m));
    }
}

#[test]
fn threads_do_not_change_bits() {
    let mut rng = Rng(26);
    let (m, n, k) = (600, 300, 400);
    let (x, w, dy) = (rng.tensor(&[m, k], 1.0), rng.tensor(&[n, k], 1.0), rng.tensor(&[m, n], 1.0));
    for dtype in DTYPES {
        let w = w.to_dtype(dtype).unwrap();
        assert_same_on_any_pool("linear", || {
            let (mut y, mut dx) = (poisoned(&[m, n]), poisoned(&[m, k]));
            let (mut dw, mut db) = (Tensor::zeros(&[n, k]), Tensor::zeros(&[n]));
            linear::forward(&mut y, &x, &w, None).unwrap();
            linear::backward_input(&mut dx, &dy, &w, false).unwrap();
            linear::backward_weight(&mut dw, &dy, &x).unwrap();
            linear::backward_bias(&mut db, &dy).unwrap();
            [y, dx, dw, db].iter().flat_map(values).copied().collect()
        });
    }
}

#[test]
fn wrong_shapes_are_named() {
    let t = Tensor::zeros;
    let error = linear::forward(&mut t(&[2, 3]), &t(&[2, 4]), &t(&[3, 5]), None).unwrap_err().to_string();
    assert!(
        error.contains("linear forward") && error.contains("[2, 5]") && error.contains("[2, 4]"),
        "{error}"
    );
    assert!(linear::forward(&mut t(&[3, 3]), &t(&[2, 5]), &t(&[3, 5]), None).is_err());
    assert!(linear::forward(&mut t(&[2, 3]), &t(&[2, 5]), &t(&[15]), None).is_err());
    assert!(linear::forward(&mut t(&[2, 3]), &t(&[2, 5]), &t(&[3, 5]), Some(&t(&[4]))).is_err());
    assert!(linear::backward_input(&mut t(&[2, 5]), &t(&[1, 3]), &t(&[3, 5]), false).is_err());
    assert!(
        linear::backward_weight(&mut t(&[3, 5]).to_dtype(DType::Bf16).unwrap(), &t(&[2, 3]), &t(&[2, 5]))
            .is_err()
    );
    assert!(linear::backward_bias(&mut t(&[4]), &t(&[2, 3])).is_err());
}
