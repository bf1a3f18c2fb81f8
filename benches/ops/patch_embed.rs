use criterion::{Criterion, criterion_group};
use mpa::ops::patch_embed::{self, Pixels, Projection};
use mpa::tensor::{DType, Tensor};

use crate::{as_dtype, measure, on_gpu, placed, tensor};

/// Name, pictures or tiles, their side, the patches' side, width.
const PLACES: [(&str, usize, usize, usize, usize); 2] =
    [("demo student", 16, 64, 8, 64), ("SmolVLM-256M, 1 tile", 1, 512, 16, 768)];

fn both(c: &mut Criterion) {
    for (name, n, picture, side, cols) in PLACES {
        let (p, k) = ((picture / side).pow(2), 3 * side * side);
        let values = (0..n * picture * picture * 3).map(|i| (i * 37 % 251) as u8).collect();
        let values = placed(Tensor::from_u8(&[n, picture, picture, 3], values).unwrap());
        let pixels = Pixels { values, levels: as_dtype(&[3, 256], DType::F32) };
        let [mut weight, mut bias, mut position] =
            [&[cols, 3, side, side][..], &[cols], &[p, cols]].map(tensor);
        let (mut out, mut patches) = (tensor(&[n, p, cols]), tensor(&[n * p, k]));
        let bytes = pixels.values.len() + 4 * (weight.len() + position.len() + out.len());
        measure(c, "patch_embed forward", name, bytes, || {
            let (bias, position) = (Some(&bias), Some(&position));
            let projection = Projection { weight: &weight, bias, position, merge: 1 };
            let kept = (!on_gpu()).then_some(&mut patches);
            patch_embed::forward(&mut out, kept, &pixels, projection).unwrap();
        });
        measure(c, "patch_embed backward", name, bytes, || {
            patch_embed::backward(&mut weight, Some((&mut bias, &mut position)), &out, &patches).unwrap();
        });
    }
}

criterion_group!(benches, both);
