use mpa::ops::layer_norm::{backward, forward, forward_quantized};
use mpa::tensor::{DType, Tensor};

use crate::common::{
    Rng, assert_close, assert_op_error, assert_same_on_any_pool, dot, f32_sum, finite_differences, poisoned,
    to_f64, values,
};

const EPS: f32 = 1e-5;

fn reference(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let n = weight.len();
    let mut out = Vec::new();
    for row in x.chunks(n.max(1)) {
        let mean = row.iter().sum::<f64>() / n as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
        out.extend(row.iter().zip(weight).zip(bias).map(|((x, w), b)| (x - mean) * scale * w + b));
    }
    out
}

#[test]
fn forward_matches_f64() {
    let mut rng = Rng(1);
    for (rows, cols) in [(0, 8), (1, 1), (1, 17), (3, 5), (301, 64), (2, 1153)] {
        for scale in [1e-30, 1e-3, 1.0, 1e4] {
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                let x = rng.tensor(&[rows, cols], scale);
                let weight = rng.tensor(&[cols], 2.0).to_dtype(dtype).unwrap();
                let bias = rng.tensor(&[cols], 1.0).to_dtype(dtype).unwrap();
                let mut out = poisoned(&[rows, cols]);
                forward(&mut out, &x, &weight, &bias, EPS).unwrap();
                let want = reference(&to_f64(&x), &to_f64(&weight), &to_f64(&bias));
                let what = format!("layer_norm {rows} x {cols} of {scale} by {dtype}");
                assert_close(&what, values(&out), &want, f32_sum(cols));
            }
        }
    }
}

#[test]
fn quantized_is_the_nearest_of_255_levels() {
    let mut rng = Rng(7);
    for (rows, cols) in [(0, 8), (1, 1), (1, 17), (3, 5), (301, 64), (2, 961)] {
        for with_residual in [false, true] {
            let (mut x, residual) = (rng.tensor(&[rows, cols], 3.0), rng.tensor(&[rows, cols], 1.0));
            let (weight, bias) = (rng.tensor(&[cols], 2.0), rng.tensor(&[cols], 1.0));
            let sum: Vec<f32> = values(&x).iter().zip(values(&residual)).map(|(a, b)| a + b).collect();
            let (mut q, mut steps) = (x.like_i8(&[rows, cols]).unwrap(), poisoned(&[rows]));
            let (mut out, mut alone) = (poisoned(&[rows, cols]), poisoned(&[rows, cols]));
            let residual = with_residual.then_some(&residual);
            forward_quantized(&mut q, &mut steps, Some(&mut out), &mut x, residual, (&weight, &bias), EPS)
                .unwrap();
            assert!(!with_residual || values(&x) == sum);
            forward(&mut alone, &x, &weight, &bias, EPS).unwrap();
            assert_eq!(values(&out), values(&alone));
            let (want, q) = (reference(&to_f64(&x), &to_f64(&weight), &to_f64(&bias)), q.i8s().unwrap());
            for ((q, want), &step) in q.chunks(cols).zip(want.chunks(cols)).zip(values(&steps)) {
                let (step, most) = (f64::from(step), want.iter().fold(0.0f64, |most, v| most.max(v.abs())));
                assert!((127.0 * step - most).abs() <= f32_sum(cols).abs * 4.0, "{step} for {most}");
                for (&q, v) in q.iter().zip(want) {
                    assert!(
                        (f64::from(q) * step - v).abs() <= 0.5001 * step + f32_sum(cols).abs * 4.0,
                        "{q} {v}"
                    );
                }
            }
        }
    }
}

#[test]
fn backward_matches_finite_differences() {
    let mut rng = Rng(2);
    for (rows, cols) in [(0, 8), (1, 17), (3, 5), (5, 64)] {
        let [x, dy, start] = [2.0, 1.0, 1.0].map(|scale| rng.tensor(&[rows, cols], scale));
        let [weight, bias, dweight, dbias] = [2.0, 1.0, 1.0, 1.0].map(|scale| rng.tensor(&[cols], scale));
        let (mut dx, mut got_dweight, mut got_dbias) =
            (poisoned(start.shape()), dweight.clone(), dbias.clone());
        backward(&mut dx, Some((&mut got_dweight, &mut got_dbias)), &dy, &x, &weight, EPS).unwrap();

        let [x64, dy64, w64, b64] = [&x, &dy, &weight, &bias].map(to_f64);
        let want = finite_differences(&x64, |x| dot(&reference(x, &w64, &b64), &dy64));
        assert_close("dx", values(&dx), &want, f32_sum(cols));
        let added = |before: &Tensor, slopes: Vec<f64>| -> Vec<f64> {
            to_f64(before).iter().zip(slopes).map(|(b, s)| b + s).collect()
        };
        let slopes = finite_differences(&w64, |w| dot(&reference(&x64, w, &b64), &dy64));
        assert_close("dweight", values(&got_dweight), &added(&dweight, slopes), f32_sum(cols));
        let slopes = finite_differences(&b64, |b| dot(&reference(&x64, &w64, b), &dy64));
        assert_close("dbias", values(&got_dbias), &added(&dbias, slopes), f32_sum(cols));

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
    assert_op_error(forward(&mut w.clone(), &x, &w, &w, EPS), "layer_norm", "out [2, 3]");
    assert_op_error(forward(&mut x.clone(), &x, &short, &w, EPS), "layer_norm", "weight [3]");
    assert_op_error(forward(&mut x.clone(), &x, &w, &short, EPS), "layer_norm", "bias [3]");
    assert_op_error(backward(&mut x.clone(), None, &w, &x, &w, EPS), "layer_norm", "dy [2, 3]");
    let params = Some((&mut w.clone(), &mut short.clone()));
    assert_op_error(backward(&mut x.clone(), params, &x, &x, &w, EPS), "layer_norm", "dbias [3]");
}

#[test]
fn same_bits_on_any_pool() {
    let mut rng = Rng(4);
    let (x, dy) = (rng.tensor(&[1003, 65], 1.0), rng.tensor(&[1003, 65], 1.0));
    let (weight, bias) = (rng.tensor(&[65], 1.0), rng.tensor(&[65], 1.0));
    assert_same_on_any_pool("layer_norm", || {
        let (mut out, mut dx) = (poisoned(&[1003, 65]), poisoned(&[1003, 65]));
        let (mut dweight, mut dbias) = (weight.clone(), bias.clone());
        forward(&mut out, &x, &weight, &bias, EPS).unwrap();
        backward(&mut dx, Some((&mut dweight, &mut dbias)), &dy, &x, &weight, EPS).unwrap();
        [&out, &dx, &dweight, &dbias].map(values).concat()
    });
}
