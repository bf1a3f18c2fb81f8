use criterion::{Criterion, criterion_group};
use mpa::ops::embedding;
use mpa::tensor::{DType, Indices};

use crate::{as_dtype, measure, tensor};

fn all(c: &mut Criterion) {
    let places = [
        ("demo student, 2000 tokens", 2000, 64, 96, DType::F32),
        ("SmolVLM-500M text, 1000 tokens", 1000, 960, 49280, DType::Bf16),
    ];
    for (place, t, width, vocabulary, dtype) in places {
        let ids: Indices = (0..t).map(|i| (i * 977 % vocabulary) as u32).collect();
        let table = as_dtype(&[vocabulary, width], dtype);
        let (mut out, mut dtable) = (tensor(&[t, width]), tensor(&[vocabulary, width]));
        let bytes = t * width * 4;
        measure(c, "embedding forward", place, bytes + t * width * dtype.size(), || {
            embedding::forward(&mut out, &ids, &table).expect("shapes fit")
        });
        measure(c, "embedding backward", place, 3 * bytes, || {
            embedding::backward(&mut dtable, &ids, &out).expect("shapes fit")
        });
        let places: Indices = (0..t as u32 / 2).collect();
        let mut features = tensor(&[t, width]);
        measure(c, "embedding splice", place, bytes, || {
            embedding::splice(&mut out, &features, &places, &places).expect("shapes fit")
        });
        measure(c, "embedding splice_backward", place, 2 * bytes, || {
            embedding::splice_backward(&mut features, &mut out, &places, &places).expect("shapes fit")
        });
    }
}

criterion_group!(benches, all);
