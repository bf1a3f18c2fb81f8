//! Cross-entropy against float64, its gradient against finite differences.
use mpa::error::Result;
use mpa::ops::cross_entropy::{self, sum};
use mpa::tensor::Tensor;

use crate::common::*;

/// Sum of the losses.
fn forward(dlogits: Option<&mut Tensor>, logits: &Tensor, targets: &[u32], scale: f32) -> Result<f64> {
    let mut losses = poisoned(&[targets.len()]);
    cross_entropy::forward(&mut losses, dlogits, logits, &targets.into(), scale)?;
    sum(&losses)
}

fn reference(logits: &[f64], targets: &[u32], vocabulary: usize) -> f64 {
    let rows = logits.chunks(vocabulary).zip(targets);
    rows.map(|(row, &target)| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - row[target as usize]
    })
    .sum()
}

fn targets(rng: &mut Rng, m: usize, vocabulary: usize) -> Vec<u32> {
    (0..m).map(|_| rng.below(vocabulary) as u32).collect()
}

/// Weights are f32 with an error of one unit in the last place; their f64 sum and its logarithm keep that as an absolute error per row.
const PER_ROW: f64 = 1.2e-7;
/// A row's loss is rounded to f32.
const ROUNDED: f64 = 6e-8;

#[test]
fn loss_and_gradient() {
    let mut rng = Rng(41);
    for (m, vocabulary) in [(1, 1), (1, 2), (7, 17), (33, 96), (3, 1009)] {
        let logits = rng.tensor(&[m, vocabulary], 5.0);
        let targets = targets(&mut rng, m, vocabulary);
        let want = reference(&to_f64(&logits), &targets, vocabulary);
        let loss = forward(None, &logits, &targets, 1.0).unwrap();
        assert!((loss - want).abs() <= PER_ROW * m as f64 + ROUNDED * want, "{loss}, expected {want}");
        let mut dlogits = poisoned(&[m, vocabulary]);
        let again = forward(Some(&mut dlogits), &logits, &targets, 0.7).unwrap();
        assert_eq!(again, loss);
        let gradient = finite_differences(&to_f64(&logits), |x| 0.7 * reference(x, &targets, vocabulary));
        assert_close("dlogits", values(&dlogits), &gradient, F32);
    }
}

#[test]
fn extreme_logits() {
    let row = |values: &[f32]| Tensor::from_vec(&[1, values.len()], values.to_vec()).unwrap();
    for (logits, target) in [
        (row(&[1e4, -1e4, 0.0]), 0),
        (row(&[1e4, -1e4, 0.0]), 1),
        (row(&[1e4, 1e4, -1e4]), 1),
        (row(&[-1e4, -1e4, -1e4, -10001.0]), 3),
        (row(&[3e38, -3e38]), 0),
        (row(&[1.6e38, -1.6e38]), 1),
        (row(&[0.0, -30.0]), 0),
    ] {
        let mut dlogits = poisoned(logits.shape());
        let loss = forward(Some(&mut dlogits), &logits, &[target], 1.0).unwrap();
        let want = reference(&to_f64(&logits), &[target], logits.cols());
        assert!((loss - want).abs() <= PER_ROW + ROUNDED * want, "{loss}, expected {want}");
        assert!(values(&dlogits).iter().all(|d| d.is_finite() && d.abs() <= 1.0));
        let sum: f32 = values(&dlogits).iter().sum();
        assert!(sum.abs() <= 3e-7, "a gradient sums to 0, not {sum}");
    }
}

#[test]
fn a_confident_row_keeps_its_small_gradient() {
    // softmax - 1 at the target is -e^-16: rounding softmax to f32 first would give 0.
    let logits = Tensor::from_vec(&[1, 2], vec![16.0, 0.0]).unwrap();
    let mut dlogits = poisoned(&[1, 2]);
    forward(Some(&mut dlogits), &logits, &[0], 1.0).unwrap();
    let e = (-16f64).exp();
    assert_close("dlogits", values(&dlogits), &[-e, e], Tolerance { abs: 0.0, rel: 2e-6 });
}

#[test]
fn nan_is_not_swallowed() {
    let logits = Tensor::from_vec(&[1, 3], vec![1.0, f32::NAN, 0.0]).unwrap();
    assert!(forward(None, &logits, &[0], 1.0).unwrap().is_nan());
}

#[test]
fn rows_do_not_depend_on_neighbours_nor_on_threads() {
    let mut rng = Rng(42);
    let (m, vocabulary) = (50, 301);
    let logits = rng.tensor(&[m, vocabulary], 8.0);
    let targets = targets(&mut rng, m, vocabulary);
    let mut all = poisoned(&[m, vocabulary]);
    let total = forward(Some(&mut all), &logits, &targets, 1.0).unwrap();
    let mut sum = 0.0;
    for i in 0..m {
        let row = i * vocabulary..(i + 1) * vocabulary;
        let one = Tensor::from_vec(&[1, vocabulary], values(&logits)[row.clone()].to_vec()).unwrap();
        let mut dlogits = poisoned(&[1, vocabulary]);
        sum += forward(Some(&mut dlogits), &one, &targets[i..=i], 1.0).unwrap();
        assert_eq!(values(&dlogits), &values(&all)[row]);
    }
    assert_eq!(sum, total);
    assert_same_on_any_pool("cross_entropy", || {
        let mut dlogits = poisoned(&[m, vocabulary]);
        forward(Some(&mut dlogits), &logits, &targets, 1.0).unwrap();
        values(&dlogits).to_vec()
    });
}

#[test]
fn empty_and_wrong_input() {
    let t = Tensor::zeros;
    assert_eq!(forward(Some(&mut t(&[0, 5])), &t(&[0, 5]), &[], 1.0).unwrap(), 0.0);
    assert_op_error(forward(None, &t(&[2, 5]), &[0, 5], 1.0), "cross_entropy", "below 5");
    assert_op_error(forward(None, &t(&[2, 5]), &[0], 1.0), "cross_entropy", "[1, 5]");
    assert_op_error(forward(Some(&mut t(&[2, 4])), &t(&[2, 5]), &[0, 1], 1.0), "cross_entropy", "dlogits");
    assert_op_error(forward(None, &t(&[1, 0]), &[0], 1.0), "cross_entropy", "below 0");
}
