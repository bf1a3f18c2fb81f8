use criterion::{Criterion, criterion_group};
use mpa::ops::sample::{Sampling, argmax, draw, log_probability};

use crate::{measure, tensor};

fn all(c: &mut Criterion) {
    for (place, vocabulary) in [("demo", 96), ("SmolVLM", 49280)] {
        let logits = tensor(&[vocabulary]);
        let logits = logits.f32s().expect("f32");
        let bytes = 4 * vocabulary;
        measure(c, "sample argmax", place, bytes, || {
            argmax(logits).expect("finite logits");
        });
        for (name, top_p) in [("sample draw", 1.0), ("sample draw, top_p 0.9", 0.9)] {
            let sampling = Sampling { temperature: 0.8, top_p };
            measure(c, name, place, bytes, || {
                draw(logits, sampling, 0.5).expect("finite logits");
            });
        }
        measure(c, "sample log_probability", place, bytes, || {
            log_probability(logits, 3).expect("finite logits");
        });
    }
}

criterion_group!(benches, all);
