use criterion::{Criterion, criterion_group};
use mpa::ops::gelu::{self, Kind};

use crate::{MLP, measure, tensor};

fn both(c: &mut Criterion) {
    for place in MLP {
        let shape = [place.rows, place.cols];
        let (mut out, x, dy) = (tensor(&shape), tensor(&shape), tensor(&shape));
        measure(c, "gelu forward", place.name, 8 * x.len(), || {
            gelu::forward(&mut out, &x, Kind::Tanh).unwrap()
        });
        measure(c, "gelu backward", place.name, 12 * x.len(), || {
            gelu::backward(&mut out, &dy, &x, Kind::Tanh).unwrap()
        });
    }
}

criterion_group!(benches, both);
