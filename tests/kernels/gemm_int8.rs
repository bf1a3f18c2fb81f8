use mpa::ops::gemm_int8::{MAX_DEPTH, Quantized, forward, forward_swiglu};
use mpa::ops::quantize;
use mpa::tensor::{Card, DType, Device, Tensor};

use crate::common::{Rng, assert_op_error, rotated, to_f64};
use crate::device::{
    DTYPES, TINY, first_device, on_each, on_each_device_without_hopper, output, random, values, what,
};

/// Elements in -127..=127, and a scale a row: here.
pub struct Matrix {
    q: Vec<i8>,
    scale: Vec<f32>,
    cols: usize,
}

impl Matrix {
    pub fn random(rng: &mut Rng, rows: usize, cols: usize) -> Matrix {
        let q = (0..rows * cols).map(|_| rng.below(255) as i32 - 127).map(|q| q as i8).collect();
        let scale = (0..rows).map(|_| (0.5 + rng.uniform()) as f32 / 127.0).collect();
        Matrix { q, scale, cols }
    }

    fn rows(&self) -> usize {
        self.scale.len()
    }

    pub fn on(&self, device: &Device) -> (Tensor, Tensor) {
        let q = Tensor::from_i8(&[self.rows(), self.cols], self.q.clone()).unwrap();
        let scale = Tensor::from_vec(&[self.rows()], self.scale.clone()).unwrap();
        (q.to_device(device).unwrap(), scale.to_device(device).unwrap())
    }

    fn sum(&self, row: usize, other: &Matrix, col: usize) -> i32 {
        let line = |m: &'_ Matrix, i: usize| i * m.cols..(i + 1) * m.cols;
        let pairs = self.q[line(self, row)].iter().zip(&other.q[line(other, col)]);
        pairs.map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
    }
}

pub fn view((q, scale): &(Tensor, Tensor)) -> Quantized<'_> {
    Quantized { q, scale }
}

/// Three operations in f32 on an exact sum, then rounded to `dtype`.
fn expected(
    x: &Matrix,
    w: &Matrix,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    dtype: DType,
) -> Vec<f32> {
    let (m, n) = (x.rows(), w.rows());
    let [bias, residual] = [bias, residual].map(|t| t.map(values));
    let mut out = Vec::new();
    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
        let mut y = x.sum(i, w, j) as f32 * (x.scale[i] * w.scale[j]);
        y = bias.as_ref().map_or(y, |b| y + b[j]);
        out.push(residual.as_ref().map_or(y, |r| y + r[i * n + j]));
    }
    values(&Tensor::from_vec(&[m, n], out).unwrap().to_dtype(dtype).unwrap())
}

/// Every bit of the product, with and without what may be added.
pub fn check(rng: &mut Rng, device: &Device, dtype: DType, (m, n, k): (usize, usize, usize)) {
    let (x, w) = (Matrix::random(rng, m, k), Matrix::random(rng, n, k));
    let bias = random(rng, device, dtype, &[n], 1.0);
    let residual = random(rng, device, dtype, &[m, n], 1.0);
    let (x_there, w_there) = (x.on(device), w.on(device));
    let one = if m % 2 == 0 { (Some(&bias), None) } else { (None, Some(&residual)) };
    for (b, r) in [(None, None), one, (Some(&bias), Some(&residual))] {
        let mut out = output(&residual, &[m, n]);
        forward(&mut out, view(&x_there), view(&w_there), b, r).unwrap();
        let name = what(&[&"gemm_int8", &m, &"x", &n, &"x", &k, &dtype]);
        assert!(values(&out) == expected(&x, &w, b, r, dtype), "{name}");
    }
}

/// M, N, K of at most 32 rows. K: one, odd, less than a warp's stretch, aligned or not, more than one round of the block's warps. Rows of x for
/// the lower and for both halves of an mma and of two, with W's rows ending in each half of a block.
const FEW: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 16, 16),
    (4, 7, 3),
    (8, 33, 48),
    (9, 24, 108),
    (16, 17, 528),
    (17, 40, 1200),
    (25, 24, 64),
    (32, 5, 1031),
    (3, 33, 2576),
    (1, 9, 0),
    (30, 9, 0),
];

/// M, N, K beyond: edges of the tiles, K shorter and longer than the pipeline, K that is not aligned, odd N.
const MANY: [(usize, usize, usize); 8] = [
    (33, 1, 1),
    (33, 65, 80),
    (64, 64, 64),
    (65, 66, 528),
    (70, 129, 108),
    (40, 7, 3),
    (130, 34, 336),
    (34, 4, 0),
];

/// More of them for tiles of 128 x 128, of which each of four warps has its own columns.
const LARGE: [(usize, usize, usize); 4] = [(80, 163, 80), (130, 129, 43), (129, 257, 336), (65, 128, 64)];

/// A card that these matrices do not fill, but whose multiprocessors are outnumbered by most of their rows: those are quantised by small blocks,
/// which take a quarter of the time here.
pub const MODEST: Card = Card { multiprocessors: 16, ..Card::OTHER };

#[test]
fn every_bit_is_right() {
    on_each_device_without_hopper(|device| {
        let mut rng = Rng(1);
        for shape in FEW.into_iter().chain(MANY) {
            for dtype in DTYPES {
                check(&mut rng, device, dtype, shape);
            }
        }
    });
}

/// With all that may be added, and that alone, as it takes its time.
pub fn check_whole(device: &Device, dtype: DType, (m, n, k): (usize, usize, usize)) {
    let mut rng = Rng(2);
    let (x, w) = (Matrix::random(&mut rng, m, k), Matrix::random(&mut rng, n, k));
    let bias = random(&mut rng, device, dtype, &[n], 1.0);
    let residual = random(&mut rng, device, dtype, &[m, n], 1.0);
    let want = expected(&x, &w, Some(&bias), Some(&residual), dtype);
    let mut out = output(&residual, &[m, n]);
    forward(&mut out, view(&x.on(device)), view(&w.on(device)), Some(&bias), Some(&residual)).unwrap();
    assert!(values(&out) == want, "{m} {n} {k}");
}

#[test]
fn large_tiles_are_right() {
    on_each(TINY, |device| {
        for (shape, dtype) in MANY.into_iter().chain(LARGE).zip(DTYPES.into_iter().cycle()) {
            check_whole(device, dtype, shape);
        }
    });
}

/// Sums beyond the 24 bits that f32 has, up to those that int32 just holds.
pub fn check_long_sums(device: &Device, m: usize, k: usize) {
    let mut rng = Rng(4);
    let mut x = Matrix::random(&mut rng, m, k);
    x.q.fill(127);
    let mut w = Matrix::random(&mut rng, 3, k);
    w.q[..k].fill(-127);
    w.q[k..2 * k].iter_mut().for_each(|q| *q = q.saturating_abs());
    let mut out = random(&mut rng, device, DType::F32, &[1], 1.0).like(&[m, 3]).unwrap();
    forward(&mut out, view(&x.on(device)), view(&w.on(device)), None, None).unwrap();
    assert_eq!(x.sum(0, &w, 0), -(127 * 127 * k as i32));
    assert!(values(&out) == expected(&x, &w, None, None, DType::F32));
}

#[test]
fn long_sums_are_exact() {
    let device = first_device(Card::OTHER);
    check_long_sums(&device, 1, MAX_DEPTH);
    // As large as they need be for f32 to round them.
    check_long_sums(&device, 33, 4000);
}

/// Products too small for f32 keep their sign: where nothing is to be added, nothing is, not even 0.
pub fn check_signs_of_zero(device: &Device, m: usize) {
    for n in [5, 6] {
        let mut rng = Rng(10);
        let [mut x, mut w] = [m, n].map(|rows| Matrix::random(&mut rng, rows, 16));
        x.scale.iter_mut().chain(&mut w.scale).for_each(|s| *s = 1e-30);
        let mut out = random(&mut rng, device, DType::F32, &[1], 1.0).like(&[m, n]).unwrap();
        forward(&mut out, view(&x.on(device)), view(&w.on(device)), None, None).unwrap();
        let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let want = bits(expected(&x, &w, None, None, DType::F32));
        assert!(want.contains(&(-0.0f32).to_bits()));
        assert_eq!(bits(values(&out)), want, "{m} {n}");
    }
}

#[test]
fn zeros_keep_their_sign() {
    let device = first_device(Card::OTHER);
    [3, 33].into_iter().for_each(|m| check_signs_of_zero(&device, m));
}

#[test]
fn a_scale_of_nan_reaches_its_row_alone() {
    on_each(MODEST, |device| {
        for (rows, nan) in [(3, 1), (40, 33)] {
            let mut rng = Rng(5);
            let (mut x, w) = (Matrix::random(&mut rng, rows, 16), Matrix::random(&mut rng, 5, 16));
            x.scale[nan] = f32::NAN;
            let mut out = random(&mut rng, device, DType::F32, &[1], 1.0).like(&[rows, 5]).unwrap();
            forward(&mut out, view(&x.on(device)), view(&w.on(device)), None, None).unwrap();
            for (i, row) in values(&out).chunks(5).enumerate() {
                assert!(row.iter().all(|y| y.is_nan() == (i == nan)), "{i}");
            }
            let (q, scale) = swiglu(device, &x, [&w, &w], 1);
            for (i, (q, scale)) in q.chunks(5).zip(scale).enumerate() {
                assert_eq!((scale.is_nan(), q.iter().all(|&q| q == 0)), (i == nan, i == nan), "{i}");
            }
        }
    });
}

pub fn swiglu(device: &Device, x: &Matrix, [gate, up]: [&Matrix; 2], rotation: usize) -> (Vec<i8>, Vec<f32>) {
    let (m, n) = (x.rows(), gate.rows());
    let mut q = Tensor::from_i8(&[m, n], vec![99; m * n]).unwrap().to_device(device).unwrap();
    let mut scale = q.like_f32(&[m]).unwrap();
    let [x, gate, up] = [x, gate, up].map(|m| m.on(device));
    forward_swiglu(&mut q, &mut scale, view(&x), view(&gate), view(&up), rotation).unwrap();
    (q.to_device(&Device::Cpu).unwrap().i8s().unwrap().to_vec(), values(&scale))
}

/// Against float64, as it is and rotated: half a level, and what act's rounding to bf16, of 8 bits, does to all that a sum adds up.
pub fn check_swiglu(rng: &mut Rng, device: &Device, (m, n, k): (usize, usize, usize)) {
    let rotations = [1, quantize::rotation(n, quantize::MOST_ROTATED)];
    for rotation in rotations.into_iter().take(if rotations[1] > 1 { 2 } else { 1 }) {
        check_rotated_swiglu(rng, device, (m, n, k), rotation);
    }
}

fn check_rotated_swiglu(rng: &mut Rng, device: &Device, (m, n, k): (usize, usize, usize), rotation: usize) {
    let name = what(&[&"swiglu", &m, &"x", &n, &"x", &k, &rotation, device]);
    let mut x = Matrix::random(rng, m, k);
    // Gates of about 1, whatever K is.
    x.scale.iter_mut().for_each(|s| *s /= (k as f32).sqrt().max(1.0));
    let (gate, up) = (Matrix::random(rng, n, k), Matrix::random(rng, n, k));
    let (q, scale) = swiglu(device, &x, [&gate, &up], rotation);
    for i in 0..m {
        let term =
            |w: &Matrix, j: usize| f64::from(x.sum(i, w, j)) * f64::from(x.scale[i]) * f64::from(w.scale[j]);
        let act: Vec<f64> = (0..n)
            .map(|j| {
                let z = term(&gate, j);
                z / (1.0 + (-z).exp()) * term(&up, j)
            })
            .collect();
        let rounding = |j: usize| {
            act[j / rotation * rotation..][..rotation].iter().map(|a| a.abs()).sum::<f64>() / 256.0
        };
        let (want, step) = (rotated(&act, rotation), f64::from(scale[i]));
        let most = want.iter().fold(0.0f64, |most, a| most.max(a.abs()));
        let off = (0..n).map(rounding).fold(0.0, f64::max);
        assert!((127.0 * step - most).abs() <= off, "{name}: scale {step} for {most}");
        for (j, (&q, want)) in q[i * n..][..n].iter().zip(&want).enumerate() {
            let error = (f64::from(q) * step - want).abs();
            assert!(error <= step * 0.5001 + rounding(j), "{name}: {q} x {step} for {want} at {i} {j}");
        }
    }
    assert_eq!((q, scale.clone()), swiglu(device, &x, [&gate, &up], rotation), "{name} twice");
}

#[test]
fn swiglu_matches_f64() {
    on_each(MODEST, |device| {
        let mut rng = Rng(6);
        for shape in FEW.into_iter().chain(MANY) {
            check_swiglu(&mut rng, device, shape);
        }
    });
}

#[test]
fn swiglu_in_large_tiles_matches_f64() {
    on_each(TINY, |device| {
        let mut rng = Rng(7);
        for shape in [(33, 1, 1), (70, 63, 108), (65, 66, 528), (133, 129, 48)] {
            check_swiglu(&mut rng, device, shape);
        }
    });
}

#[test]
fn the_largest_activation_may_be_anywhere() {
    on_each(MODEST, |device| {
        for (m, n) in [(2, 24), (20, 17), (40, 72), (66, 33)] {
            for place in [0, 1, 2, 7, 8, 15, n / 2, n - 2, n - 1] {
                let mut rng = Rng(8);
                let (x, mut gate) = (Matrix::random(&mut rng, m, 32), Matrix::random(&mut rng, n, 32));
                // Small gates: silu is half of them.
                gate.scale.iter_mut().for_each(|s| *s /= 1e3);
                let mut up = Matrix::random(&mut rng, n, 32);
                up.scale.iter_mut().enumerate().for_each(|(j, s)| *s = if j == place { 1e3 } else { 1e-6 });
                let (q, _) = swiglu(device, &x, [&gate, &up], 1);
                for (i, row) in q.chunks(n).enumerate() {
                    let is_zero = x.sum(i, &up, place) == 0 || x.sum(i, &gate, place) == 0;
                    assert!(is_zero || row[place].unsigned_abs() == 127, "{m} {n} {place} row {i}: {row:?}");
                }
            }
        }
    });
}

#[test]
fn other_shapes_types_and_devices_are_refused() {
    on_each_device_without_hopper(|device| {
        let mut rng = Rng(9);
        let (x, w) = (Matrix::random(&mut rng, 3, 8), Matrix::random(&mut rng, 2, 8));
        let (here, x, w) = (w.on(&Device::Cpu), x.on(device), w.on(device));
        let mut out = random(&mut rng, device, DType::F32, &[3, 2], 1.0);
        let narrow = random(&mut rng, device, DType::Bf16, &[2], 1.0);
        let run = |out: &mut Tensor, w: &(Tensor, Tensor), bias| forward(out, view(&x), view(w), bias, None);
        assert_op_error(run(&mut out, &w, Some(&narrow)), "gemm_int8", "all f32 or all bf16");
        assert_op_error(run(&mut out, &here, None), "tensor", "host-executed");
        assert_op_error(run(&mut Tensor::zeros(&[3, 2]), &w, None), "tensor", "host-executed");
        let mut off = Tensor::from_i8(&[3, 2], vec![0; 6]).unwrap();
        let mut scale = out.like_f32(&[3]).unwrap();
        let swiglu = |q: &mut Tensor, scale: &mut Tensor, up: Quantized| {
            forward_swiglu(q, scale, view(&x), view(&w), up, 1)
        };
        assert_op_error(swiglu(&mut off, &mut scale, view(&w)), "tensor", "host-executed");
        assert_op_error(swiglu(&mut out, &mut scale, view(&w)), "gemm_int8", "q in i8");
        let mut q = out.like_i8(&[3, 2]).unwrap();
        assert_op_error(swiglu(&mut q, &mut scale, view(&x)), "gemm_int8", "up [2, 8]");
        assert!(to_f64(&w.1).iter().all(|s| s.is_finite()));
    });
}
