use mpa::ops::rms_norm::{backward, backward_residual, forward, forward_quantized, forward_residual};
use mpa::tensor::{DType, Device, Tensor};

use crate::common::{Rng, assert_close, assert_op_error, poisoned, rotated, to_f64};
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

/// Rows and columns: as above, and more than one round of a block.
const QUANTIZED: [(usize, usize); 9] =
    [(1, 1), (5, 3), (3, 8), (4, 64), (9, 100), (2, 576), (3, 1304), (2, 1041), (2, 1152)];

#[test]
fn quantized_has_the_bits_of_the_cpu_and_the_root_as_a_factor() {
    on_each_device(|device| {
        let mut rng = Rng(6);
        for ((rows, cols), dtype) in
            QUANTIZED.into_iter().flat_map(|shape| DTYPES.map(|dtype| (shape, dtype)))
        {
            let rotations =
                [1, 2, 4, 16, 64, 128].into_iter().filter(|&rotation| cols.is_multiple_of(rotation));
            for (scale, with_residual, rotation) in
                rotations.flat_map(|r| [(1e-3, true, r), (1.0, false, r), (1e4, true, r)])
            {
                let mut x = random(&mut rng, device, dtype, &[rows, cols], scale);
                let residual = random(&mut rng, device, dtype, &[rows, cols], scale);
                let residual = with_residual.then_some(&residual);
                let weight = random(&mut rng, device, dtype, &[cols], 2.0);
                let mut sum: Vec<f64> = to_f64(&x);
                residual.inspect(|r| sum.iter_mut().zip(to_f64(r)).for_each(|(a, b)| *a += b));
                let (mut q, mut scales) = (x.like_i8(&[rows, cols]).unwrap(), x.like_f32(&[rows]).unwrap());
                forward_quantized(&mut q, &mut scales, &mut x, residual, &weight, EPS, rotation).unwrap();
                let name = what(&[&"rms_norm quantized", &rows, &"x", &cols, &rotation, &dtype, &scale]);
                assert_close(&name, &values(&x), &sum, rounded_sum(dtype, 1, f64::from(scale)));
                let want = rotated(&reference(&to_f64(&x), &to_f64(&weight)), rotation);
                let most =
                    want.chunks(cols).map(|row| row.iter().fold(0.0f64, |m, v| m.max(v.abs())) / 127.0);
                let tolerance = rounded_sum(DType::F32, cols, 0.02 * rotation as f64);
                assert_close(&name, &values(&scales), &most.collect::<Vec<_>>(), tolerance);

                let [mut x_here, weight_here] = [&x, &weight].map(|t| t.to_f32().unwrap());
                let (mut q_here, mut scale_here) =
                    (x_here.like_i8(&[rows, cols]).unwrap(), poisoned(&[rows]));
                let (q_out, scale_out) = (&mut q_here, &mut scale_here);
                forward_quantized(q_out, scale_out, &mut x_here, None, &weight_here, EPS, rotation).unwrap();
                let q = q.to_device(&Device::Cpu).unwrap();
                assert!(q.i8s().unwrap() == q_here.i8s().unwrap(), "{name}");
            }
        }
    });
}

/// Rows and columns: as above, and rows of one block and of several, with and without a tail, more columns than threads, more blocks than the warps that
/// add their sums up.
const BACKWARD: [(usize, usize); 8] =
    [(1, 1), (5, 3), (16, 8), (17, 64), (9, 100), (20, 576), (33, 301), (150, 12)];

/// dx, and what is added to dweight; the largest 1 / rms.
fn reference_backward(dy: &Tensor, x: &Tensor, weight: &Tensor) -> (Vec<f64>, Vec<f64>, f64) {
    let n = weight.len();
    let weight = to_f64(weight);
    let (mut dx, mut dweight, mut largest) = (vec![], vec![0.0; n], 0.0f64);
    for (dy, x) in to_f64(dy).chunks(n).zip(to_f64(x).chunks(n)) {
        let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n as f64 + f64::from(EPS)).sqrt();
        let mean_gn = (0..n).map(|c| dy[c] * weight[c] * x[c] * scale).sum::<f64>() / n as f64;
        for c in 0..n {
            dx.push(scale * (dy[c] * weight[c] - x[c] * scale * mean_gn));
            dweight[c] += dy[c] * x[c] * scale;
        }
        largest = largest.max(scale);
    }
    (dx, dweight, largest)
}

#[test]
fn backward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(4);
        for (rows, cols) in BACKWARD {
            for dtype in DTYPES {
                for scale in [1e-3, 1.0, 1e4] {
                    let [x, dy] = [scale, 1.0].map(|s| random(&mut rng, device, dtype, &[rows, cols], s));
                    let weight = random(&mut rng, device, dtype, &[cols], 2.0);
                    let before = random(&mut rng, device, DType::F32, &[cols], 1.0);
                    let (want, added, largest) = reference_backward(&dy, &x, &weight);
                    let (mut dx, mut dweight) = (output(&x, &[rows, cols]), before.clone());
                    backward(&mut dx, Some(&mut dweight), &dy, &x, &weight, EPS).unwrap();
                    let name = what(&[&"rms_norm backward", &rows, &"x", &cols, &dtype, &scale]);
                    // Two terms of up to 4 / rms each.
                    assert_close(&name, &values(&dx), &want, rounded_sum(dtype, cols, 4.0 * largest));
                    let want: Vec<f64> = to_f64(&before).iter().zip(&added).map(|(a, b)| a + b).collect();
                    assert_close(&name, &values(&dweight), &want, rounded_sum(DType::F32, rows + cols, 2.0));

                    let mut alone = output(&x, &[rows, cols]);
                    backward(&mut alone, None, &dy, &x, &weight, EPS).unwrap();
                    assert_eq!(values(&alone), values(&dx), "{name} without dweight");
                    let mut again = before.clone();
                    backward(&mut alone, Some(&mut again), &dy, &x, &weight, EPS).unwrap();
                    assert_eq!(values(&again), values(&dweight), "{name} twice");
                }
            }
        }
    });
}

#[test]
fn backward_adds_the_residual_and_rounds_once() {
    on_each_device(|device| {
        let mut rng = Rng(5);
        for (rows, cols) in BACKWARD {
            for dtype in DTYPES {
                let mut tensor = |shape: &[usize]| random(&mut rng, device, dtype, shape, 1.0);
                let [x, dy, residual] = [(); 3].map(|()| tensor(&[rows, cols]));
                let weight = tensor(&[cols]);
                let (want, _, largest) = reference_backward(&dy, &x, &weight);
                let want: Vec<f64> = want.iter().zip(to_f64(&residual)).map(|(a, b)| a + b).collect();
                let mut dx = output(&x, &[rows, cols]);
                backward_residual(&mut dx, None, &dy, &x, &weight, &residual, EPS).unwrap();
                let name = what(&[&"rms_norm backward with residual", &rows, &"x", &cols, &dtype]);
                assert_close(&name, &values(&dx), &want, rounded_sum(dtype, cols, 1.0 + 4.0 * largest));
                let mut dweight = Tensor::zeros_on(device, &[cols]).unwrap();
                let mut again = output(&x, &[rows, cols]);
                backward_residual(&mut again, Some(&mut dweight), &dy, &x, &weight, &residual, EPS).unwrap();
                assert_eq!(values(&again), values(&dx), "{name}");
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
        let (mut q, mut scale) = (x.like_i8(&[2, 8]).unwrap(), x.like_f32(&[2]).unwrap());
        let mut quantized = |q: &mut Tensor, weight: &Tensor| {
            forward_quantized(q, &mut scale, &mut x.clone(), None, weight, EPS, 8)
        };
        assert_op_error(quantized(&mut q, &narrow), "rms_norm", "all f32 or all bf16");
        assert_op_error(quantized(&mut q, &here), "tensor", "host-executed");
        assert_op_error(quantized(&mut x.clone(), &here), "rms_norm", "q in i8");
        let run = |dweight: &mut Tensor, weight: &Tensor| {
            backward(&mut output(&x, &[2, 8]), Some(dweight), &x, &x, weight, EPS)
        };
        let sums = || Tensor::zeros_on(device, &[8]).unwrap();
        assert_op_error(run(&mut sums(), &narrow), "rms_norm", "all f32 or all bf16");
        let wide = x.slice(0..1).unwrap().reshape(&[8]).unwrap();
        assert_op_error(run(&mut output(&narrow, &[8]), &wide), "rms_norm", "in f32");
        assert_op_error(run(&mut Tensor::zeros(&[8]), &wide), "tensor", "host-executed");
    });
}
