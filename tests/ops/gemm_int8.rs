use mpa::ops::gemm_int8::{MAX_DEPTH, Quantized, forward, forward_swiglu};
use mpa::ops::{quantize, swiglu};
use mpa::tensor::{DType, Tensor};

use crate::common::{Rng, assert_op_error, assert_same_on_any_pool, poisoned, values};

/// Elements in -127..=127, and a scale a row.
fn quantised(rng: &mut Rng, rows: usize, cols: usize) -> (Tensor, Tensor) {
    let q = (0..rows * cols).map(|_| rng.below(255) as i32 - 127).map(|q| q as i8).collect();
    let scale = (0..rows).map(|_| (0.5 + rng.uniform()) as f32 / 127.0).collect();
    (Tensor::from_i8(&[rows, cols], q).unwrap(), Tensor::from_vec(&[rows], scale).unwrap())
}

fn view((q, scale): &(Tensor, Tensor)) -> Quantized<'_> {
    Quantized { q, scale }
}

/// The sums are exact, and what is made of them is three operations in f32.
fn expected(
    x: &(Tensor, Tensor),
    w: &(Tensor, Tensor),
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let (k, n) = (x.0.cols(), w.0.rows());
    let mut out = Vec::new();
    for i in 0..x.0.rows() {
        for j in 0..n {
            let sum: i64 = (0..k)
                .map(|p| i64::from(x.0.i8s().unwrap()[i * k + p]) * i64::from(w.0.i8s().unwrap()[j * k + p]))
                .sum();
            let mut y = sum as f32 * (values(&x.1)[i] * values(&w.1)[j]);
            y = bias.map_or(y, |b| y + b[j]);
            out.push(residual.map_or(y, |r| y + r[i * n + j]));
        }
    }
    out
}

#[test]
fn sums_are_exact() {
    let mut rng = Rng(1);
    for m in [1, 2, 3, 5, 8, 17, 70] {
        for (n, k) in [(1, 1), (3, 7), (16, 64), (65, 31), (130, 200), (67, 577)] {
            let (x, w) = (quantised(&mut rng, m, k), quantised(&mut rng, n, k));
            let (bias, residual) = (rng.tensor(&[n], 1.0), rng.tensor(&[m, n], 1.0));
            let mut out = poisoned(&[m, n]);
            forward(&mut out, view(&x), view(&w), None, None).unwrap();
            assert_eq!(values(&out), expected(&x, &w, None, None), "{m} {n} {k}");
            forward(&mut out, view(&x), view(&w), Some(&bias), Some(&residual)).unwrap();
            let want = expected(&x, &w, Some(values(&bias)), Some(values(&residual)));
            assert_eq!(values(&out), want, "{m} {n} {k}");
        }
    }
}

#[test]
fn the_largest_sums_do_not_overflow() {
    let full = |sign: i8, rows: usize| {
        let q = Tensor::from_i8(&[rows, MAX_DEPTH], vec![127 * sign; rows * MAX_DEPTH]).unwrap();
        (q, Tensor::from_vec(&[rows], vec![1.0; rows]).unwrap())
    };
    for (a, b) in [(1, 1), (-1, -1), (-1, 1)] {
        for rows in [1, 9] {
            let mut out = poisoned(&[rows, 2]);
            forward(&mut out, view(&full(a, rows)), view(&full(b, 2)), None, None).unwrap();
            let sum = (i64::from(a) * i64::from(b) * 127 * 127 * MAX_DEPTH as i64) as f32;
            assert_eq!(values(&out), vec![sum; 2 * rows]);
        }
    }
    let long = Tensor::from_i8(&[1, MAX_DEPTH + 1], vec![0; MAX_DEPTH + 1]).unwrap();
    let one = Tensor::zeros(&[1]);
    let long = Quantized { q: &long, scale: &one };
    assert_op_error(forward(&mut poisoned(&[1, 1]), long, long, None, None), "gemm_int8", "K up to");
}

#[test]
fn swiglu_is_its_parts() {
    let mut rng = Rng(6);
    for (m, n, k, rotation) in [(0, 3, 4, 1), (1, 1, 1, 1), (5, 33, 70, 1), (5, 96, 70, 32)] {
        let [x, gate, up] = [m, n, n].map(|rows| quantised(&mut rng, rows, k));
        let [mut gates, mut ups, mut act] = [(); 3].map(|()| poisoned(&[m, n]));
        forward(&mut gates, view(&x), view(&gate), None, None).unwrap();
        forward(&mut ups, view(&x), view(&up), None, None).unwrap();
        swiglu::forward(&mut act, &gates, &ups).unwrap();
        let outputs = || (act.like_i8(&[m, n]).unwrap(), poisoned(&[m]));
        let ((mut q, mut scale), (mut q_parts, mut scale_parts)) = (outputs(), outputs());
        quantize::forward(&mut q_parts, &mut scale_parts, &act, rotation).unwrap();
        forward_swiglu(&mut q, &mut scale, view(&x), view(&gate), view(&up), rotation).unwrap();
        assert_eq!((q.i8s().unwrap(), values(&scale)), (q_parts.i8s().unwrap(), values(&scale_parts)));
    }
}

#[test]
fn nothing_to_sum_and_nothing_to_make() {
    let mut rng = Rng(2);
    for (m, n, k) in [(0, 3, 4), (3, 0, 4), (3, 2, 0)] {
        let (x, w) = (quantised(&mut rng, m, k), quantised(&mut rng, n, k));
        let mut out = poisoned(&[m, n]);
        forward(&mut out, view(&x), view(&w), None, None).unwrap();
        assert_eq!(values(&out), vec![0.0; m * n]);
    }
}

#[test]
fn a_scale_of_nan_reaches_its_row_alone() {
    let mut rng = Rng(3);
    let (mut x, w) = (quantised(&mut rng, 3, 8), quantised(&mut rng, 2, 8));
    x.1 = Tensor::from_vec(&[3], vec![1.0, f32::NAN, 1.0]).unwrap();
    let mut out = poisoned(&[3, 2]);
    forward(&mut out, view(&x), view(&w), None, None).unwrap();
    let nan: Vec<bool> = values(&out).iter().map(|y| y.is_nan()).collect();
    assert_eq!(nan, [false, false, true, true, false, false]);
}

#[test]
fn same_bits_on_any_pool() {
    let mut rng = Rng(4);
    let (x, w) = (quantised(&mut rng, 37, 300), quantised(&mut rng, 211, 300));
    assert_same_on_any_pool("gemm_int8", || {
        let mut out = poisoned(&[37, 211]);
        forward(&mut out, view(&x), view(&w), None, None).unwrap();
        values(&out).to_vec()
    });
}

#[test]
fn other_shapes_and_types_are_refused() {
    let mut rng = Rng(5);
    let (x, w) = (quantised(&mut rng, 3, 8), quantised(&mut rng, 2, 8));
    let run = |out: &[usize], x: Quantized, w: Quantized| forward(&mut poisoned(out), x, w, None, None);
    let other = quantised(&mut rng, 2, 7);
    assert_op_error(run(&[3, 2], view(&x), view(&other)), "gemm_int8", "x [3, 7]");
    assert_op_error(run(&[2, 3], view(&x), view(&w)), "gemm_int8", "out [3, 2]");
    let scale = Tensor::zeros(&[4]);
    assert_op_error(
        run(&[3, 2], Quantized { scale: &scale, ..view(&x) }, view(&w)),
        "gemm_int8",
        "x scale [3]",
    );
    let wide = x.0.to_dtype(DType::F32).unwrap();
    assert_op_error(run(&[3, 2], Quantized { q: &wide, ..view(&x) }, view(&w)), "gemm_int8", "x in i8");
    let (bias, residual) = (Tensor::zeros(&[3]), Tensor::zeros(&[2, 3]));
    let mut out = poisoned(&[3, 2]);
    assert_op_error(forward(&mut out, view(&x), view(&w), Some(&bias), None), "gemm_int8", "bias [2]");
    assert_op_error(
        forward(&mut out, view(&x), view(&w), None, Some(&residual)),
        "gemm_int8",
        "residual [3, 2]",
    );
    let (mut q, mut scale) = (out.like_i8(&[3, 2]).unwrap(), Tensor::zeros(&[3]));
    let mut swiglu = |q: &mut Tensor, up: Quantized, rotation| {
        forward_swiglu(q, &mut scale, view(&x), view(&w), up, rotation)
    };
    assert_op_error(swiglu(&mut q, view(&x), 1), "gemm_int8", "up [2, 8]");
    assert_op_error(swiglu(&mut out, view(&w), 1), "gemm_int8", "q in i8");
    assert_op_error(swiglu(&mut q, view(&w), 4), "gemm_int8", "a rotation");
}
