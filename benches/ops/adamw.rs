use criterion::{Criterion, criterion_group};
use mpa::ops::adamw::{Hyper, step};

use crate::{measure, tensor};

const HYPER: Hyper = Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

/// Name, rows and columns of one weight.
const PLACES: [(&str, [usize; 2]); 3] = [
    ("demo student, LoRA factor", [16, 64]),
    ("demo student, MLP", [256, 64]),
    ("SmolVLM-256M, text MLP", [1536, 576]),
];

fn update(c: &mut Criterion) {
    for (name, shape) in PLACES {
        let [mut w, mut m, grad] = [0; 3].map(|_| tensor(&shape));
        let mut v = mpa::tensor::Tensor::zeros(&shape);
        measure(c, "adamw step", name, 28 * w.len(), || {
            step(&mut w, &mut m, &mut v, &grad, HYPER, 10).unwrap()
        });
    }
}

criterion_group!(benches, update);
