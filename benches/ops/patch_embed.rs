use criterion::{Criterion, criterion_group};
use mpa::ops::patch_embed;

use crate::{measure, tensor};

/// Name, pictures or tiles, their side, the patches' side, width.
const PLACES: [(&str, usize, usize, usize, usize); 2] =
    [("demo student", 16, 64, 8, 64), ("SmolVLM-256M, 1 tile", 1, 512, 16, 768)];

fn both(c: &mut Criterion) {
    for (name, n, picture, side, cols) in PLACES {
        let (p, k) = ((picture / side).pow(2), 3 * side * side);
        let pixels = tensor(&[n, 3, picture, picture]);
        let [mut weight, mut bias, mut position] =
            [&[cols, 3, side, side][..], &[cols], &[p, cols]].map(tensor);
        let (mut out, mut patches) = (tensor(&[n, p, cols]), tensor(&[n * p, k]));
        let bytes = 4 * (pixels.len() + weight.len() + position.len() + out.len());
        measure(c, "patch_embed forward", name, bytes, || {
            patch_embed::forward(&mut out, &mut patches, &pixels, &weight, &bias, &position).unwrap();
        });
        measure(c, "patch_embed backward", name, bytes, || {
            patch_embed::backward(&mut weight, &mut bias, &mut position, &out, &patches).unwrap();
        });
    }
}

criterion_group!(benches, both);
