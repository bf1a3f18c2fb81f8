use criterion::{Criterion, criterion_group};
use mpa::ops::pixel_shuffle;

use crate::{measure, tensor};

/// Name, pictures or tiles, patches, width, factor.
const PLACES: [(&str, usize, usize, usize, usize); 2] =
    [("demo student", 16, 64, 64, 2), ("SmolVLM-256M, 5 tiles", 5, 1024, 768, 4)];

fn both(c: &mut Criterion) {
    for (name, n, patches, cols, factor) in PLACES {
        let square = factor * factor;
        let (mut x, mut out) = (tensor(&[n, patches, cols]), tensor(&[n, patches / square, cols * square]));
        let bytes = 8 * x.len();
        measure(c, "pixel_shuffle forward", name, bytes, || {
            pixel_shuffle::forward(&mut out, &x, factor).unwrap();
        });
        measure(c, "pixel_shuffle backward", name, bytes, || {
            pixel_shuffle::backward(&mut x, &out, factor).unwrap();
        });
    }
}

criterion_group!(benches, both);
