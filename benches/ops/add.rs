use criterion::{Criterion, criterion_group};
use mpa::ops::add;

use crate::{HIDDEN, measure, tensor};

fn forward(c: &mut Criterion) {
    for place in HIDDEN {
        let (mut out, x) = (tensor(&[place.rows, place.cols]), tensor(&[place.rows, place.cols]));
        measure(c, "add forward", place.name, 12 * x.len(), || add::forward(&mut out, &x).unwrap());
    }
}

criterion_group!(benches, forward);
