use mpa::ops::dropout::forward;
use mpa::tensor::Tensor;

use crate::common::{Rng, assert_op_error, assert_same_on_any_pool, poisoned, values};

const N: usize = 200_003;

/// 1 where an element is kept, 0 where it is dropped.
fn mask(n: usize, p: f32, seed: u64) -> Vec<f64> {
    let ones = Tensor::from_vec(&[n], vec![1.0; n]).unwrap();
    let mut out = poisoned(&[n]);
    forward(&mut out, &ones, p, seed).unwrap();
    values(&out).iter().map(|&v| if v == 0.0 { 0.0 } else { 1.0 }).collect()
}

/// Panics unless `share` of `n` coin flips is within five standard deviations of `p`.
#[track_caller]
fn assert_share(what: &str, share: f64, p: f64, n: usize) {
    let deviation = (p * (1.0 - p) / n as f64).sqrt();
    assert!((share - p).abs() < 5.0 * deviation, "{what}: {share} instead of {p} +- {deviation}");
}

fn mean(x: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = x.fold((0.0, 0.0), |(s, n), x| (s + x, n + 1.0));
    sum / n
}

#[test]
fn the_share_kept_is_right() {
    for p in [0.01, 0.05, 0.1, 0.5, 0.9] {
        for seed in [0, 1, 2, 0x1_0000_0000, u64::MAX] {
            let kept = mean(mask(N, p, seed).into_iter());
            assert_share(&format!("p {p} seed {seed}"), kept, 1.0 - f64::from(p), N);
        }
    }
}

#[test]
fn neighbours_and_seeds_are_independent() {
    let p = 0.5;
    let a = mask(N, p, 7);
    for distance in [1, 2, 3, 4, 8, 16, 32, 64, 128, 1024, 16 * 1024] {
        let both = mean(a.iter().zip(&a[distance..]).map(|(x, y)| x * y));
        assert_share(&format!("distance {distance}"), both, 0.25, N - distance);
    }
    for seed in [8, 6, 7 + (1 << 32), 7 << 32, !7] {
        let b = mask(N, p, seed);
        let both = mean(a.iter().zip(&b).map(|(x, y)| x * y));
        assert_share(&format!("seed {seed}"), both, 0.25, N);
    }
}

#[test]
fn kept_elements_are_scaled_and_dropped_ones_are_zero() {
    let x = Rng(1).tensor(&[N], 1e4);
    let mut out = poisoned(&[N]);
    forward(&mut out, &x, 0.2, 3).unwrap();
    for ((&got, &x), keep) in values(&out).iter().zip(values(&x)).zip(mask(N, 0.2, 3)) {
        assert_eq!(got, if keep == 1.0 { x * 1.25 } else { 0.0 });
    }
    let mut out = Tensor::zeros(&[N]);
    forward(&mut out, &poisoned(&[N]), 0.2, 3).unwrap();
    assert!(values(&out).iter().zip(mask(N, 0.2, 3)).all(|(v, keep)| v.is_nan() == (keep == 1.0)));
}

#[test]
fn the_backward_is_the_same_mask() {
    // d(out . dy)/dx = mask(dy): the op is linear and diagonal, so <mask(x), dy> = <x, mask(dy)>, term by term.
    let mut rng = Rng(2);
    let (x, dy) = (rng.tensor(&[N], 1.0), rng.tensor(&[N], 1.0));
    let (mut out, mut dx) = (poisoned(&[N]), poisoned(&[N]));
    forward(&mut out, &x, 0.5, 9).unwrap();
    forward(&mut dx, &dy, 0.5, 9).unwrap();
    for i in 0..N {
        assert_eq!(values(&out)[i] * values(&dy)[i], values(&x)[i] * values(&dx)[i], "{i}");
    }
}

#[test]
fn the_mask_does_not_depend_on_the_length() {
    assert_eq!(mask(1001, 0.3, 5), mask(N, 0.3, 5)[..1001]);
}

#[test]
fn without_dropping_it_is_the_identity() {
    let x = Rng(3).tensor(&[3, 7], 1.0);
    let mut out = poisoned(&[3, 7]);
    forward(&mut out, &x, 0.0, 1).unwrap();
    assert_eq!(values(&out), values(&x));
    forward(&mut poisoned(&[0]), &Tensor::zeros(&[0]), 0.5, 1).unwrap();
}

#[test]
fn bad_arguments_are_refused() {
    let x = Tensor::zeros(&[3]);
    for p in [1.0, 1.5, -0.1, f32::NAN] {
        assert_op_error(forward(&mut x.clone(), &x, p, 1), "dropout", &p.to_string());
    }
    assert_op_error(forward(&mut Tensor::zeros(&[2]), &x, 0.1, 1), "dropout", "out [3]");
}

#[test]
fn same_bits_on_any_pool() {
    let x = Rng(4).tensor(&[50_001], 1.0);
    assert_same_on_any_pool("dropout", || {
        let mut out = poisoned(&[50_001]);
        forward(&mut out, &x, 0.1, 11).unwrap();
        values(&out).to_vec()
    });
}
