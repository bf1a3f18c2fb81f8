use mpa::ops::layer_norm::{forward, forward_residual};
use mpa::tensor::{DType, Device, Tensor};

use crate::common::{Rng, Tolerance, assert_close, assert_op_error, to_f64};
use crate::device::{DTYPES, on_each_device, output, random, rounded_sum, values, what};

const EPS: f32 = 1e-5;

fn reference(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let n = weight.len() as f64;
    let norm = |row: &[f64]| {
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
        row.iter()
            .zip(weight.iter().zip(bias))
            .map(|(x, (w, b))| (x - mean) * scale * w + b)
            .collect::<Vec<_>>()
    };
    x.chunks(weight.len()).flat_map(norm).collect()
}

/// Rows and columns: one of each, odd ones, less than a warp's packs, more than one round of them, rows that do not fill a block.
const SHAPES: [(usize, usize); 7] = [(1, 1), (5, 3), (3, 8), (4, 64), (9, 100), (2, 576), (7, 961)];

/// Outputs are of size 6 and sums of size 2 times that of their terms.
fn tolerance(dtype: DType, cols: usize) -> Tolerance {
    rounded_sum(dtype, cols, 6.0)
}

fn parameters(rng: &mut Rng, device: &Device, dtype: DType, cols: usize) -> (Tensor, Tensor) {
    (random(rng, device, dtype, &[cols], 2.0), random(rng, device, dtype, &[cols], 2.0))
}

#[test]
fn forward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for (rows, cols) in SHAPES {
            for dtype in DTYPES {
                for scale in [1e-3, 1.0, 1e4] {
                    let x = random(&mut rng, device, dtype, &[rows, cols], scale);
                    let (weight, bias) = parameters(&mut rng, device, dtype, cols);
                    let mut out = output(&x, &[rows, cols]);
                    forward(&mut out, &x, &weight, &bias, EPS).unwrap();
                    let want = reference(&to_f64(&x), &to_f64(&weight), &to_f64(&bias));
                    let name = what(&[&"layer_norm", &rows, &"x", &cols, &dtype, &scale]);
                    assert_close(&name, &values(&out), &want, tolerance(dtype, cols));
                }
            }
        }
    });
}

#[test]
fn a_large_mean_does_not_drown_the_variance() {
    on_each_device(|device| {
        let mut rng = Rng(4);
        for cols in [100, 961] {
            let wave: Vec<f32> = rng.vec(2 * cols, 1.0).iter().map(|x| x + 1000.0).collect();
            let x = Tensor::from_vec(&[2, cols], wave).unwrap().to_device(device).unwrap();
            let (weight, bias) = parameters(&mut rng, device, DType::F32, cols);
            let mut out = output(&x, &[2, cols]);
            forward(&mut out, &x, &weight, &bias, EPS).unwrap();
            let want = reference(&to_f64(&x), &to_f64(&weight), &to_f64(&bias));
            // The mean is off by its own rounding, some 1e-7 of 1000; in units of the deviation (0.58), times a weight of 2, that is 4e-4.
            // E[x^2] - mean^2 would be off by 1e-7 of 1e6 from a variance of 0.33.
            assert_close("layer_norm at 1000", &values(&out), &want, Tolerance { abs: 4e-4, rel: 1e-5 });
        }
    });
}

#[test]
fn residual_is_added_first_and_kept() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        for (rows, cols) in SHAPES {
            for dtype in DTYPES {
                let mut x = random(&mut rng, device, dtype, &[rows, cols], 1.0);
                let residual = random(&mut rng, device, dtype, &[rows, cols], 1.0);
                let (weight, bias) = parameters(&mut rng, device, dtype, cols);
                let sum: Vec<f64> = to_f64(&x).iter().zip(to_f64(&residual)).map(|(a, b)| a + b).collect();
                let mut out = output(&x, &[rows, cols]);
                forward_residual(&mut out, &mut x, &residual, &weight, &bias, EPS).unwrap();
                let name = what(&[&"layer_norm with residual", &rows, &"x", &cols, &dtype]);
                assert_close(&name, &values(&x), &sum, rounded_sum(dtype, 1, 1.0));
                // The norm is that of the sum as it is stored.
                let want = reference(&to_f64(&x), &to_f64(&weight), &to_f64(&bias));
                assert_close(&name, &values(&out), &want, tolerance(dtype, cols));
            }
        }
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let x = random(&mut rng, device, DTYPES[0], &[2, 8], 1.0);
        let fit = random(&mut rng, device, DTYPES[0], &[8], 1.0);
        let narrow = random(&mut rng, device, DTYPES[1], &[8], 1.0);
        let here = rng.tensor(&[8], 1.0);
        let refused =
            |weight: &Tensor, bias: &Tensor| forward(&mut output(&x, &[2, 8]), &x, weight, bias, EPS);
        assert_op_error(refused(&fit, &narrow), "layer_norm", "all f32 or all bf16");
        assert_op_error(refused(&narrow, &fit), "layer_norm", "all f32 or all bf16");
        assert_op_error(refused(&fit, &here), "tensor", "host-executed");
        let residual = random(&mut rng, device, DTYPES[1], &[2, 8], 1.0);
        let result = forward_residual(&mut output(&x, &[2, 8]), &mut x.clone(), &residual, &fit, &fit, EPS);
        assert_op_error(result, "layer_norm", "all f32 or all bf16");
    });
}
