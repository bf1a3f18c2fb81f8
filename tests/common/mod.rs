//! What every test needs: a comparator that lets nothing pass unseen, reproducible data, the place of the fixtures.
#![allow(dead_code)]

pub mod patches;

use mpa::tensor::Tensor;

/// Allowed error of one element: `abs + rel * |want|`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub abs: f64,
    pub rel: f64,
}

/// f32 results of short sums against f64: a few units in the last place (6e-8) of terms of size about 1.
pub const F32: Tolerance = Tolerance { abs: 2e-6, rel: 2e-6 };

/// f32 sums of `n` terms of size about 1 against f64: rounding grows like sqrt(n), taken with a factor of 4 for the spread.
pub fn f32_sum(n: usize) -> Tolerance {
    let e = 4.0 * (n as f64).sqrt().max(1.0) * f64::from(f32::EPSILON);
    Tolerance { abs: e.max(F32.abs), rel: F32.rel }
}

/// Panics at the worst element that is outside the tolerance; NaN and infinity are always outside.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: Tolerance) {
    assert_eq!(got.len(), want.len(), "{what}: lengths differ");
    let mut worst: Option<(f64, usize)> = None;
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!(w.is_finite(), "{what}: the reference itself is {w} at {i}");
        assert!(g.is_finite(), "{what}: {g} at {i}, expected {w}");
        let excess = (f64::from(g) - w).abs() / (tolerance.abs + tolerance.rel * w.abs());
        if worst.is_none_or(|(e, _)| excess > e) {
            worst = Some((excess, i));
        }
    }
    if let Some((excess, i)) = worst {
        assert!(
            excess <= 1.0,
            "{what}: {} at {i}, expected {}, {excess:.2} times the tolerance {tolerance:?}",
            got[i],
            want[i]
        );
    }
}

/// A small generator for test data (SplitMix64): the same numbers on every machine and in every version.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// 0 .. n
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in [-scale, scale).
    pub fn vec(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| (self.uniform() * 2.0 - 1.0) as f32 * scale).collect()
    }

    pub fn tensor(&mut self, shape: &[usize], scale: f32) -> Tensor {
        Tensor::from_vec(shape, self.vec(shape.iter().product(), scale)).unwrap()
    }
}

/// A tensor full of NaN: what an op must overwrite whole.
pub fn poisoned(shape: &[usize]) -> Tensor {
    Tensor::from_vec(shape, vec![f32::NAN; shape.iter().product()]).unwrap()
}

pub fn to_f64(x: &Tensor) -> Vec<f64> {
    x.to_f32().unwrap().f32s().unwrap().iter().map(|&v| f64::from(v)).collect()
}

/// Each `size` elements times the Hadamard matrix of that size by its definition: entry (i, j) is -1 to the number of ones that i and j share.
pub fn rotated(x: &[f64], size: usize) -> Vec<f64> {
    let sum = |group: &[f64], i: usize| {
        let signed = group
            .iter()
            .enumerate()
            .map(|(j, x)| if (i & j).count_ones().is_multiple_of(2) { *x } else { -x });
        signed.sum()
    };
    x.chunks(size).flat_map(|group| (0..size).map(move |i| sum(group, i))).collect()
}

/// Central differences of the scalar function `loss` in f64 at `x`, one element after the other.
pub fn finite_differences(x: &[f64], mut loss: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let (old, h) = (x[i], 1e-5 * x[i].abs().max(1.0));
            x[i] = old + h;
            let up = loss(&x);
            x[i] = old - h;
            let down = loss(&x);
            x[i] = old;
            (up - down) / (2.0 * h)
        })
        .collect()
}

/// GELU in f64. Phi of the exact one is the integral of the normal density from 0 to |x|, by Simpson's rule over 400 steps: 1e-9 off.
pub fn gelu(x: f64, kind: mpa::ops::gelu::Kind) -> f64 {
    use std::f64::consts::PI;
    match kind {
        mpa::ops::gelu::Kind::Tanh => {
            0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        mpa::ops::gelu::Kind::Quick => x / (1.0 + (-1.702 * x).exp()),
        mpa::ops::gelu::Kind::Exact if x.abs() > 9.0 => x.max(0.0),
        mpa::ops::gelu::Kind::Exact => {
            let step = x.abs() / 400.0;
            let density = |i: usize| (-0.5 * (i as f64 * step).powi(2)).exp() / (2.0 * PI).sqrt();
            let weight = |i: usize| if i == 0 || i == 400 { 1.0 } else { 2.0 + 2.0 * (i % 2) as f64 };
            let half = (0..=400).map(|i| weight(i) * density(i)).sum::<f64>() * step / 3.0;
            x * if x > 0.0 { 0.5 + half } else { 0.5 - half }
        }
    }
}

/// Sum of products: the loss whose gradient with respect to an op's output is `weights`.
pub fn dot(values: &[f64], weights: &[f64]) -> f64 {
    values.iter().zip(weights).map(|(v, w)| v * w).sum()
}

/// The elements of an f32 tensor.
#[track_caller]
pub fn values(x: &Tensor) -> &[f32] {
    x.f32s().unwrap()
}

/// Panics unless `f` gives the same bits in pools of 1, 2 and 3 threads.
#[track_caller]
pub fn assert_same_on_any_pool(what: &str, f: impl Fn() -> Vec<f32> + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(&f).into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let one = run(1);
    for threads in [2, 3] {
        let other = run(threads);
        let differs = one.iter().zip(&other).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what}: element differs between 1 and {threads} threads");
        assert_eq!(one.len(), other.len(), "{what}");
    }
}

/// Panics unless `result` is an error of `op` whose message mentions `part`.
#[track_caller]
pub fn assert_op_error<T>(result: mpa::error::Result<T>, op: &str, part: &str) {
    match result {
        Ok(_) => panic!("{op} accepted what it should not: {part}"),
        Err(e) => {
            let text = e.to_string();
            assert!(text.starts_with(op) && text.contains(part), "{text:?} should name {op} and {part}");
        }
    }
}

/// One running f32 sum of `n` products of numbers uniform in [-1, 1) against f64: the sum wanders to about sqrt(n) / 3, and each step rounds
/// it by 0.29 eps of its size, so the error has a deviation of about 0.07 eps n; taken six times, for the worst of many elements.
pub fn running_sum(n: usize) -> Tolerance {
    let e = 0.42 * n as f64 * f64::from(f32::EPSILON);
    Tolerance { abs: e.max(F32.abs), rel: F32.rel }
}
