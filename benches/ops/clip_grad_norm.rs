use criterion::{Criterion, criterion_group};
use mpa::ops::clip_grad_norm;

use crate::{measure, tensor};

/// Name, number of gradients, rows and columns of each.
const PLACES: [(&str, usize, [usize; 2]); 2] =
    [("demo student, LoRA", 42, [16, 64]), ("SmolVLM-256M, LoRA", 420, [16, 576])];

fn norm(c: &mut Criterion) {
    for (name, n, shape) in PLACES {
        let grads: Vec<_> = (0..n).map(|_| tensor(&shape)).collect();
        let grads: Vec<_> = grads.iter().collect();
        let bytes = 4 * n * shape[0] * shape[1];
        measure(c, "clip_grad_norm norm", name, bytes, || {
            std::hint::black_box(clip_grad_norm::norm(&grads).unwrap());
        });
    }
}

criterion_group!(benches, norm);
