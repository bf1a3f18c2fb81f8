use criterion::{Criterion, criterion_group};
use mpa::ops::dropout;

use crate::{HIDDEN, measure, tensor};

fn forward(c: &mut Criterion) {
    for place in HIDDEN {
        let (mut out, x) = (tensor(&[place.rows, place.cols]), tensor(&[place.rows, place.cols]));
        measure(c, "dropout forward", place.name, 8 * x.len(), || {
            dropout::forward(&mut out, &x, 0.05, 7).unwrap()
        });
    }
}

criterion_group!(benches, forward);
