use mpa::ops::cross_entropy::{forward, sum};
use mpa::tensor::{DType, Device, Indices, Tensor};

use crate::common::{Rng, Tolerance, assert_close, assert_op_error, to_f64};
use crate::device::{DTYPES, on_each_device, output, random, rounded_sum, values, what};

/// Rows and vocabulary: one of each, odd ones, less than a warp, more than one round of the block with and without a tail, both ways.
const SHAPES: [(usize, usize); 7] = [(1, 1), (2, 3), (2, 8), (3, 17), (2, 1029), (2, 4096), (2, 4100)];

/// Losses, and the gradient of `scale` times their sum.
fn reference(logits: &Tensor, targets: &[u32], scale: f32) -> (Vec<f64>, Vec<f64>) {
    let (mut losses, mut gradient) = (vec![], vec![]);
    for (row, &target) in to_f64(logits).chunks(logits.cols()).zip(targets) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = row.iter().map(|x| (x - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let others = weights.iter().enumerate().filter(|&(i, _)| i != target as usize);
        let rest: f64 = others.map(|(_, w)| w).sum();
        losses.push(if row[target as usize] == max {
            rest.ln_1p()
        } else {
            max - row[target as usize] + total.ln()
        });
        gradient.extend(
            weights
                .iter()
                .enumerate()
                .map(|(i, w)| f64::from(scale) / total * if i == target as usize { -rest } else { *w }),
        );
    }
    (losses, gradient)
}

fn random_targets(rng: &mut Rng, rows: usize, below: usize) -> Indices {
    // The last one is always among them.
    (0..rows).map(|i| if i == rows / 2 { below - 1 } else { rng.below(below) } as u32).collect()
}

/// `logits` in main memory.
fn check(name: &str, device: &Device, dtype: DType, logits: &Tensor, targets: &Indices) {
    const SCALE: f32 = 0.7;
    let x = logits.to_device(device).unwrap();
    let (want, gradient) = reference(logits, targets, SCALE);
    let mut losses = output(&x, &[logits.rows()]);
    let mut dlogits =
        Tensor::zeros_on(device, &[0]).unwrap().to_dtype(dtype).unwrap().to_device(device).unwrap();
    dlogits = output(&dlogits, logits.shape());
    forward(&mut losses, Some(&mut dlogits), &x, targets, SCALE).unwrap();
    let n = logits.cols();
    assert_close(name, &values(&losses), &want, rounded_sum(DType::F32, n, 1.0));
    // Each is a quotient: errors are relative, of an exponential of a difference that is rounded (2^-24 of up to 20) and of the sum; below 2^-126 there is
    // nothing.
    let f32_error = 4e-6;
    let rel = if dtype == DType::Bf16 { 2f64.powi(-8) + f32_error } else { f32_error };
    assert_close(name, &values(&dlogits), &gradient, Tolerance { abs: 1e-37, rel });
    let mut alone = output(&x, &[logits.rows()]);
    forward(&mut alone, None, &x, targets, SCALE).unwrap();
    assert_eq!(values(&alone), values(&losses), "{name}");
}

#[test]
fn losses_and_gradients_match_f64() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for (rows, cols) in SHAPES {
            for dtype in DTYPES {
                for scale in [1e-3, 10.0] {
                    let logits = rng.tensor(&[rows, cols], scale);
                    let targets = random_targets(&mut rng, rows, cols);
                    let name = what(&[&"cross_entropy", &rows, &"x", &cols, &dtype, &scale]);
                    check(&name, device, dtype, &logits, &targets);
                }
            }
        }
    });
}

/// The largest logit is far above the others, and anywhere: in each round, the first or the last.
#[test]
fn the_largest_logit_anywhere_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        let places = [0, 1023, 1024, 1028]
            .map(|at| (1029, at))
            .into_iter()
            .chain([1, 4096, 4098, 4999].map(|at| (5000, at)));
        for (cols, at) in places {
            for target in [at, (at + 1) % cols] {
                let mut logits = rng.vec(cols, 1.0);
                // Its exponential is infinite, so that it must be known before.
                logits[at] = 100.0;
                let logits = Tensor::from_vec(&[1, cols], logits).unwrap();
                let name = what(&[&"high at", &at, &"of", &cols, &"target", &target]);
                check(&name, device, DType::F32, &logits, &vec![target as u32].into());
            }
        }
    });
}

#[test]
fn ends_do_not_overflow() {
    on_each_device(|device| {
        for (row, target) in [
            (vec![1e4, -1e4, 0.0], 0),
            (vec![1e4, -1e4, 0.0], 1),
            (vec![1e4, 1e4, -1e4], 1),
            (vec![-1e4, -1e4, -1e4, -10001.0], 3),
            (vec![3e38, -3e38], 0),
            (vec![1.6e38, -1.6e38, 0.0], 1),
            (vec![-3e38, -3e38, -3e38, -3e38], 2),
            (vec![16.0, 0.0], 0),
            (vec![0.0, -30.0], 0),
        ] {
            let logits = Tensor::from_vec(&[1, row.len()], row).unwrap();
            check("ends", device, DType::F32, &logits, &vec![target].into());
        }
    });
}

/// A loss far below the last bit of 1, that of a target which is almost certain, is right in its leading digits.
#[test]
fn losses_close_to_nothing_match_f64() {
    on_each_device(|device| {
        for (row, target) in [(vec![20.0, 0.0, 1.0], 0), (vec![-30.0, -1.0, 40.0, -30.0], 2)] {
            let logits = Tensor::from_vec(&[1, row.len()], row).unwrap();
            let (want, _) = reference(&logits, &[target], 1.0);
            let x = logits.to_device(device).unwrap();
            let mut losses = output(&x, &[1]);
            forward(&mut losses, None, &x, &vec![target].into(), 1.0).unwrap();
            // An exponential of up to -70, rounded: 70 * 2^-24.
            assert_close("losses", &values(&losses), &want, Tolerance { abs: 0.0, rel: 5e-6 });
        }
    });
}

/// Minus infinity masks a token out; what is not a number shows, and in its row alone.
#[test]
fn infinities_and_nan_show_where_they_are() {
    on_each_device(|device| {
        let low = f32::NEG_INFINITY;
        let rows = [
            [low, low, low, low, 1.0, low, 2.0, low],
            [0.0; 8],
            [0.0, 1.0, 2.0, f32::NAN, 0.0, 0.0, 0.0, 0.0],
        ];
        let x = Tensor::from_vec(&[3, 8], rows.concat()).unwrap().to_device(device).unwrap();
        let (mut losses, mut dlogits) = (output(&x, &[3]), output(&x, &[3, 8]));
        forward(&mut losses, Some(&mut dlogits), &x, &vec![4, 0, 0].into(), 1.0).unwrap();
        let (losses, dlogits) = (values(&losses), values(&dlogits));
        let e = 1f64.exp();
        let want = [(1.0 + e).ln(), 8f64.ln()];
        assert_close("losses", &losses[..2], &want, rounded_sum(DType::F32, 1, 1.0));
        let gradient = [0.0, 0.0, 0.0, 0.0, -e / (1.0 + e), 0.0, e / (1.0 + e), 0.0];
        assert_close("dlogits", &dlogits[..8], &gradient, rounded_sum(DType::F32, 1, 1.0));
        assert!(losses[2].is_nan() && dlogits[16..].iter().all(|d| d.is_nan()));
    });
}

#[test]
fn the_sum_is_over_all_rows_and_none_is_no_work() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let x = random(&mut rng, device, DType::F32, &[5, 7], 1.0);
        let mut losses = output(&x, &[5]);
        forward(&mut losses, None, &x, &vec![0, 1, 2, 3, 4].into(), 1.0).unwrap();
        let total: f64 = values(&losses).iter().map(|&l| f64::from(l)).sum();
        assert_eq!(sum(&losses).unwrap(), total);
        let none = output(&x, &[0, 7]);
        let mut losses = output(&x, &[0]);
        forward(&mut losses, Some(&mut output(&x, &[0, 7])), &none, &vec![].into(), 1.0).unwrap();
        assert_eq!(sum(&losses).unwrap(), 0.0);
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(4);
        let x = random(&mut rng, device, DType::F32, &[2, 8], 1.0);
        let narrow = random(&mut rng, device, DType::Bf16, &[2, 8], 1.0);
        let targets: Indices = vec![0, 7].into();
        let run = |losses: &mut Tensor, x: &Tensor| forward(losses, None, x, &targets, 1.0);
        assert_op_error(run(&mut output(&x, &[2]), &narrow), "cross_entropy", "f32 losses and logits");
        assert_op_error(run(&mut output(&narrow, &[2]), &x), "cross_entropy", "f32 losses and logits");
        assert_op_error(run(&mut Tensor::zeros(&[2]), &x), "tensor", "host-executed");
        let high = vec![0, 8].into();
        assert_op_error(forward(&mut output(&x, &[2]), None, &x, &high, 1.0), "cross_entropy", "below 8");
    });
}
