use criterion::{Criterion, criterion_group};
use mpa::ops::lora;
use mpa::tensor::Tensor;

use crate::{measure_flops, tensor};

fn both(c: &mut Criterion) {
    let places = [
        ("demo student, 2000 tokens, q, rank 16", 2000, 64, 64, 16),
        ("SmolVLM-500M text, 1000 tokens, gate, rank 8", 1000, 2560, 960, 8),
    ];
    for (place, m, n, k, r) in places {
        let (mut out, mut xa, x) = (tensor(&[m, n]), tensor(&[m, r]), tensor(&[m, k]));
        let (a, b, dy) = (tensor(&[r, k]), tensor(&[n, r]), tensor(&[m, n]));
        let (mut da, mut db, mut dx) =
            (Tensor::zeros(&[r, k]), Tensor::zeros(&[n, r]), Tensor::zeros(&[m, k]));
        let flops = 2 * m * r * (n + k);
        measure_flops(c, "lora forward", place, flops, || {
            lora::forward(&mut out, &mut xa, &x, &a, &b, 1e-6).expect("shapes fit")
        });
        measure_flops(c, "lora backward", place, 2 * flops, || {
            lora::backward(&mut da, &mut db, Some(&mut dx), &dy, &x, &xa, &a, &b, 1e-6).expect("shapes fit")
        });
    }
}

criterion_group!(benches, both);
