use mpa::ops::rms_norm::{forward, forward_residual};

use crate::common::{Rng, assert_close, assert_op_error, to_f64};
use crate::device::{DTYPES, on_each_device, output, random, rounded_sum, values, what};

const EPS: f32 = 1e-5;

fn reference(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let n = weight.len();
    let norm = |row: &[f64]| {
        let scale = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / n as f64 + f64::from(EPS)).sqrt();
        row.iter().zip(weight).map(|(x, w)| x * scale * w).collect::<Vec<_>>()
    };
    x.chunks(n).flat_map(norm).collect()
}

/// Rows and columns: one of each, odd ones, less than a warp's packs, more than one round of them, rows that do not fill a block.
const SHAPES: [(usize, usize); 7] = [(1, 1), (5, 3), (3, 8), (4, 64), (9, 100), (2, 576), (7, 961)];

#[test]
fn forward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for (rows, cols) in SHAPES {
            for dtype in DTYPES {
                for scale in [1e-3, 1.0, 1e4] {
                    let x = random(&mut rng, device, dtype, &[rows, cols], scale);
                    let weight = random(&mut rng, device, dtype, &[cols], 2.0);
                    let mut out = output(&x, &[rows, cols]);
                    forward(&mut out, &x, &weight, EPS).unwrap();
                    let want = reference(&to_f64(&x), &to_f64(&weight));
                    let name = what(&[&"rms_norm", &rows, &"x", &cols, &dtype, &scale]);
                    assert_close(&name, &values(&out), &want, rounded_sum(dtype, cols, 2.0));
                }
            }
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
                let weight = random(&mut rng, device, dtype, &[cols], 2.0);
                let sum: Vec<f64> = to_f64(&x).iter().zip(to_f64(&residual)).map(|(a, b)| a + b).collect();
                let mut out = output(&x, &[rows, cols]);
                forward_residual(&mut out, &mut x, &residual, &weight, EPS).unwrap();
                let name = what(&[&"rms_norm with residual", &rows, &"x", &cols, &dtype]);
                assert_close(&name, &values(&x), &sum, rounded_sum(dtype, 1, 1.0));
                // The norm is that of the sum as it is stored.
                let want = reference(&to_f64(&x), &to_f64(&weight));
                assert_close(&name, &values(&out), &want, rounded_sum(dtype, cols, 2.0));
            }
        }
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let x = random(&mut rng, device, DTYPES[0], &[2, 8], 1.0);
        let narrow = random(&mut rng, device, DTYPES[1], &[8], 1.0);
        let here = rng.tensor(&[8], 1.0);
        assert_op_error(
            forward(&mut output(&x, &[2, 8]), &x, &narrow, EPS),
            "rms_norm",
            "all f32 or all bf16",
        );
        assert_op_error(forward(&mut output(&x, &[2, 8]), &x, &here, EPS), "tensor", "host-executed");
    });
}
