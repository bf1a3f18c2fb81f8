use criterion::{Criterion, criterion_group};
use mpa::ops::patch_embed::{self, Pixels, Projection};
use mpa::tensor::Tensor;

use crate::{measure, tensor};

/// Name, pictures or tiles, their side, the patches' side, width.
const PLACES: [(&str, usize, usize, usize, usize); 2] =
    [("demo student", 16, 64, 8, 64), ("SmolVLM-256M, 1 tile", 1, 512, 16, 768)];

fn both(c: &mut Criterion) {
    for (name, n, picture, side, cols) in PLACES {
        let (p, k) = ((picture / side).pow(2), 3 * side * side);
        let values = (0..n * picture * picture * 3).map(|i| (i * 37 % 251) as u8).collect();
        let values = Tensor::from_u8(&[n, picture, picture, 3], values).unwrap();
        let pixels = Pixels { values, levels: tensor(&[3, 256]) };
        let [mut weight, mut bias, mut position] =
            [&[cols, 3, side, side][..], &[cols], &[p, cols]].map(tensor);
        let (mut out, mut patches) = (tensor(&[n, p, cols]), tensor(&[n * p, k]));
        let bytes = pixels.values.len() + 4 * (weight.len() + position.len() + out.len());
        measure(c, "patch_embed forward", name, bytes, || {
            let (bias, position) = (Some(&bias), Some(&position));
            let projection = Projection { weight: &weight, bias, position, merge: 1 };
            patch_embed::forward(&mut out, Some(&mut patches), &pixels, projection).unwrap();
        });
        measure(c, "patch_embed backward", name, bytes, || {
            patch_embed::backward(&mut weight, &mut bias, &mut position, &out, &patches).unwrap();
        });
    }
}

criterion_group!(benches, both);
