use criterion::{Criterion, criterion_group};
use mpa::ops::linear;
use mpa::tensor::{DType, Tensor};

use crate::{as_dtype, measure_flops, tensor};

/// Rows of x, and the layer's N and K.
const PLACES: [(&str, usize, usize, usize); 8] = [
    ("demo student, 2000 tokens, q", 2000, 64, 64),
    ("demo student, 2000 tokens, down", 2000, 64, 256),
    ("demo student, 64 tokens, q", 64, 64, 64),
    ("SmolVLM-500M text, 1 token, gate", 1, 2560, 960),
    ("SmolVLM-500M text, 16 tokens, gate", 16, 2560, 960),
    ("SmolVLM-500M text, 1000 tokens, gate", 1000, 2560, 960),
    ("SmolVLM-500M text, 1 token, vocabulary", 1, 49280, 960),
    ("SmolVLM-500M vision, 1024 patches, fc2", 1024, 768, 3072),
];

fn all(c: &mut Criterion) {
    for (place, m, n, k) in PLACES {
        let (mut y, mut x, dy) = (tensor(&[m, n]), tensor(&[m, k]), tensor(&[m, n]));
        let mut dweight = Tensor::zeros(&[n, k]);
        let flops = 2 * m * n * k;
        for dtype in [DType::F32, DType::Bf16] {
            let w = as_dtype(&[n, k], dtype);
            measure_flops(c, &format!("linear forward {dtype}"), place, flops, || {
                linear::forward(&mut y, &x, &w, None).expect("shapes fit")
            });
            if m > 1 {
                measure_flops(c, &format!("linear backward_input {dtype}"), place, flops, || {
                    linear::backward_input(&mut x, &dy, &w, false).expect("shapes fit")
                });
            }
        }
        if m > 1 {
            measure_flops(c, "linear backward_weight", place, flops, || {
                linear::backward_weight(&mut dweight, &dy, &x).expect("shapes fit")
            });
        }
    }
}

criterion_group!(benches, all);
