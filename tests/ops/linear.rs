use mpa::ops::linear;
use mpa::tensor::{DType, Tensor};

use crate::common::*;

fn reference(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Vec<f64> {
    let (m, n, k) = (x.rows(), w.rows(), w.cols());
    let (x, w) = (to_f64(x), to_f64(w));
    let bias = bias.map(to_f64);
    let mut y = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let dot: f64 = (0..k).map(|p| x[i * k + p] * w[j * k + p]).sum();
            y[i * n + j] = dot + bias.as_ref().map_or(0.0, |b| b[j]);
        }
    }
    y
}

#[test]
fn forward() {
    let mut rng = Rng(3);
    for (m, n, k) in [(1, 300, 33), (3, 5, 7), (70, 260, 65), (300, 130, 129), (1, 1, 1)] {
        let (x, w, bias) = (rng.tensor(&[m, k], 1.0), rng.tensor(&[n, k], 1.0), rng.tensor(&[n], 1.0));
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let w = w.to_dtype(dtype);
            for bias in [None, Some(&bias)] {
                let mut y = poisoned(&[m, n]);
                linear::forward(&mut y, &x, &w, bias).unwrap();
                assert_close("y", y.f32s().unwrap(), &reference(&x, &w, bias), f32_sum(k));
            }
        }
    }
}
