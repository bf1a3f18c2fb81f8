use mpa::ops::layer_norm::{backward, backward_residual, forward, forward_quantized, forward_residual};
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
        let (mut q, mut steps) = (x.like_i8(&[2, 8]).unwrap(), x.like_f32(&[2]).unwrap());
        let mut quantized = |q: &mut Tensor, weight: &Tensor| {
            forward_quantized(q, &mut steps, None, &mut x.clone(), None, (weight, &fit), EPS)
        };
        assert_op_error(quantized(&mut q, &narrow), "layer_norm", "all f32 or all bf16");
        assert_op_error(quantized(&mut q, &here), "tensor", "host-executed");
        assert_op_error(quantized(&mut x.clone(), &fit), "layer_norm", "q in i8");
        let residual = random(&mut rng, device, DTYPES[1], &[2, 8], 1.0);
        let result = forward_residual(&mut output(&x, &[2, 8]), &mut x.clone(), &residual, &fit, &fit, EPS);
        assert_op_error(result, "layer_norm", "all f32 or all bf16");
    });
}

/// Rows and columns: as above, and more than one round of a block.
const QUANTIZED: [(usize, usize); 8] =
    [(1, 1), (5, 3), (3, 8), (4, 64), (9, 100), (2, 576), (3, 1304), (2, 1041)];

#[test]
fn quantized_is_the_nearest_of_255_levels() {
    on_each_device(|device| {
        let mut rng = Rng(6);
        for ((rows, cols), dtype) in
            QUANTIZED.into_iter().flat_map(|shape| DTYPES.map(|dtype| (shape, dtype)))
        {
            for (scale, with_residual) in [(1e-3, true), (1.0, false), (1e4, true)] {
                let mut x = off_centre(&mut rng, device, dtype, &[rows, cols], scale);
                let residual = random(&mut rng, device, dtype, &[rows, cols], scale);
                let residual = with_residual.then_some(&residual);
                let (weight, bias) = parameters(&mut rng, device, dtype, cols);
                let params = (&weight, &bias);
                let mut sum: Vec<f64> = to_f64(&x);
                residual.inspect(|r| sum.iter_mut().zip(to_f64(r)).for_each(|(a, b)| *a += b));
                let (mut q, mut steps) = (x.like_i8(&[rows, cols]).unwrap(), x.like_f32(&[rows]).unwrap());
                let mut out = output(&x, &[rows, cols]);
                forward_quantized(&mut q, &mut steps, Some(&mut out), &mut x, residual, params, EPS).unwrap();
                let name = what(&[&"layer_norm quantized", &rows, &"x", &cols, &dtype, &scale]);
                assert_close(&name, &values(&x), &sum, rounded_sum(dtype, 1, f64::from(scale)));
                let want = reference(&to_f64(&x), &to_f64(&weight), &to_f64(&bias));
                assert_close(&name, &values(&out), &want, tolerance(dtype, cols));
                let exact = tolerance(DType::F32, cols);
                let rows_of_q = values(&q);
                for ((q, want), step) in rows_of_q.chunks(cols).zip(want.chunks(cols)).zip(to_f64(&steps)) {
                    let most = want.iter().fold(0.0f64, |most, v| most.max(v.abs()));
                    assert!(
                        (127.0 * step - most).abs() <= exact.abs + exact.rel * most,
                        "{name}: {step} {most}"
                    );
                    for (&q, &v) in q.iter().zip(want) {
                        let error = (f64::from(q) * step - v).abs();
                        let allowed = 0.5 * step + 2.0 * (exact.abs + exact.rel * most);
                        assert!(error <= allowed, "{name}: {q} x {step} for {v}");
                    }
                }

                let (mut again, mut steps_again) = (q.clone(), output(&steps, &[rows]));
                forward_quantized(&mut again, &mut steps_again, None, &mut x, None, params, EPS).unwrap();
                assert_eq!(values(&again), rows_of_q, "{name} without the norm");
                assert_eq!(values(&steps_again), values(&steps), "{name} without the norm");
            }
        }
    });
}

/// Rows and columns: as above, and rows of one block and of several, with and without a tail, more columns than threads, more blocks than the warps that
/// add their sums up.
const BACKWARD: [(usize, usize); 8] =
    [(1, 1), (5, 3), (16, 8), (17, 64), (9, 100), (20, 576), (33, 301), (150, 12)];

/// dx, what is added to dweight and to dbias; the largest 1 / deviation.
fn reference_backward(dy: &Tensor, x: &Tensor, weight: &Tensor) -> (Vec<f64>, [Vec<f64>; 2], f64) {
    let n = weight.len();
    let mean = |terms: Vec<f64>| terms.iter().sum::<f64>() / n as f64;
    let weight = to_f64(weight);
    let (mut dx, mut sums, mut largest) = (vec![], [vec![0.0; n], vec![0.0; n]], 0.0f64);
    for (dy, x) in to_f64(dy).chunks(n).zip(to_f64(x).chunks(n)) {
        let middle = mean(x.to_vec());
        let variance = mean(x.iter().map(|x| (x - middle) * (x - middle)).collect());
        let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
        let g: Vec<f64> = dy.iter().zip(&weight).map(|(dy, w)| dy * w).collect();
        let normed: Vec<f64> = x.iter().map(|x| (x - middle) * scale).collect();
        let (mean_g, mean_gn) = (mean(g.clone()), mean(g.iter().zip(&normed).map(|(g, n)| g * n).collect()));
        for c in 0..n {
            dx.push(scale * (g[c] - mean_g - normed[c] * mean_gn));
            sums[0][c] += dy[c] * normed[c];
            sums[1][c] += dy[c];
        }
        largest = largest.max(scale);
    }
    (dx, sums, largest)
}

/// Rows of size `scale` whose mean is as large.
fn off_centre(rng: &mut Rng, device: &Device, dtype: DType, shape: &[usize], scale: f32) -> Tensor {
    let x = rng.vec(shape.iter().product(), scale).into_iter().map(|x| x + scale).collect();
    Tensor::from_vec(shape, x).unwrap().to_dtype(dtype).unwrap().to_device(device).unwrap()
}

#[test]
fn backward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(14);
        for (rows, cols) in BACKWARD {
            for dtype in DTYPES {
                for scale in [1e-3, 1.0, 1e4] {
                    let x = off_centre(&mut rng, device, dtype, &[rows, cols], scale);
                    let dy = random(&mut rng, device, dtype, &[rows, cols], 1.0);
                    let weight = random(&mut rng, device, dtype, &[cols], 2.0);
                    let before = [1.0, 3.0].map(|s| random(&mut rng, device, DType::F32, &[cols], s));
                    let (want, added, largest) = reference_backward(&dy, &x, &weight);
                    let mut dx = output(&x, &[rows, cols]);
                    let [mut dweight, mut dbias] = before.clone();
                    backward(&mut dx, Some((&mut dweight, &mut dbias)), &dy, &x, &weight, EPS).unwrap();
                    let name = what(&[&"layer_norm backward", &rows, &"x", &cols, &dtype, &scale]);
                    // Three terms of up to 4 / deviation each.
                    assert_close(&name, &values(&dx), &want, rounded_sum(dtype, cols, 6.0 * largest));
                    for ((before, added), got) in before.iter().zip(&added).zip([&dweight, &dbias]) {
                        let want: Vec<f64> = to_f64(before).iter().zip(added).map(|(a, b)| a + b).collect();
                        let tolerance = rounded_sum(DType::F32, rows + cols, 3.0);
                        assert_close(&name, &values(got), &want, tolerance);
                    }

                    let mut alone = output(&x, &[rows, cols]);
                    backward(&mut alone, None, &dy, &x, &weight, EPS).unwrap();
                    assert_eq!(values(&alone), values(&dx), "{name} without sums");
                    let [mut again, mut dbias_again] = before.clone();
                    backward(&mut alone, Some((&mut again, &mut dbias_again)), &dy, &x, &weight, EPS)
                        .unwrap();
                    assert_eq!(values(&again), values(&dweight), "{name} twice");
                    assert_eq!(values(&dbias_again), values(&dbias), "{name} twice");
                }
            }
        }
    });
}

#[test]
fn backward_adds_the_residual_and_rounds_once() {
    on_each_device(|device| {
        let mut rng = Rng(15);
        for (rows, cols) in BACKWARD {
            for dtype in DTYPES {
                let mut tensor = |shape: &[usize]| random(&mut rng, device, dtype, shape, 1.0);
                let [x, dy, residual] = [(); 3].map(|()| tensor(&[rows, cols]));
                let weight = tensor(&[cols]);
                let (want, _, largest) = reference_backward(&dy, &x, &weight);
                let want: Vec<f64> = want.iter().zip(to_f64(&residual)).map(|(a, b)| a + b).collect();
                let mut dx = output(&x, &[rows, cols]);
                backward_residual(&mut dx, None, &dy, &x, &weight, &residual, EPS).unwrap();
                let name = what(&[&"layer_norm backward with residual", &rows, &"x", &cols, &dtype]);
                assert_close(&name, &values(&dx), &want, rounded_sum(dtype, cols, 1.0 + 6.0 * largest));
                let [mut dweight, mut dbias] = [(); 2].map(|()| Tensor::zeros_on(device, &[cols]).unwrap());
                let mut again = output(&x, &[rows, cols]);
                let sums = Some((&mut dweight, &mut dbias));
                backward_residual(&mut again, sums, &dy, &x, &weight, &residual, EPS).unwrap();
                assert_eq!(values(&again), values(&dx), "{name}");
            }
        }
    });
}

#[test]
fn backward_refuses_mixed_types() {
    on_each_device(|device| {
        let mut rng = Rng(16);
        let x = random(&mut rng, device, DType::F32, &[2, 8], 1.0);
        let [wide, narrow] = DTYPES.map(|dtype| random(&mut rng, device, dtype, &[8], 1.0));
        let run = |weight: &Tensor, mut dweight: Tensor, mut dbias: Tensor| {
            backward(&mut output(&x, &[2, 8]), Some((&mut dweight, &mut dbias)), &x, &x, weight, EPS)
        };
        let sums = || Tensor::zeros_on(device, &[8]).unwrap();
        assert_op_error(run(&narrow, sums(), sums()), "layer_norm", "all f32 or all bf16");
        assert_op_error(run(&wide, narrow.clone(), sums()), "layer_norm", "in f32");
        assert_op_error(run(&wide, sums(), narrow.clone()), "layer_norm", "in f32");
        assert_op_error(run(&wide, sums(), Tensor::zeros(&[8])), "tensor", "host-executed");
    });
}
