use criterion::{Criterion, criterion_group};
use mpa::ops::swiglu;

use crate::{MLP, measure, tensor};

fn both(c: &mut Criterion) {
    for place in MLP {
        let [mut out, mut dup, gate, up, dout] = [0; 5].map(|_| tensor(&[place.rows, place.cols]));
        let n = gate.len();
        measure(c, "swiglu forward", place.name, 12 * n, || {
            swiglu::forward(&mut out, &gate, &up).unwrap();
        });
        measure(c, "swiglu backward", place.name, 20 * n, || {
            swiglu::backward(&mut out, &mut dup, &dout, &gate, &up).unwrap();
        });
    }
}

criterion_group!(benches, both);
