use criterion::{Criterion, criterion_group};
use mpa::ops::rms_norm;

use crate::{HIDDEN, measure, tensor};

fn both(c: &mut Criterion) {
    for place in HIDDEN {
        let [mut out, x, dy] = [0; 3].map(|_| tensor(&[place.rows, place.cols]));
        let [weight, mut dweight] = [0; 2].map(|_| tensor(&[place.cols]));
        let n = x.len();
        measure(c, "rms_norm forward", place.name, 8 * n, || {
            rms_norm::forward(&mut out, &x, &weight, 1e-5).unwrap();
        });
        measure(c, "rms_norm backward", place.name, 12 * n, || {
            rms_norm::backward(&mut out, Some(&mut dweight), &dy, &x, &weight, 1e-5).unwrap();
        });
    }
}

criterion_group!(benches, both);
