use criterion::{Criterion, criterion_group};
use mpa::ops::cross_entropy;
use mpa::tensor::Indices;

use crate::{measure, tensor};

fn both(c: &mut Criterion) {
    for (place, m, v) in
        [("demo student, 500 answer tokens", 500, 96), ("SmolVLM, 64 answer tokens", 64, 49280)]
    {
        let (mut losses, mut dlogits, logits) = (tensor(&[m]), tensor(&[m, v]), tensor(&[m, v]));
        let targets: Indices = (0..m).map(|i| (i * 7 % v) as u32).collect();
        measure(c, "cross_entropy loss", place, 4 * m * v, || {
            cross_entropy::forward(&mut losses, None, &logits, &targets, 1.0).expect("shapes fit");
        });
        measure(c, "cross_entropy loss and gradient", place, 8 * m * v, || {
            cross_entropy::forward(&mut losses, Some(&mut dlogits), &logits, &targets, 1.0)
                .expect("shapes fit");
        });
    }
}

criterion_group!(benches, both);
