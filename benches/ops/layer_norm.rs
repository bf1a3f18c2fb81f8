use criterion::{Criterion, criterion_group};
use mpa::ops::layer_norm;

use crate::{HIDDEN, measure, tensor};

fn both(c: &mut Criterion) {
    for place in HIDDEN {
        let [mut out, x, dy] = [0; 3].map(|_| tensor(&[place.rows, place.cols]));
        let [weight, bias, mut dweight, mut dbias] = [0; 4].map(|_| tensor(&[place.cols]));
        let n = x.len();
        measure(c, "layer_norm forward", place.name, 8 * n, || {
            layer_norm::forward(&mut out, &x, &weight, &bias, 1e-5).unwrap();
        });
        measure(c, "layer_norm backward", place.name, 12 * n, || {
            let dparams = Some((&mut dweight, &mut dbias));
            layer_norm::backward(&mut out, dparams, &dy, &x, &weight, 1e-5).unwrap();
        });
    }
}

criterion_group!(benches, both);
