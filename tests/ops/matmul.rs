//! The matrix product against float64, and its promises: bits that depend neither on threads nor on the number of rows.
use mpa::ops::matmul::{View, matmul};

use crate::common::*;

/// alpha A B + C in float64.
fn reference(m: usize, n: usize, k: usize, c: &[f32], alpha: f32, a: View, b: View) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let dot: f64 = (0..k)
                .map(|p| f64::from(a.data[i * a.rs + p * a.cs]) * f64::from(b.data[p * b.rs + j * b.cs]))
                .sum();
            out[i * n + j] = f64::from(alpha) * dot + f64::from(c[i * n + j]);
        }
    }
    out
}

/// Views of an r x c matrix, row-major and column-major.
fn layouts(data: &[f32], rows: usize, cols: usize) -> [View<'_>; 2] {
    [View { data, rs: cols, cs: 1 }, View { data, rs: 1, cs: rows }]
}

#[test]
fn float64_reference() {
    let mut rng = Rng(11);
    let shapes = [
        (1, 1, 1),
        (1, 17, 5),
        (2, 3, 2),
        (5, 7, 0),
        (7, 1, 33),
        (63, 65, 64),
        (1, 300, 600),
        (49, 50, 513),
        (3, 400, 1000),
        (400, 3, 1000),
        (300, 200, 70),
        (30, 20, 2500),
    ];
    for (m, n, k) in shapes {
        let (a, b, c) = (rng.vec(m * k, 1.0), rng.vec(k * n, 1.0), rng.vec(m * n, 1.0));
        for a in layouts(&a, m, k) {
            for b in layouts(&b, k, n) {
                let mut sum = c.clone();
                matmul(m, n, k, &mut sum, n, -0.5, a, b, true);
                assert_close("accumulated", &sum, &reference(m, n, k, &c, -0.5, a, b), running_sum(k));
                let mut fresh = vec![f32::NAN; m * n];
                matmul(m, n, k, &mut fresh, n, 1.0, a, b, false);
                let zeros = vec![0.0; m * n];
                assert_close("overwritten", &fresh, &reference(m, n, k, &zeros, 1.0, a, b), running_sum(k));
            }
        }
    }
}

#[test]
fn empty() {
    let none = View { data: &[], rs: 0, cs: 1 };
    matmul(0, 5, 0, &mut [], 5, 1.0, none, none, false);
    matmul(5, 0, 3, &mut [], 0, 1.0, none, none, false);
}

#[test]
fn rows_between_are_left_alone() {
    let mut rng = Rng(12);
    let (m, n, k, ldc) = (70, 30, 600, 37);
    let (a, b) = (rng.vec(m * k, 1.0), rng.vec(k * n, 1.0));
    let (a, b) = (View { data: &a, rs: k, cs: 1 }, View { data: &b, rs: n, cs: 1 });
    let mut c = vec![-7.0; m * ldc];
    matmul(m, n, k, &mut c, ldc, 1.0, a, b, false);
    let want = reference(m, n, k, &vec![0.0; m * n], 1.0, a, b);
    for (row, want) in c.chunks(ldc).zip(want.chunks(n)) {
        assert_close("row", &row[..n], want, running_sum(k));
        assert!(row[n..].iter().all(|&x| x == -7.0));
    }
}

#[test]
fn a_row_has_the_same_bits_among_any_number_of_rows() {
    let mut rng = Rng(13);
    for (n, k) in [(2, 3), (7, 33), (16, 64), (64, 64), (96, 100), (192, 256), (100, 1000), (577, 960)] {
        let (a, b) = (rng.vec(700 * k, 1.0), rng.vec(k * n, 1.0));
        let b = View { data: &b, rs: 1, cs: k };
        for (alpha, accumulate) in [(1.0, false), (0.3, true)] {
            let rows = |m: usize| {
                let mut c = vec![0.1; m * n];
                matmul(m, n, k, &mut c, n, alpha, View { data: &a, rs: k, cs: 1 }, b, accumulate);
                c
            };
            let all = rows(700);
            for m in (1..40).chain([63, 64, 65, 191, 192, 193, 385]) {
                assert_eq!(rows(m), all[..m * n], "{m} rows of {n} x {k}");
            }
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    let mut rng = Rng(14);
    for (m, n, k) in [(700, 300, 200), (5, 2000, 700), (60, 64, 4000), (193, 192, 3000)] {
        let (a, b, c) = (rng.vec(m * k, 1.0), rng.vec(k * n, 1.0), rng.vec(m * n, 1.0));
        assert_same_on_any_pool("product", || {
            let mut c = c.clone();
            matmul(
                m,
                n,
                k,
                &mut c,
                n,
                1.0,
                View { data: &a, rs: 1, cs: m },
                View { data: &b, rs: n, cs: 1 },
                true,
            );
            c
        });
    }
}

#[test]
#[should_panic(expected = "B is too short")]
fn short_views_are_refused() {
    let a = [0.0; 6];
    let mut c = [0.0; 4];
    matmul(
        2,
        2,
        3,
        &mut c,
        2,
        1.0,
        View { data: &a, rs: 3, cs: 1 },
        View { data: &a[1..], rs: 2, cs: 1 },
        false,
    );
}
