use criterion::{Criterion, criterion_group};
use mpa::ops::matmul::{View, matmul};

use crate::{measure_flops, on_gpu, tensor};

/// C [m, n] = A B over k, in the three layouts of a linear layer's forward and backward.
fn layouts(c: &mut Criterion) {
    // What linear, lora and attention use on a CPU.
    if on_gpu() {
        return;
    }
    let places = [
        ("demo student, 2000 tokens, q", 2000, 64, 64),
        ("demo student, 2000 tokens, gate", 2000, 256, 64),
        ("SmolVLM-500M text, 1000 tokens, q", 1000, 960, 960),
        ("SmolVLM-500M text, 64 tokens, q", 64, 960, 960),
        ("SmolVLM-500M vision, 1024 patches, fc1", 1024, 3072, 768),
    ];
    for (place, m, n, k) in places {
        let (a, b) = (tensor(&[m, k]), tensor(&[k, n]));
        let (a, b) = (a.f32s().expect("f32"), b.f32s().expect("f32"));
        let mut out = vec![0.0; m * n];
        for (name, ars, acs, brs, bcs) in [("A B", k, 1, n, 1), ("A B^T", k, 1, 1, k), ("A^T B", 1, m, n, 1)]
        {
            let (a, b) = (View { data: a, rs: ars, cs: acs }, View { data: b, rs: brs, cs: bcs });
            measure_flops(c, &format!("matmul {name}"), place, 2 * m * n * k, || {
                matmul(m, n, k, &mut out, n, 1.0, a, b, false)
            });
        }
    }
}

criterion_group!(benches, layouts);
