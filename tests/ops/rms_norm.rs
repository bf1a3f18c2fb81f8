use mpa::ops::rms_norm::{backward, forward, forward_quantized};
use mpa::tensor::{DType, Tensor};

use crate::common::{
    Rng, assert_close, assert_op_error, assert_same_on_any_pool, dot, f32_sum, finite_differences, poisoned,
    rotated, to_f64, values,
};

const EPS: f32 = 1e-5;

fn reference(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let n = weight.len();
    let mut out = Vec::new();
    for row in x.chunks(n.max(1)) {
        let scale = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / n as f64 + f64::from(EPS)).sqrt();
        out.extend(row.iter().zip(weight).map(|(x, w)| x * scale * w));
    }
    out
}

#[test]
fn forward_matches_f64() {
    let mut rng = Rng(1);
    for (rows, cols) in [(0, 8), (1, 1), (1, 17), (3, 5), (301, 64), (2, 961)] {
        for scale in [1e-30, 1e-3, 1.0, 1e4] {
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                let x = rng.tensor(&[rows, cols], scale);
                let weight = rng.tensor(&[cols], 2.0).to_dtype(dtype).unwrap();
                let mut out = poisoned(&[rows, cols]);
                forward(&mut out, &x, &weight, EPS).unwrap();
                let what = format!("rms_norm {rows} x {cols} of {scale} by {dtype}");
                assert_close(&what, values(&out), &reference(&to_f64(&x), &to_f64(&weight)), f32_sum(cols));
            }
        }
    }
}

#[test]
fn quantized_is_the_nearest_of_255_levels() {
    let mut rng = Rng(7);
    for (rows, cols, rotation) in
        [(0, 8, 8), (1, 1, 1), (1, 17, 1), (3, 5, 1), (301, 64, 1), (2, 961, 1), (3, 40, 8), (5, 576, 64)]
    {
        for with_residual in [false, true] {
            let (mut x, residual) = (rng.tensor(&[rows, cols], 3.0), rng.tensor(&[rows, cols], 1.0));
            let weight = rng.tensor(&[cols], 2.0);
            let sum: Vec<f32> = values(&x).iter().zip(values(&residual)).map(|(a, b)| a + b).collect();
            let (mut q, mut steps) = (x.like_i8(&[rows, cols]).unwrap(), poisoned(&[rows]));
            let residual = with_residual.then_some(&residual);
            forward_quantized(&mut q, &mut steps, &mut x, residual, &weight, EPS, rotation).unwrap();
            assert!(!with_residual || values(&x) == sum);
            let want = rotated(&reference(&to_f64(&x), &to_f64(&weight)), rotation);
            let q = q.i8s().unwrap();
            // Of a sum of `rotation` values of up to 4.
            let off = f32_sum(cols).abs * 4.0 * rotation as f64;
            for ((q, want), &step) in q.chunks(cols).zip(want.chunks(cols)).zip(values(&steps)) {
                let (step, most) = (f64::from(step), want.iter().fold(0.0f64, |most, v| most.max(v.abs())));
                assert!((127.0 * step - most).abs() <= off, "{step} for {most}");
                for (&q, v) in q.iter().zip(want) {
                    assert!((f64::from(q) * step - v).abs() <= 0.5001 * step + off, "{q} {v}");
                }
            }
        }
    }
}

#[test]
fn backward_matches_finite_differences() {
    let mut rng = Rng(2);
    for (rows, cols) in [(0, 8), (1, 17), (3, 5), (5, 64)] {
        let (x, dy) = (rng.tensor(&[rows, cols], 2.0), rng.tensor(&[rows, cols], 1.0));
        let (weight, before) = (rng.tensor(&[cols], 2.0), rng.tensor(&[cols], 1.0));
        let (mut dx, mut dweight) = (poisoned(&[rows, cols]), before.clone());
        backward(&mut dx, Some(&mut dweight), &dy, &x, &weight, EPS).unwrap();

        let [x64, dy64, w64] = [&x, &dy, &weight].map(to_f64);
        let want = finite_differences(&x64, |x| dot(&reference(x, &w64), &dy64));
        assert_close("dx", values(&dx), &want, f32_sum(cols));
        let slopes = finite_differences(&w64, |w| dot(&reference(&x64, w), &dy64));
        let want: Vec<f64> = to_f64(&before).iter().zip(slopes).map(|(b, s)| b + s).collect();
        assert_close("dweight", values(&dweight), &want, f32_sum(cols));

        let mut dx_alone = poisoned(&[rows, cols]);
        backward(&mut dx_alone, None, &dy, &x, &weight, EPS).unwrap();
        assert_eq!(values(&dx_alone), values(&dx));
    }
}

#[test]
fn backward_of_extreme_magnitudes_is_finite() {
    let mut rng = Rng(3);
    for scale in [1e-30, 1e4] {
        let (x, dy) = (rng.tensor(&[3, 33], scale), rng.tensor(&[3, 33], 1e4));
        let weight = rng.tensor(&[33], 1.0);
        let mut dx = poisoned(&[3, 33]);
        backward(&mut dx, None, &dy, &x, &weight, EPS).unwrap();
        assert!(values(&dx).iter().all(|v| v.is_finite()), "{scale}");
    }
}

#[test]
fn other_shapes_are_refused() {
    let (x, w, short) = (Tensor::zeros(&[2, 3]), Tensor::zeros(&[3]), Tensor::zeros(&[2]));
    assert_op_error(forward(&mut w.clone(), &x, &w, EPS), "rms_norm", "out [2, 3]");
    assert_op_error(forward(&mut x.clone(), &x, &short, EPS), "rms_norm", "weight [3]");
    assert_op_error(backward(&mut x.clone(), None, &w, &x, &w, EPS), "rms_norm", "dy [2, 3]");
    let dweight = Some(&mut short.clone());
    assert_op_error(backward(&mut x.clone(), dweight, &x, &x, &w, EPS), "rms_norm", "dweight [3]");
}

#[test]
fn same_bits_on_any_pool() {
    let mut rng = Rng(4);
    let (x, dy) = (rng.tensor(&[1003, 65], 1.0), rng.tensor(&[1003, 65], 1.0));
    let weight = rng.tensor(&[65], 1.0);
    assert_same_on_any_pool("rms_norm", || {
        let (mut out, mut dx, mut dweight) = (poisoned(&[1003, 65]), poisoned(&[1003, 65]), weight.clone());
        forward(&mut out, &x, &weight, EPS).unwrap();
        backward(&mut dx, Some(&mut dweight), &dy, &x, &weight, EPS).unwrap();
        [&out, &dx, &dweight].map(values).concat()
    });
}
