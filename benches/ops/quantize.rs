use criterion::{Criterion, criterion_group};
use mpa::ops::quantize;
use mpa::tensor::Tensor;

use crate::{HIDDEN, measure, placed, tensor};

fn forward(c: &mut Criterion) {
    for place in HIDDEN {
        let x = tensor(&[place.rows, place.cols]);
        let mut q = x.like_i8(x.shape()).expect("room for it");
        let mut scale = placed(Tensor::zeros(&[place.rows]));
        let rotation = quantize::rotation(place.cols, quantize::MOST_ROTATED);
        let bytes = x.len() * (1 + x.dtype().size()) + 4 * place.rows;
        measure(c, "quantize forward", place.name, bytes, || {
            quantize::forward(&mut q, &mut scale, &x, rotation).unwrap();
        });
    }
}

criterion_group!(benches, forward);
