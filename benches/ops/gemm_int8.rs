use criterion::{Criterion, criterion_group};
use mpa::ops::gemm_int8::{self, Quantized};
use mpa::tensor::Tensor;

use crate::{measure_flops, placed, tensor};

/// Rows of x, and the layer's N and K.
const PLACES: [(&str, usize, usize, usize); 4] = [
    ("SmolVLM-256M text, 1 token, gate", 1, 1536, 576),
    ("SmolVLM-256M text, 512 tokens, gate", 512, 1536, 576),
    ("Qwen2-VL-2B text, 1 token, gate", 1, 8960, 1536),
    ("Qwen2-VL-2B text, 512 tokens, gate", 512, 8960, 1536),
];

/// Values spread over -127..=127.
fn quantised(rows: usize, cols: usize) -> (Tensor, Tensor) {
    let value = |i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8 as i8;
    let q = (0..(rows * cols) as u32).map(|i| value(i).max(-127)).collect();
    let q = placed(Tensor::from_i8(&[rows, cols], q).expect("as many values as the shape has"));
    (q, placed(Tensor::from_vec(&[rows], vec![0.01; rows]).expect("a scale a row")))
}

fn forward(c: &mut Criterion) {
    for (place, m, n, k) in PLACES {
        let (x, w) = (quantised(m, k), quantised(n, k));
        let mut out = tensor(&[m, n]);
        let [x, w] = [&x, &w].map(|(q, scale)| Quantized { q, scale });
        measure_flops(c, "gemm_int8 forward", place, 2 * m * n * k, || {
            gemm_int8::forward(&mut out, x, w, None, None).unwrap();
        });
    }
}

criterion_group!(benches, forward);
