use criterion::{Criterion, criterion_group};
use mpa::ops::rope;

use crate::{measure, placed, tensor};

/// Name, tokens, heads, head size.
const PLACES: [(&str, usize, usize, usize); 3] =
    [("demo student", 1000, 4, 16), ("SmolVLM-256M, decode", 1, 9, 64), ("SmolVLM-256M", 1024, 9, 64)];

fn both(c: &mut Criterion) {
    for (name, rows, heads, head_size) in PLACES {
        let positions: Vec<u32> = (0..rows as u32).collect();
        let (cos, sin) = rope::table(&positions, 1e5, head_size).unwrap();
        let (cos, sin) = (placed(cos), placed(sin));
        let mut x = tensor(&[rows, heads * head_size]);
        let bytes = 8 * x.len() + 8 * cos.len();
        measure(c, "rope forward", name, bytes, || rope::forward(&mut x, &cos, &sin, heads).unwrap());
        measure(c, "rope table", name, 8 * cos.len(), || {
            std::hint::black_box(rope::table(&positions, 1e5, head_size).unwrap());
        });
    }
}

criterion_group!(benches, both);
